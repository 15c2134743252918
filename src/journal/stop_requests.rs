//! Requests to stop a job, which a later agent must know.

use serde::{Deserialize, Serialize};

/// All requests to stop the job so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopRequests {
    /// A user canceled the job: stop the script, run after_script.
    pub cancel: bool,
    /// The job has ended at GitLab: stop everything.
    pub finished: bool,
    /// The cloud takes the machine: stop the scripts, upload artifacts, and nothing else; the reason.
    pub evict: Option<String>,
    /// The agent stops: stop everything; the reason.
    pub interrupt: Option<String>,
    /// The agent does not wait for the delivery. It does not apply to a later agent, which delivers the result.
    #[serde(skip)]
    pub abandoned: bool,
}

impl StopRequests {
    /// Whether everything must stop at once.
    pub fn stops_job(&self) -> bool {
        self.finished || self.interrupt.is_some()
    }

    /// Whether the scripts must stop.
    pub fn stops_script(&self) -> bool {
        self.stops_job() || self.cancel || self.evict.is_some()
    }
}
