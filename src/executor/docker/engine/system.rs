//! The engine itself.

use std::time::Duration;

use serde::Deserialize;

use super::{Call, Engine, Error, lenient};
use crate::http::Method;
use crate::http::service::Waiting;

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

/// Names and numbers (`GET /version`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Version {
    /// Of the engine.
    pub version: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64`.
    pub arch: String,
}

impl Engine {
    /// Whether it is alive. Errors: it is not, or does not answer within `patience`.
    pub fn ping(&self, patience: Duration) -> Result<(), Error> {
        let waiting = Waiting { answer: patience, silence: patience };
        self.tell(&Call::new(Method::Get, "/_ping").waiting(waiting))
    }

    /// What it says of itself and its machine.
    pub fn info(&self) -> Result<Info, Error> {
        self.ask(&Call::new(Method::Get, "/info"))
    }

    /// Its version.
    pub fn version(&self) -> Result<Version, Error> {
        self.ask(&Call::new(Method::Get, "/version"))
    }
}
