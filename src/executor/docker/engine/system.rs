//! The engine itself.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::{Call, Engine, Error, lenient};
use crate::http::service::ResponseTimeouts;
use crate::http::{Method, escape};

/// What the engine says of itself and its machine (`GET /info`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    /// Its version.
    pub server_version: String,
    /// Such as `name=seccomp,profile=default`, `name=userns`, `name=rootless`.
    #[serde(deserialize_with = "lenient")]
    pub security_options: Vec<String>,
    /// The name of its machine.
    pub name: String,
    /// Where it keeps everything.
    pub docker_root_dir: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// What it cannot do here.
    #[serde(deserialize_with = "lenient")]
    pub warnings: Vec<String>,
}

impl Engine {
    /// Whether it is alive. Errors: it is not, or does not answer within `timeout`.
    pub fn ping(&self, timeout: Duration) -> Result<(), Error> {
        let timeouts = ResponseTimeouts { response: timeout, idle: timeout };
        self.call_without_result(&Call::new(Method::Get, "/_ping").timeouts(timeouts))
    }

    /// Whether a signal was sent to a container through the engine, or by it when it stopped, since `since`. It
    /// remembers for a while, and not over a restart.
    pub fn was_signalled(&self, container: &str, since: SystemTime) -> Result<bool, Error> {
        let filter = BTreeMap::from([("container", [container]), ("event", ["kill"]), ("type", ["container"])]);
        let filter = escape(&serde_json::to_string(&filter).unwrap_or_default(), b"");
        let path = format!("/events?since={}&until={}&filters={filter}", seconds(since), seconds(SystemTime::now()));
        Ok(!self.call(&Call::new(Method::Get, path))?.beginning().is_empty())
    }

    /// What it says of itself and its machine.
    pub fn info(&self) -> Result<Info, Error> {
        self.call_json(&Call::new(Method::Get, "/info"))
    }
}

/// Seconds and their fraction, as the engine takes times.
fn seconds(time: SystemTime) -> String {
    let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}
