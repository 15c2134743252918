//! The stages of a job: their names in the log, their order, and what still runs after a failure.

use crate::journal::Progress;

use super::payload::Payload;

/// A stage; each is a section of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Get the executor ready.
    PrepareExecutor,
    /// Say where the job runs.
    PrepareScript,
    /// Bring the sources.
    GetSources,
    /// A step of the payload, by its place there.
    Step(usize, String),
    /// What the job wants to run in any case.
    AfterScript,
    /// Take away secrets.
    Cleanup,
}

/// The stages of a job in their order.
pub fn of(payload: &Payload) -> Vec<Stage> {
    let mut stages = vec![Stage::PrepareExecutor, Stage::PrepareScript, Stage::GetSources];
    for (index, step) in payload.steps.iter().enumerate().filter(|(_, step)| step.name != "after_script") {
        stages.push(Stage::Step(index, step.name.to_ascii_lowercase()));
    }
    if payload.step("after_script").is_some_and(|step| !step.script.is_empty()) {
        stages.push(Stage::AfterScript);
    }
    stages.push(Stage::Cleanup);
    stages
}

impl Stage {
    /// The name of the section.
    pub fn section(&self) -> String {
        match self {
            Self::PrepareExecutor => "prepare_executor".to_owned(),
            Self::PrepareScript => "prepare_script".to_owned(),
            Self::GetSources => "get_sources".to_owned(),
            Self::Step(_, name) => format!("step_{}", plain(name)),
            Self::AfterScript => "after_script".to_owned(),
            Self::Cleanup => "cleanup_file_variables".to_owned(),
        }
    }

    /// The line under which it stands.
    pub fn heading(&self, executor: &str) -> String {
        match self {
            Self::PrepareExecutor => format!("Preparing the \"{executor}\" executor"),
            Self::PrepareScript => "Preparing environment".to_owned(),
            Self::GetSources => "Getting source from Git repository".to_owned(),
            Self::Step(..) => format!("Executing \"{}\" stage of the job script", self.section()),
            Self::AfterScript => "Running after_script".to_owned(),
            Self::Cleanup => "Cleaning up project directory and file based variables".to_owned(),
        }
    }

    /// Whether the stage runs, given what happened before it.
    pub fn is_due(&self, progress: &Progress) -> bool {
        match self {
            _ if progress.aborted => false,
            Self::PrepareExecutor | Self::PrepareScript | Self::GetSources | Self::Step(..) => {
                progress.failure.is_none()
            }
            // Not when the scripts never began: there is nothing to come after.
            Self::AfterScript => progress.scripts_began,
            Self::Cleanup => progress.stage.is_some(),
        }
    }
}

/// A name that can stand in a section marker.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::failure::JobError;
    use crate::job::payload::Step;

    fn payload(steps: &[&str]) -> Payload {
        let step = |name: &&str| Step { name: (*name).to_owned(), script: vec!["x".to_owned()] };
        Payload { steps: steps.iter().map(step).collect(), ..Payload::default() }
    }

    #[test]
    fn steps_keep_their_order_and_after_script_comes_behind() {
        let sections: Vec<String> =
            of(&payload(&["script", "after_script", "Release\n"])).iter().map(Stage::section).collect();
        let expected =
            ["prepare_executor", "prepare_script", "get_sources", "step_script", "step_release_", "after_script"];
        assert_eq!(&sections[..6], expected);
    }

    #[test]
    fn what_runs_after_a_failure() {
        let stages = of(&payload(&["script", "after_script"]));
        let due = |progress: &Progress| -> Vec<String> {
            stages.iter().filter(|stage| stage.is_due(progress)).map(Stage::section).collect()
        };
        let failed = Progress { stage: Some(2), failure: Some(JobError::system("x")), ..Progress::default() };
        assert_eq!(due(&failed), ["cleanup_file_variables"]);
        let script_failed = Progress { scripts_began: true, ..failed.clone() };
        assert_eq!(due(&script_failed), ["after_script", "cleanup_file_variables"]);
        let aborted = Progress { aborted: true, ..script_failed };
        assert!(due(&aborted).is_empty());
    }
}
