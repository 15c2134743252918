//! Blame as a type: an error that ends a job says, where it arises, whose fault it was.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a job failed, in the words of the GitLab Runner API (`failure_reason` of `PUT jobs/:id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The job's own script, or a command run for the job (git, transfers), ended with an error.
    ScriptFailure,
    /// The fault of the agent or of the machine it runs on.
    RunnerSystemFailure,
    /// The job, or a stage with its own time-out, took too long.
    JobExecutionTimeout,
    /// The image of the job or of a service could not be pulled.
    ImagePullFailure,
    /// The job asks for something, or the configuration says something, that cannot be honoured.
    RunnerConfigurationError,
    /// Something outside (registry, secret store, network) did not work.
    RunnerExternalDependencyFailure,
    /// The agent was told to stop, or its instance is being taken away.
    RunnerInterrupted,
    /// The job was cancelled by a person.
    JobCanceled,
    /// GitLab knows no better word.
    UnknownFailure,
}

impl FailureReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScriptFailure => "script_failure",
            Self::RunnerSystemFailure => "runner_system_failure",
            Self::JobExecutionTimeout => "job_execution_timeout",
            Self::ImagePullFailure => "image_pull_failure",
            Self::RunnerConfigurationError => "runner_configuration_error",
            Self::RunnerExternalDependencyFailure => "runner_external_dependency_failure",
            Self::RunnerInterrupted => "runner_interrupted",
            Self::JobCanceled => "job_canceled",
            Self::UnknownFailure => "unknown_failure",
        }
    }

    /// The reason to send to a server that accepts only `supported` besides the three that every server knows.
    pub fn supported_by(self, supported: &[String]) -> Self {
        let known = |reason: Self| {
            matches!(reason, Self::ScriptFailure | Self::RunnerSystemFailure | Self::JobExecutionTimeout)
                || supported.iter().any(|name| name == reason.as_str())
        };
        if known(self) {
            return self;
        }
        match self {
            Self::ImagePullFailure | Self::RunnerExternalDependencyFailure => Self::RunnerSystemFailure,
            Self::RunnerConfigurationError => Self::ScriptFailure,
            _ => Self::UnknownFailure,
        }
    }
}

/// An error that ends a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// Whose fault it was.
    pub reason: FailureReason,
    /// What the script or command exited with; `None` where nothing exited. Killed by a signal is -1.
    pub exit_code: Option<i32>,
    /// What happened, to what, and what to do next; goes into the job's log.
    pub message: String,
}

impl JobError {
    /// An error without an exit code.
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, exit_code: None, message: message.into() }
    }

    /// The agent's or the machine's fault.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(FailureReason::RunnerSystemFailure, message)
    }

    /// The job asks for what cannot be honoured, or the configuration does.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(FailureReason::RunnerConfigurationError, message)
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for JobError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_a_reason_the_server_does_not_list() {
        let none: &[String] = &[];
        assert_eq!(FailureReason::ImagePullFailure.supported_by(none), FailureReason::RunnerSystemFailure);
        assert_eq!(FailureReason::RunnerConfigurationError.supported_by(none), FailureReason::ScriptFailure);
        assert_eq!(FailureReason::RunnerInterrupted.supported_by(none), FailureReason::UnknownFailure);
        assert_eq!(FailureReason::ScriptFailure.supported_by(none), FailureReason::ScriptFailure);
        let listed = ["runner_interrupted".to_owned()];
        assert_eq!(FailureReason::RunnerInterrupted.supported_by(&listed), FailureReason::RunnerInterrupted);
    }
}
