//! Containers: made, started, stopped, looked at, removed.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use serde::Deserialize;

use super::attached::Attached;
use super::spec::CreateContainer;
use super::{Call, Engine, Error, QUICK_CALL_TIMEOUTS, SLOW_CALL_TIMEOUTS, lenient, with_labels};
use crate::http::service::ResponseTimeouts;
use crate::http::{Method, escape};

/// A container as it is (`GET /containers/ID/json`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    /// Its full id.
    pub id: String,
    /// Its name, with a slash in front.
    pub name: String,
    /// The id of its image.
    pub image: String,
    /// What it does.
    pub state: ContainerState,
    /// How it was made.
    pub config: ContainerConfig,
    /// What of it is part of the machine's file system.
    #[serde(deserialize_with = "lenient")]
    pub mounts: Vec<Mount>,
    /// Its addresses.
    pub network_settings: NetworkSettings,
}

/// What a container does (`State`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// `created`, `running`, `exited`, …
    pub status: String,
    /// A process runs.
    pub running: bool,
    /// The kernel killed a process of it for lack of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// The status of its first process.
    pub exit_code: i64,
    /// Why it could not be started.
    pub error: String,
    /// When it was started last, as the engine writes times.
    pub started_at: String,
    /// When it ended last.
    pub finished_at: String,
    /// The image's own check of it.
    pub health: Option<Health>,
}

impl ContainerState {
    /// Somebody removes it.
    pub fn is_being_removed(&self) -> bool {
        matches!(self.status.as_str(), "removing" | "dead")
    }
}

/// The verdict of an image's own check.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `starting`, `healthy`, `unhealthy`.
    pub status: String,
}

/// How a container was made (`Config`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Whom it runs as.
    pub user: String,
    /// Its environment.
    #[serde(deserialize_with = "lenient")]
    pub env: Vec<String>,
    /// Ports its image exposes, such as `80/tcp`.
    #[serde(deserialize_with = "lenient")]
    pub exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    /// Its labels.
    #[serde(deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The name of a volume.
    pub name: String,
    /// Where it is on the machine.
    pub source: String,
    /// Where it is in the container.
    pub destination: String,
}

/// The addresses of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// By network.
    #[serde(deserialize_with = "lenient")]
    pub networks: BTreeMap<String, Attachment>,
}

/// A container's place in a network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Attachment {
    /// Its address; empty while it does not run.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// Its address of version 6.
    #[serde(rename = "GlobalIPv6Address")]
    pub ipv6_address: String,
}

/// A container in a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummary {
    /// Its full id.
    pub id: String,
    /// Its names, each with a slash in front.
    #[serde(deserialize_with = "lenient")]
    pub names: Vec<String>,
    /// Its labels.
    #[serde(deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
    /// `created`, `running`, `exited`, …
    pub state: String,
}

/// Where in the output of a container to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// At its beginning.
    Beginning,
    /// At its end: what is printed from now on.
    Now,
}

/// How the first process of a container ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Exit {
    /// Its status; 128 and the number of the signal that ended it.
    pub status_code: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Created {
    id: String,
    #[serde(deserialize_with = "lenient")]
    warnings: Vec<String>,
}

impl Engine {
    /// Makes a container; returns its id, and what the engine warns of. `platform` is `os/architecture[/variant]`.
    /// Errors: 404 for a missing image, 409 for a name that is taken, 400 for what cannot be.
    pub fn create_container(
        &self,
        name: &str,
        platform: Option<&str>,
        container: &CreateContainer,
    ) -> Result<(String, Vec<String>), Error> {
        let platform = platform.map(|platform| format!("&platform={}", escape(platform, b""))).unwrap_or_default();
        let path = format!("/containers/create?name={}{platform}", escape(name, b""));
        let created: Created =
            self.call_json(&Call::new(Method::Post, path).json(container).timeouts(SLOW_CALL_TIMEOUTS))?;
        if created.id.is_empty() {
            return Err(Error::unreadable_answer(
                self.service.address(),
                "/containers/create",
                "the container has no id",
            ));
        }
        Ok((created.id, created.warnings))
    }

    /// Starts a container; one that runs already is fine.
    pub fn start_container(&self, id: &str) -> Result<(), Error> {
        self.call_without_result(
            &Call::new(Method::Post, format!("/containers/{id}/start")).timeouts(SLOW_CALL_TIMEOUTS),
        )
    }

    /// Takes the standard streams of a container: to be done before it is started, so that nothing is missed.
    pub fn attach(&self, id: &str) -> Result<Attached, Error> {
        let path = self.path(&format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1"));
        let address = self.service.address();
        match self.service.take_over(&path, SLOW_CALL_TIMEOUTS.response) {
            Ok(Ok(conversation)) => Ok(Attached::new(conversation)),
            Ok(Err((status, body))) => Err(Error::answer(address, "attach", status, &body)),
            Err(error) => Err(Error::from_connection(address, "attach", error)),
        }
    }

    /// Waits until a container does not run, within `timeout`; running on is [`Error::Silent`].
    pub fn wait_container_for(&self, id: &str, timeout: Duration) -> Result<Exit, Error> {
        let timeouts = ResponseTimeouts { response: timeout, idle: timeout };
        self.call_json(&Call::new(Method::Post, format!("/containers/{id}/wait")).timeouts(timeouts))
    }

    /// What a container is and does.
    pub fn container(&self, id: &str) -> Result<Container, Error> {
        self.call_json(&Call::new(Method::Get, format!("/containers/{}/json", escape(id, b""))))
    }

    /// Sends a signal (`TERM`, `KILL`) to the first process of a container. Errors: 409 when it does not run.
    pub fn kill_container(&self, id: &str, signal: &str) -> Result<(), Error> {
        self.call_without_result(&Call::new(Method::Post, format!("/containers/{id}/kill?signal={signal}")))
    }

    /// Removes a container by force, with its anonymous volumes unless they are to be kept; none is fine. One that
    /// somebody else is removing is waited for.
    pub fn remove_container(&self, id: &str, keep_volumes: bool) -> Result<(), Error> {
        let volumes = if keep_volumes { 0 } else { 1 };
        let path = format!("/containers/{}?force=1&v={volumes}", escape(id, b""));
        match self.call_without_result(&Call::new(Method::Delete, path).timeouts(SLOW_CALL_TIMEOUTS)) {
            Err(error) if error.is_missing() => Ok(()),
            Err(Error::Answer { status: 409, message }) if message.contains("already in progress") => {
                self.wait_until_removed(id)
            }
            outcome => outcome,
        }
    }

    fn wait_until_removed(&self, id: &str) -> Result<(), Error> {
        let path = format!("/containers/{}/wait?condition=removed", escape(id, b""));
        match self.call_without_result(&Call::new(Method::Post, path).timeouts(QUICK_CALL_TIMEOUTS)) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }

    /// Containers with all of these labels, also those that do not run.
    pub fn containers(&self, labels: &[(&str, &str)]) -> Result<Vec<ContainerSummary>, Error> {
        self.call_json(&Call::new(Method::Get, format!("/containers/json?all=1&filters={}", with_labels(labels))))
    }

    /// What a container printed, frame by frame (see [`Attached`]), at most `most` bytes; `timestamps` puts the engine's
    /// own in front of each line.
    pub fn logs(&self, id: &str, timestamps: bool, most: u64) -> Result<Vec<u8>, Error> {
        let path = format!("/containers/{id}/logs?stdout=1&stderr=1&timestamps={}", u8::from(timestamps));
        let mut text = Vec::new();
        self.call(&Call::new(Method::Get, path))?
            .into_reader()
            .take(most)
            .read_to_end(&mut text)
            .map_err(|error| Error::unreadable_answer(self.service.address(), "logs", &error.to_string()))?;
        Ok(text)
    }

    /// The same as it comes, until the container ends. Reads time out after `silence`.
    pub fn follow_logs(
        &self,
        id: &str,
        timestamps: bool,
        from: LogStart,
        silence: Duration,
    ) -> Result<impl Read + use<>, Error> {
        let tail = if from == LogStart::Now { "&tail=0" } else { "" };
        let timestamps = u8::from(timestamps);
        let path = format!("/containers/{id}/logs?stdout=1&stderr=1&follow=1&timestamps={timestamps}{tail}");
        let timeouts = ResponseTimeouts { idle: silence, ..QUICK_CALL_TIMEOUTS };
        self.call(&Call::new(Method::Get, path).timeouts(timeouts)).map(crate::http::Incoming::into_reader)
    }
}
