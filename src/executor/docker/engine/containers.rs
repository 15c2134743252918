//! Containers: create, start, stop, inspect, remove.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use serde::Deserialize;

use super::attached::Attached;
use super::spec::CreateContainer;
use super::{Call, DockerEngine, DockerError, QUICK_CALL_TIMEOUTS, SLOW_CALL_TIMEOUTS, lenient, with_labels};
use crate::http::service::ResponseTimeouts;
use crate::http::{Method, escape};

/// A container (`GET /containers/ID/json`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    pub id: String,
    /// The name, with a leading slash.
    pub name: String,
    /// The image id.
    pub image: String,
    pub state: ContainerState,
    /// The configuration at creation.
    pub config: ContainerConfig,
    #[serde(deserialize_with = "lenient")]
    pub mounts: Vec<Mount>,
    pub network_settings: NetworkSettings,
}

/// The state of a container (`State`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// `created`, `running`, `exited`, …
    pub status: String,
    /// Whether a process runs.
    pub running: bool,
    /// Whether the kernel killed one of its processes because memory ran out.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// The exit code of its first process.
    pub exit_code: i64,
    /// The error of the last start.
    pub error: String,
    /// The time of the last start, in the engine's format.
    pub started_at: String,
    /// The time of the last end, in the engine's format.
    pub finished_at: String,
    /// The result of the image's health check.
    pub health: Option<Health>,
}

impl ContainerState {
    /// Whether the engine is removing the container.
    pub fn is_being_removed(&self) -> bool {
        matches!(self.status.as_str(), "removing" | "dead")
    }
}

/// The result of an image's health check.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `starting`, `healthy`, `unhealthy`.
    pub status: String,
}

/// The configuration of a container (`Config`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    pub user: String,
    #[serde(deserialize_with = "lenient")]
    pub env: Vec<String>,
    /// Exposed ports, such as `80/tcp`.
    #[serde(deserialize_with = "lenient")]
    pub exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
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
    /// The path on the machine.
    pub source: String,
    /// The path in the container.
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

/// A container's endpoint in a network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Attachment {
    /// The IPv4 address; empty while the container does not run.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// The IPv6 address.
    #[serde(rename = "GlobalIPv6Address")]
    pub ipv6_address: String,
}

/// A container in a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummary {
    pub id: String,
    /// The names, each with a leading slash.
    #[serde(deserialize_with = "lenient")]
    pub names: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
    /// `created`, `running`, `exited`, …
    pub state: String,
}

/// What happens to the anonymous volumes of a container that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnonymousVolumes {
    Remove,
    Keep,
}

/// Where to start in the output of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// At the beginning.
    Beginning,
    /// At the end: only new output.
    Now,
}

/// How the first process of a container ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Exit {
    /// The exit code; 128 plus the signal number if a signal killed it.
    pub status_code: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Created {
    id: String,
    #[serde(deserialize_with = "lenient")]
    warnings: Vec<String>,
}

impl DockerEngine {
    /// Creates a container; returns its id and the engine's warnings. `platform` is `os/architecture[/variant]`. Fails
    /// with 404 for a missing image, 409 for a name in use, 400 for an invalid request.
    pub fn create_container(
        &self,
        name: &str,
        platform: Option<&str>,
        container: &CreateContainer,
    ) -> Result<(String, Vec<String>), DockerError> {
        let platform = platform.map(|platform| format!("&platform={}", escape(platform, b""))).unwrap_or_default();
        let path = format!("/containers/create?name={}{platform}", escape(name, b""));
        let created: Created =
            self.call_json(&Call::new(Method::Post, path).json(container).timeouts(SLOW_CALL_TIMEOUTS))?;
        if created.id.is_empty() {
            return Err(DockerError::invalid_response(
                self.service.address(),
                "/containers/create",
                "the response has no container id",
            ));
        }
        Ok((created.id, created.warnings))
    }

    /// Starts a container. Succeeds if the container already runs.
    pub fn start_container(&self, id: &str) -> Result<(), DockerError> {
        self.call_without_result(
            &Call::new(Method::Post, format!("/containers/{id}/start")).timeouts(SLOW_CALL_TIMEOUTS),
        )
    }

    /// Attaches to the standard streams of a container. Call this before the container starts, so that no output is
    /// missed.
    pub fn attach(&self, id: &str) -> Result<Attached, DockerError> {
        let path = self.versioned_path(&format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1"));
        let address = self.service.address();
        match self.service.upgrade(&path, SLOW_CALL_TIMEOUTS.response) {
            Ok(Ok(connection)) => Ok(Attached::new(connection)),
            Ok(Err((status, body))) => Err(DockerError::error_response(address, "attach", status, &body)),
            Err(error) => Err(DockerError::from_connection(address, "attach", error)),
        }
    }

    /// Waits until a container has ended. Fails with [`DockerError::TimedOut`] if the container still runs after
    /// `timeout`.
    pub fn wait_container_for(&self, id: &str, timeout: Duration) -> Result<Exit, DockerError> {
        let timeouts = ResponseTimeouts { response: timeout, idle: timeout };
        self.call_json(&Call::new(Method::Post, format!("/containers/{id}/wait")).timeouts(timeouts))
    }

    /// Inspects a container.
    pub fn container(&self, id: &str) -> Result<Container, DockerError> {
        self.call_json(&Call::new(Method::Get, format!("/containers/{}/json", escape(id, b""))))
    }

    /// Sends a signal (`TERM`, `KILL`) to the first process of a container. Fails with 409 if it does not run.
    pub fn kill_container(&self, id: &str, signal: &str) -> Result<(), DockerError> {
        self.call_without_result(&Call::new(Method::Post, format!("/containers/{id}/kill?signal={signal}")))
    }

    /// Removes a container by force. The container need not exist. If another client is removing the container, waits
    /// for the end of that removal.
    pub fn remove_container(&self, id: &str, volumes: AnonymousVolumes) -> Result<(), DockerError> {
        let volumes = u8::from(volumes == AnonymousVolumes::Remove);
        let path = format!("/containers/{}?force=1&v={volumes}", escape(id, b""));
        match self.call_without_result(&Call::new(Method::Delete, path).timeouts(SLOW_CALL_TIMEOUTS)) {
            Err(error) if error.is_missing() => Ok(()),
            Err(DockerError::ErrorResponse { status: 409, message }) if message.contains("already in progress") => {
                self.wait_until_removed(id)
            }
            outcome => outcome,
        }
    }

    fn wait_until_removed(&self, id: &str) -> Result<(), DockerError> {
        let path = format!("/containers/{}/wait?condition=removed", escape(id, b""));
        match self.call_without_result(&Call::new(Method::Post, path).timeouts(QUICK_CALL_TIMEOUTS)) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }

    /// Lists containers with all these labels, including those that do not run.
    pub fn containers(&self, labels: &[(&str, &str)]) -> Result<Vec<ContainerSummary>, DockerError> {
        self.call_json(&Call::new(Method::Get, format!("/containers/json?all=1&filters={}", with_labels(labels))))
    }

    /// The first `max_bytes` of the output of a container, in frames (see [`Attached`]). Each line begins with the
    /// engine's time stamp.
    pub fn logs(&self, id: &str, max_bytes: u64) -> Result<Vec<u8>, DockerError> {
        let path = format!("/containers/{id}/logs?stdout=1&stderr=1&timestamps=1");
        let mut text = Vec::new();
        self.call(&Call::new(Method::Get, path))?
            .into_reader()
            .take(max_bytes)
            .read_to_end(&mut text)
            .map_err(|error| DockerError::invalid_response(self.service.address(), "logs", &error.to_string()))?;
        Ok(text)
    }

    /// Follows the output of a container until its end, as [`DockerEngine::logs`] returns it. A read fails after
    /// `idle_timeout` without output.
    pub fn follow_logs(
        &self,
        id: &str,
        from: LogStart,
        idle_timeout: Duration,
    ) -> Result<impl Read + use<>, DockerError> {
        let tail = if from == LogStart::Now { "&tail=0" } else { "" };
        let path = format!("/containers/{id}/logs?stdout=1&stderr=1&follow=1&timestamps=1{tail}");
        let timeouts = ResponseTimeouts { idle: idle_timeout, ..QUICK_CALL_TIMEOUTS };
        self.call(&Call::new(Method::Get, path).timeouts(timeouts)).map(crate::http::Incoming::into_reader)
    }
}
