//! The stages of a job: names, conditions after a failure, and the position of a resumed job. Their order is in
//! [`super::run`].

use super::artifacts::ScriptOutcome;
use crate::journal::{Progress, RemainingStages};
use crate::payload::Payload;

/// A stage; each is a section of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Creates the directories and the container of the job.
    PrepareExecutor,
    /// Prints where the job runs, and empties the file of `GITLAB_ENV`.
    PrepareScript,
    GetSources,
    RestoreCache,
    DownloadArtifacts,
    /// A step of the payload, by its name.
    Step(String),
    AfterScript,
    SaveCache,
    UploadArtifacts,
    /// Removes secrets.
    CleanUp,
}

/// The position of [`Stage::GetSources`].
const SOURCES: usize = 2;

/// The steps of the payload that are stages of their own: the index and name of each.
pub fn script_steps(payload: &Payload) -> Vec<(usize, String)> {
    let steps = payload.steps.iter().enumerate().filter(|(_, step)| step.name != AFTER_SCRIPT);
    steps.map(|(index, step)| (index, step.name.to_ascii_lowercase())).collect()
}

/// Whether the job has an after_script.
pub fn has_after_script(payload: &Payload) -> bool {
    payload.step(AFTER_SCRIPT).is_some_and(|step| !step.script.is_empty())
}

/// The name of the payload's step with the lines of after_script.
const AFTER_SCRIPT: &str = "after_script";

/// The position of a stage in the order of stages. The journal contains it.
#[derive(Clone, Copy)]
pub struct StagePosition {
    pub index: usize,
    /// Whether an earlier agent began the stage and did not complete it.
    pub resumed: bool,
}

/// Counts the stages of a job while they run.
pub struct StageCursor {
    /// The index of the next stage.
    next: usize,
    /// The first stage that an earlier agent has not completed.
    first: usize,
    /// The stage that an earlier agent began and did not complete.
    unfinished: Option<usize>,
}

impl StageCursor {
    /// A cursor at the first stage of a job with this progress.
    pub fn new(progress: &Progress) -> Self {
        Self { next: 0, first: progress.next_stage(), unfinished: progress.unfinished_stage() }
    }

    /// Moves to the next stage, and returns its position; `None` if an earlier agent has completed the stage.
    pub fn advance(&mut self) -> Option<StagePosition> {
        let index = self.next;
        self.next += 1;
        (index >= self.first).then(|| StagePosition { index, resumed: self.unfinished == Some(index) })
    }
}

/// The job's result so far.
pub fn outcome_so_far(progress: &Progress) -> ScriptOutcome {
    if progress.failure.is_none() { ScriptOutcome::Success } else { ScriptOutcome::Failure }
}

impl Stage {
    /// The section name, which can depend on the result so far.
    pub fn section(&self, outcome: ScriptOutcome) -> String {
        match self {
            Self::PrepareExecutor => "prepare_executor".to_owned(),
            Self::PrepareScript => "prepare_script".to_owned(),
            Self::GetSources => "get_sources".to_owned(),
            Self::RestoreCache => "restore_cache".to_owned(),
            Self::DownloadArtifacts => "download_artifacts".to_owned(),
            Self::SaveCache if outcome == ScriptOutcome::Success => "archive_cache".to_owned(),
            Self::SaveCache => "archive_cache_on_failure".to_owned(),
            Self::UploadArtifacts if outcome == ScriptOutcome::Success => "upload_artifacts_on_success".to_owned(),
            Self::UploadArtifacts => "upload_artifacts_on_failure".to_owned(),
            Self::Step(name) => format!("step_{}", plain(name)),
            Self::AfterScript => "after_script".to_owned(),
            Self::CleanUp => "cleanup_file_variables".to_owned(),
        }
    }

    /// The label of the stage in metrics. It contains no text from the job.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PrepareExecutor => "prepare_executor",
            Self::PrepareScript => "prepare_script",
            Self::GetSources => "get_sources",
            Self::RestoreCache => "restore_cache",
            Self::DownloadArtifacts => "download_artifacts",
            Self::SaveCache => "archive_cache",
            Self::UploadArtifacts => "upload_artifacts",
            Self::Step(name) if name == "script" => "step_script",
            Self::Step(name) if name == "release" => "step_release",
            Self::Step(..) => "step_other",
            Self::AfterScript => "after_script",
            Self::CleanUp => "cleanup_file_variables",
        }
    }

    /// The heading in the log.
    pub fn heading(&self, executor: &str, outcome: ScriptOutcome) -> String {
        let which = if outcome == ScriptOutcome::Success { "successful" } else { "failed" };
        match self {
            Self::RestoreCache => "Restoring cache".to_owned(),
            Self::DownloadArtifacts => "Downloading artifacts".to_owned(),
            Self::SaveCache => format!("Saving cache for {which} job"),
            Self::UploadArtifacts => format!("Uploading artifacts for {which} job"),
            Self::PrepareExecutor => format!("Preparing the \"{executor}\" executor"),
            Self::PrepareScript => "Preparing environment".to_owned(),
            Self::GetSources => "Getting source from Git repository".to_owned(),
            Self::Step(..) => format!("Executing \"{}\" stage of the job script", self.section(outcome)),
            Self::AfterScript => "Running after_script".to_owned(),
            Self::CleanUp => "Cleaning up project directory and file based variables".to_owned(),
        }
    }

    /// Whether a user's cancel stops the stage. Stages after the scripts run to their end.
    pub fn stops_on_cancel(&self) -> bool {
        !matches!(self, Self::AfterScript | Self::SaveCache | Self::UploadArtifacts | Self::CleanUp)
    }

    /// Whether the stage runs, given the progress and the payload.
    pub fn is_due(&self, progress: &Progress, payload: &Payload) -> bool {
        let outcome = outcome_so_far(progress);
        let nothing_failed = outcome == ScriptOutcome::Success;
        // If the sources stage did not start, there are no files.
        let has_sources = progress.stage.as_ref().is_some_and(|stage| stage.index >= SOURCES);
        match self {
            _ if progress.is_aborted() => false,
            // The cloud is about to interrupt the instance. The remaining time is used for results that cannot be
            // recreated.
            Self::SaveCache | Self::AfterScript if progress.remaining == RemainingStages::Results => false,
            Self::PrepareExecutor | Self::PrepareScript | Self::GetSources | Self::Step(..) => nothing_failed,
            Self::RestoreCache => nothing_failed && has_caches(payload),
            Self::DownloadArtifacts => nothing_failed && has_dependencies(payload),
            Self::SaveCache => has_sources && has_caches_to_save(payload, outcome),
            Self::UploadArtifacts => has_sources && has_artifacts(payload, outcome),
            // after_script runs only if the scripts have started.
            Self::AfterScript => progress.scripts.is_some(),
            Self::CleanUp => progress.stage.is_some(),
        }
    }
}

fn has_caches(payload: &Payload) -> bool {
    payload.cache.iter().any(|cache| cache.untracked || !cache.paths.is_empty())
}

fn has_caches_to_save(payload: &Payload, outcome: ScriptOutcome) -> bool {
    let mut due = payload.cache.iter().filter(|cache| outcome.matches_when(&cache.when));
    due.any(|cache| cache.untracked || !cache.paths.is_empty())
}

fn has_dependencies(payload: &Payload) -> bool {
    payload.dependencies.iter().any(|dependency| !dependency.artifacts_file.filename.is_empty())
}

fn has_artifacts(payload: &Payload, outcome: ScriptOutcome) -> bool {
    let mut due = payload.artifacts.iter().filter(|artifact| outcome.matches_when(&artifact.when));
    due.any(|artifact| artifact.untracked || !artifact.paths.is_empty() || !artifact.exclude.is_empty())
}

/// A name with only characters that a section marker allows.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::JobError;
    use crate::journal::progress::{ScriptsProgress, StageProgress};
    use crate::payload::{Artifact, Cache, Step};

    fn payload(steps: &[&str]) -> Payload {
        let step = |name: &&str| Step { name: (*name).to_owned(), script: vec!["x".to_owned()] };
        Payload { steps: steps.iter().map(step).collect(), ..Payload::default() }
    }

    /// All stages of a job with a script and after_script, in order.
    fn all_stages() -> Vec<Stage> {
        use Stage::*;
        let before = [PrepareExecutor, PrepareScript, GetSources, RestoreCache, DownloadArtifacts];
        let after = [Step("script".to_owned()), AfterScript, SaveCache, UploadArtifacts, CleanUp];
        before.into_iter().chain(after).collect()
    }

    #[test]
    fn after_script_is_not_one_of_the_steps() {
        let payload = payload(&["script", "after_script", "Release\n"]);
        assert_eq!(script_steps(&payload), [(0, "script".to_owned()), (2, "release\n".to_owned())]);
        assert!(has_after_script(&payload));
        assert_eq!(Stage::Step("release\n".to_owned()).section(ScriptOutcome::Success), "step_release_");
        assert_eq!(all_stages()[SOURCES], Stage::GetSources);
    }

    #[test]
    fn a_resumed_job_continues_with_the_unfinished_stage() {
        let stage = Some(StageProgress { index: 2, ..StageProgress::default() });
        let mut cursor = StageCursor::new(&Progress { stage, ..Progress::default() });
        let positions: Vec<_> = (0..5).filter_map(|_| cursor.advance()).collect();
        let positions: Vec<_> = positions.iter().map(|position| (position.index, position.resumed)).collect();
        assert_eq!(positions, [(2, true), (3, false), (4, false)]);
    }

    #[test]
    fn selects_the_stages_after_a_failure() {
        let mut payload = payload(&["script", "after_script"]);
        let cache = |when: &str| Cache { when: when.to_owned(), paths: vec!["x".to_owned()], ..Cache::default() };
        payload.cache = vec![cache("on_success"), cache("always")];
        let artifact = Artifact { when: "on_failure".to_owned(), paths: vec!["x".to_owned()], ..Artifact::default() };
        payload.artifacts = vec![artifact];
        let due = |progress: &Progress| -> Vec<String> {
            let due = all_stages().into_iter().filter(|stage| stage.is_due(progress, &payload));
            due.map(|stage| stage.section(ScriptOutcome::Failure)).collect()
        };
        let at = |index| Some(StageProgress { index, ..StageProgress::default() });
        let failed = Progress { stage: at(SOURCES), failure: Some(JobError::system("x")), ..Progress::default() };
        let files = ["archive_cache_on_failure", "upload_artifacts_on_failure", "cleanup_file_variables"];
        assert_eq!(due(&failed), files);
        let script_failed = Progress { scripts: Some(ScriptsProgress::default()), ..failed.clone() };
        assert_eq!(due(&script_failed), ["after_script", files[0], files[1], files[2]]);
        let aborted = Progress { remaining: RemainingStages::Nothing, ..script_failed };
        assert!(due(&aborted).is_empty());
        let evicted = Progress { remaining: RemainingStages::Results, ..aborted };
        assert_eq!(due(&evicted), [files[1], files[2]]);
        let evicted_behind_the_scripts = Progress { failure: None, ..evicted };
        let left = all_stages().into_iter().skip(6).filter(|stage| stage.is_due(&evicted_behind_the_scripts, &payload));
        assert_eq!(left.collect::<Vec<_>>(), [Stage::CleanUp], "no artifacts for a success here");
        let not_prepared = Progress { stage: at(0), ..failed };
        assert_eq!(due(&not_prepared), ["cleanup_file_variables"]);
    }
}
