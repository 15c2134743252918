//! Failure reasons: an error that ends a job carries its reason from where it arises.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a job failed, as in the GitLab Runner API (`failure_reason` of `PUT jobs/:id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The job's script, or a command that runs for the job (git, transfers), failed.
    ScriptFailure,
    /// The agent or its machine failed.
    RunnerSystemFailure,
    /// The job, or a stage with its own timeout, took too long.
    JobExecutionTimeout,
    /// The image of the job or of a service cannot be pulled.
    ImagePullFailure,
    /// The job or the configuration requests something that is impossible.
    RunnerConfigurationError,
    /// An external system (registry, secret store, network) failed.
    RunnerExternalDependencyFailure,
    /// The agent stops before the job has ended, or the cloud interrupts its instance.
    RunnerInterrupted,
    /// A user cancelled the job.
    JobCanceled,
    /// No other reason fits.
    UnknownFailure,
}

impl FailureReason {
    /// The name in the Runner API.
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

    /// The reason to send to a server that accepts only `supported` and the three reasons that every server accepts.
    pub fn supported_by(self, supported: &[String]) -> Self {
        let is_supported = |reason: Self| {
            matches!(reason, Self::ScriptFailure | Self::RunnerSystemFailure | Self::JobExecutionTimeout)
                || supported.iter().any(|name| name == reason.as_str())
        };
        if is_supported(self) {
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
    pub reason: FailureReason,
    /// The exit code of the script or command: `None` if no script or command ran, -1 if a signal killed it.
    pub exit_code: Option<i32>,
    /// What happened, to which object, and what to do; written to the job's log.
    pub message: String,
}

impl JobError {
    /// An error without an exit code.
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, exit_code: None, message: message.into() }
    }

    /// A failure of the agent or its machine.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(FailureReason::RunnerSystemFailure, message)
    }

    /// An impossible request by the job or the configuration.
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
    fn maps_a_reason_that_the_server_does_not_support() {
        let none: &[String] = &[];
        assert_eq!(FailureReason::ImagePullFailure.supported_by(none), FailureReason::RunnerSystemFailure);
        assert_eq!(FailureReason::RunnerConfigurationError.supported_by(none), FailureReason::ScriptFailure);
        assert_eq!(FailureReason::RunnerInterrupted.supported_by(none), FailureReason::UnknownFailure);
        assert_eq!(FailureReason::ScriptFailure.supported_by(none), FailureReason::ScriptFailure);
        let listed = ["runner_interrupted".to_owned()];
        assert_eq!(FailureReason::RunnerInterrupted.supported_by(&listed), FailureReason::RunnerInterrupted);
    }
}
