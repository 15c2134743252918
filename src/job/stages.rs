//! The stages of a job: names, order, and conditions after a failure.

use super::artifacts::ScriptOutcome;
use crate::journal::{Progress, RemainingStages};
use crate::payload::Payload;

/// A stage; each is a section of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Prepare the executor.
    PrepareExecutor,
    /// Print where the job runs, and empty the file of `GITLAB_ENV`.
    PrepareScript,
    /// Fetch the sources.
    GetSources,
    /// Restore caches.
    RestoreCache,
    /// Download artifacts of other jobs.
    DownloadArtifacts,
    /// A step of the payload, by its index.
    Step(usize, String),
    /// The job's after_script.
    AfterScript,
    /// Save caches.
    SaveCache,
    /// Upload artifacts.
    UploadArtifacts,
    /// Remove secrets.
    Cleanup,
}

/// The index of the sources stage.
const SOURCES: usize = 2;

/// The stages of a job in order.
pub fn of(payload: &Payload) -> Vec<Stage> {
    let mut stages = vec![Stage::PrepareExecutor, Stage::PrepareScript, Stage::GetSources];
    stages.extend([Stage::RestoreCache, Stage::DownloadArtifacts]);
    for (index, step) in payload.steps.iter().enumerate().filter(|(_, step)| step.name != "after_script") {
        stages.push(Stage::Step(index, step.name.to_ascii_lowercase()));
    }
    if payload.step("after_script").is_some_and(|step| !step.script.is_empty()) {
        stages.push(Stage::AfterScript);
    }
    stages.extend([Stage::SaveCache, Stage::UploadArtifacts, Stage::Cleanup]);
    stages
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
            Self::Step(_, name) => format!("step_{}", plain(name)),
            Self::AfterScript => "after_script".to_owned(),
            Self::Cleanup => "cleanup_file_variables".to_owned(),
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
            Self::Step(_, name) if name == "script" => "step_script",
            Self::Step(_, name) if name == "release" => "step_release",
            Self::Step(..) => "step_other",
            Self::AfterScript => "after_script",
            Self::Cleanup => "cleanup_file_variables",
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
            Self::Cleanup => "Cleaning up project directory and file based variables".to_owned(),
        }
    }

    /// Whether a user's cancel stops the stage. Stages after the scripts run to their end.
    pub fn stops_on_cancel(&self) -> bool {
        !matches!(self, Self::AfterScript | Self::SaveCache | Self::UploadArtifacts | Self::Cleanup)
    }

    /// Whether the stage runs, given the progress and the payload.
    pub fn is_due(&self, progress: &Progress, payload: &Payload) -> bool {
        let well = progress.failure.is_none();
        let outcome = if well { ScriptOutcome::Success } else { ScriptOutcome::Failure };
        // If the sources stage did not start, there are no files.
        let has_sources = progress.stage.as_ref().is_some_and(|stage| stage.index >= SOURCES);
        match self {
            _ if progress.is_aborted() => false,
            // The cloud is about to interrupt the instance. The remaining time is used for results that cannot be
            // recreated.
            Self::SaveCache | Self::AfterScript if progress.remaining == RemainingStages::Results => false,
            Self::PrepareExecutor | Self::PrepareScript | Self::GetSources | Self::Step(..) => well,
            Self::RestoreCache => well && has_caches(payload),
            Self::DownloadArtifacts => well && has_dependencies(payload),
            Self::SaveCache => has_sources && has_caches_to_save(payload, outcome),
            Self::UploadArtifacts => has_sources && has_artifacts(payload, outcome),
            // after_script runs only if the scripts have started.
            Self::AfterScript => progress.scripts.is_some(),
            Self::Cleanup => progress.stage.is_some(),
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

    #[test]
    fn steps_keep_their_order_and_after_script_follows() {
        let stages = of(&payload(&["script", "after_script", "Release\n"]));
        let sections: Vec<String> = stages.iter().map(|stage| stage.section(ScriptOutcome::Failure)).collect();
        let expected = [
            "prepare_executor",
            "prepare_script",
            "get_sources",
            "restore_cache",
            "download_artifacts",
            "step_script",
            "step_release_",
            "after_script",
            "archive_cache_on_failure",
            "upload_artifacts_on_failure",
            "cleanup_file_variables",
        ];
        assert_eq!(sections, expected);
        assert_eq!(stages[SOURCES], Stage::GetSources);
    }

    #[test]
    fn selects_the_stages_after_a_failure() {
        let mut payload = payload(&["script", "after_script"]);
        let cache = |when: &str| Cache { when: when.to_owned(), paths: vec!["x".to_owned()], ..Cache::default() };
        payload.cache = vec![cache("on_success"), cache("always")];
        let artifact = Artifact { when: "on_failure".to_owned(), paths: vec!["x".to_owned()], ..Artifact::default() };
        payload.artifacts = vec![artifact];
        let due = |progress: &Progress| -> Vec<String> {
            let due = of(&payload).into_iter().filter(|stage| stage.is_due(progress, &payload));
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
        let left = of(&payload).into_iter().skip(6).filter(|stage| stage.is_due(&evicted_behind_the_scripts, &payload));
        assert_eq!(left.collect::<Vec<_>>(), [Stage::Cleanup], "no artifacts for a success here");
        let not_prepared = Progress { stage: at(0), ..failed };
        assert_eq!(due(&not_prepared), ["cleanup_file_variables"]);
    }
}
