//! The requests to stop a job that end a running step.

use crate::journal::stop_requests::StopRequests;

/// The requests that stop a step, in addition to those that end the whole job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPolicy {
    /// A user's cancel, and the interruption of the instance.
    CancelOrEviction,
    /// The interruption of the instance.
    EvictionOnly,
    /// No request stops the step.
    Never,
}

impl StopPolicy {
    /// Whether the requests stop a step with this policy.
    pub fn stops(self, stop_requests: &StopRequests) -> bool {
        match self {
            Self::CancelOrEviction => stop_requests.stops_script(),
            Self::EvictionOnly => stop_requests.eviction().is_some(),
            Self::Never => false,
        }
    }
}
