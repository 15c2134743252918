//! The progress of a job: what the agent has already done, and what it may still do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::stop_requests::StopRequests;
use crate::coordinator::JobState;
use crate::executor::docker::prepared::PreparedContainer;
use crate::executor::job_dirs::JobDirs;
use crate::failure::JobError;
use crate::shim;
use crate::sys::BootTime;

/// The progress of a job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Whether this agent has the job, if a manager offered it.
    pub offer: OfferState,
    /// The directories of the job; the configuration may have changed since.
    pub dirs: Option<JobDirs>,
    /// The current stage; `None` before the first.
    pub stage: Option<StageProgress>,
    /// The stages so far, with the start of each.
    pub stage_starts: Vec<(String, BootTime)>,
    /// Steps started so far, over all stages.
    pub steps: u32,
    /// Deadline of the sources over all attempts (`get_sources_timeout`).
    pub sources_deadline: Option<BootTime>,
    /// Set once the scripts of the job have started.
    pub scripts: Option<ScriptsProgress>,
    /// The job's container, once it is created.
    pub container: Option<JobContainer>,
    /// The stages that may still run.
    pub remaining: RemainingStages,
    /// The first failure.
    pub failure: Option<JobError>,
    /// The requests for which the agent stopped a step. The result of the step does not contain the reason.
    pub stop_requests: StopRequests,
    /// The final state, once it is decided.
    pub final_state: Option<JobState>,
    /// The agent's lines in the log, and the delivery of the log.
    pub log: LogProgress,
    /// Bytes of artifacts that GitLab has accepted.
    pub artifact_bytes: u64,
    /// When agents resumed the job in this stage.
    pub resumed_at: Vec<BootTime>,
}

/// Whether this agent has a job that a manager offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferState {
    /// The manager has not confirmed that this agent has the job. A job from GitLab stays in this state.
    #[default]
    Open,
    /// The manager has confirmed that this agent has the job.
    Accepted,
}

/// The stages that may still run, from all to none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemainingStages {
    /// All stages that the result so far permits.
    #[default]
    All,
    /// Neither after_script nor caches, because the cloud interrupts the instance.
    Results,
    /// No stage, because the job was aborted.
    Nothing,
}

/// The progress of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// The position in the list of stages.
    pub index: usize,
    /// The log section of the stage.
    pub section: String,
    /// The log section that was open before it.
    pub section_before: Option<String>,
    /// Attempts of the stage before this one.
    pub attempt: u32,
    /// Steps of this attempt that are complete.
    pub steps_done: usize,
    pub state: StageState,
}

/// The state of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// No step runs.
    #[default]
    BetweenSteps,
    /// A step was started.
    Step(StepRecord),
    /// The result of the stage is recorded; the next stage follows.
    Settled,
}

/// A step that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    pub id: String,
    /// The process of the shim, once it is known.
    pub shim: Option<shim::ShimIdentity>,
    pub cgroups: Vec<PathBuf>,
    pub deadline: Option<BootTime>,
}

/// The progress of the job's scripts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptsProgress {
    /// The deadline of the scripts (`RUNNER_SCRIPT_TIMEOUT`).
    pub deadline: Option<BootTime>,
}

/// The container of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobContainer {
    pub prepared: Box<PreparedContainer>,
    pub condition: ContainerCondition,
}

/// Whether the next script can run in the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerCondition {
    Usable,
    /// A script in it was stopped, so the next script needs a new container.
    Interrupted,
}

/// The agent's own lines in the log, and the delivery of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogProgress {
    /// Size of the log before the next line of the agent (the heading of the stage, `pending_warning`, the last line).
    /// If the log is larger, the line was written.
    pub size: u64,
    /// A warning that is not in the log yet.
    pub pending_warning: Option<String>,
    /// Bytes of the log that GitLab has acknowledged.
    pub acknowledged: u64,
}

impl Progress {
    /// Begins the next stage, whose heading is not in the log yet.
    pub fn begin_stage(&mut self, index: usize, section: String, log_size: u64) {
        let section_before = self.stage.take().map(|stage| stage.section);
        self.stage = Some(StageProgress { index, section, section_before, ..StageProgress::default() });
        self.log.size = log_size;
        self.resumed_at.clear();
    }

    /// Begins the next attempt of the stage.
    pub fn begin_attempt(&mut self, attempt: u32) {
        if let Some(stage) = &mut self.stage {
            (stage.attempt, stage.steps_done, stage.state) = (attempt, 0, StageState::BetweenSteps);
        }
    }

    /// Records a started step of the stage.
    pub fn begin_step(&mut self, step: StepRecord) {
        if let Some(stage) = &mut self.stage {
            stage.state = StageState::Step(step);
        }
        self.steps += 1;
    }

    /// The running step.
    pub fn step(&self) -> Option<&StepRecord> {
        match &self.stage.as_ref()?.state {
            StageState::Step(step) => Some(step),
            StageState::BetweenSteps | StageState::Settled => None,
        }
    }

    /// Records the process of the running step's shim.
    pub fn set_shim(&mut self, shim: shim::ShimIdentity) {
        if let Some(StageProgress { state: StageState::Step(step), .. }) = &mut self.stage {
            step.shim = Some(shim);
        }
    }

    /// Clears the running step, and returns it.
    pub fn end_step(&mut self) -> Option<StepRecord> {
        let state = &mut self.stage.as_mut()?.state;
        match std::mem::take(state) {
            StageState::Step(step) => Some(step),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Records the result of the stage; the next one follows.
    pub fn settle(&mut self) {
        if let Some(stage) = &mut self.stage {
            stage.state = StageState::Settled;
        }
    }

    /// The position of the first stage that is to run or to be resumed.
    pub fn next_stage(&self) -> usize {
        let after = self.stage.as_ref().map_or(0, |stage| stage.index + 1);
        self.unfinished_stage().unwrap_or(after)
    }

    /// The position of the stage whose result is not recorded yet.
    pub fn unfinished_stage(&self) -> Option<usize> {
        self.stage.as_ref().filter(|stage| stage.state != StageState::Settled).map(|stage| stage.index)
    }

    /// The job's container, once it is created.
    pub fn prepared_container(&self) -> Option<&PreparedContainer> {
        self.container.as_ref().map(|container| &*container.prepared)
    }

    /// Complete steps of this attempt.
    pub fn steps_done(&self) -> usize {
        self.stage.as_ref().map_or(0, |stage| stage.steps_done)
    }

    /// Attempts of the stage before this one.
    pub fn attempt(&self) -> u32 {
        self.stage.as_ref().map_or(0, |stage| stage.attempt)
    }

    /// The log section of the stage.
    pub fn section(&self) -> Option<&str> {
        self.stage.as_ref().map(|stage| stage.section.as_str())
    }

    /// Permits no further stage.
    pub fn abort(&mut self) {
        self.limit(RemainingStages::Nothing);
    }

    /// Whether no further stage runs.
    pub fn is_aborted(&self) -> bool {
        self.remaining == RemainingStages::Nothing
    }

    /// Permits at most these stages.
    pub fn limit(&mut self, most: RemainingStages) {
        self.remaining = self.remaining.max(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: &str) -> StepRecord {
        StepRecord { id: id.to_owned(), shim: None, cgroups: Vec::new(), deadline: None }
    }

    #[test]
    fn a_stage_runs_step_by_step_until_its_result_is_recorded() {
        let mut progress = Progress::default();
        assert_eq!((progress.next_stage(), progress.step(), progress.section()), (0, None, None));
        progress.begin_stage(2, "get_sources".to_owned(), 7);
        progress.begin_step(step("a"));
        assert_eq!((progress.next_stage(), progress.step(), progress.steps), (2, Some(&step("a")), 1));
        assert_eq!((progress.end_step(), progress.step()), (Some(step("a")), None));
        progress.begin_attempt(1);
        progress.begin_step(step("b"));
        progress.settle();
        assert_eq!((progress.next_stage(), progress.end_step(), progress.attempt()), (3, None, 1));
        assert_eq!(progress.next_stage(), 3, "the result stays recorded");
        progress.begin_stage(5, "step_script".to_owned(), 9);
        let stage = progress.stage.as_ref().expect("a stage");
        assert_eq!((stage.section_before.as_deref(), stage.attempt, progress.steps), (Some("get_sources"), 0, 2));
    }

    #[test]
    fn an_aborted_job_stays_aborted() {
        let mut progress = Progress::default();
        progress.limit(RemainingStages::Results);
        assert!(!progress.is_aborted());
        progress.abort();
        progress.limit(RemainingStages::Results);
        assert!(progress.is_aborted());
    }

    #[test]
    fn every_state_can_be_read_again() {
        for state in [StageState::BetweenSteps, StageState::Step(step("a")), StageState::Settled] {
            let stage = StageProgress { state, ..StageProgress::default() };
            let progress = Progress {
                stage: Some(stage.clone()),
                scripts: Some(ScriptsProgress { deadline: Some(BootTime::from_nanos(5)) }),
                remaining: RemainingStages::Results,
                ..Progress::default()
            };
            let text = serde_json::to_vec(&progress).expect("encode as JSON");
            let read: Progress = crate::decode::json(&text).expect("must be JSON");
            assert_eq!((read.stage, read.scripts, read.remaining), (Some(stage), progress.scripts, progress.remaining));
        }
    }
}
