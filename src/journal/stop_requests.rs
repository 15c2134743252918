//! What a job was told from outside, which a later agent must know.

use serde::{Deserialize, Serialize};

/// Everything a job was told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopRequests {
    /// A person cancelled it: stop the script, run after_script.
    pub cancel: bool,
    /// It is over on the server: stop everything.
    pub finished: bool,
    /// The machine is taken: stop the scripts and hand over what they made, but no more than that; why.
    pub evict: Option<String>,
    /// The agent goes: stop everything; why.
    pub interrupt: Option<String>,
    /// Not even the outcome can be waited for: a later agent delivers it, to which this does not apply.
    #[serde(skip)]
    pub abandoned: bool,
}

impl StopRequests {
    /// Stop everything at once.
    pub fn stops_job(&self) -> bool {
        self.finished || self.interrupt.is_some()
    }

    /// The scripts are not to go on.
    pub fn stops_script(&self) -> bool {
        self.stops_job() || self.cancel || self.evict.is_some()
    }
}
