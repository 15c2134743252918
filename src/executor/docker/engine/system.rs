//! Requests about the engine itself.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::{Call, DockerEngine, DockerError, lenient};
use crate::http::service::ResponseTimeouts;
use crate::http::{Method, escape};

/// The engine's description of itself and its machine (`GET /info`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EngineInfo {
    pub server_version: String,
    /// Such as `name=seccomp,profile=default`, `name=userns`, `name=rootless`.
    #[serde(deserialize_with = "lenient")]
    pub security_options: Vec<String>,
    /// The host name of its machine.
    pub name: String,
    /// The data directory of the engine.
    pub docker_root_dir: String,
    /// `1` or `2`
    pub cgroup_version: String,
    /// Unsupported features on this machine.
    #[serde(deserialize_with = "lenient")]
    pub warnings: Vec<String>,
}

impl DockerEngine {
    /// Fails if the engine does not respond within `timeout`.
    pub fn ping(&self, timeout: Duration) -> Result<(), DockerError> {
        let timeouts = ResponseTimeouts { response: timeout, idle: timeout };
        self.call_without_result(&Call::new(Method::Get, "/_ping").timeouts(timeouts))
    }

    /// Whether the engine sent a signal to a container after `since`, because a client requested that or because the
    /// engine stopped. The engine keeps these events only for a limited time, and discards them when it restarts.
    pub fn was_signalled(&self, container: &str, since: SystemTime) -> Result<bool, DockerError> {
        let filter = serde_json::json!({"container": [container], "event": ["kill"], "type": ["container"]});
        let filter = escape(&filter.to_string(), b"");
        let path = format!("/events?since={}&until={}&filters={filter}", seconds(since), seconds(SystemTime::now()));
        Ok(!self.call(&Call::new(Method::Get, path))?.beginning().is_empty())
    }

    pub fn info(&self) -> Result<EngineInfo, DockerError> {
        self.call_json(&Call::new(Method::Get, "/info"))
    }
}

/// A time in the engine's format: seconds with a fraction.
fn seconds(time: SystemTime) -> String {
    let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}
