//! Images: inspect and pull.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde::Deserialize;

use super::{Call, DockerEngine, DockerError, Revision, SLOW_CALL_TIMEOUTS, lenient};
use crate::decode;
use crate::http::service::ResponseTimeouts;
use crate::http::{Incoming, Method, escape};

/// The longest time between two progress messages; registries can be slow.
const PULL_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest progress line, in bytes.
const MAX_LINE: usize = 1 << 20;
/// The first API version that can inspect an image for one platform.
const INSPECT_PLATFORM: Revision = Revision(1, 49);

/// An image (`GET /images/NAME/json`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EngineImage {
    /// The id of the image (`sha256:…`).
    pub id: String,
    /// Names with digests, by registry.
    #[serde(deserialize_with = "lenient")]
    pub repo_digests: Vec<String>,
    /// Names with tags.
    #[serde(deserialize_with = "lenient")]
    pub repo_tags: Vec<String>,
    /// The CPU architecture, such as `amd64`.
    pub architecture: String,
    /// The defaults for its containers.
    #[serde(deserialize_with = "lenient")]
    pub config: ImageConfig,
}

/// The defaults for containers of an image.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// The user; empty for root.
    pub user: String,
    #[serde(deserialize_with = "lenient")]
    pub entrypoint: Vec<String>,
    /// The arguments, or the command.
    #[serde(deserialize_with = "lenient")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub env: Vec<String>,
    /// The working directory.
    pub working_dir: String,
    /// Anonymous volumes, by their path.
    #[serde(deserialize_with = "lenient")]
    pub volumes: BTreeMap<String, serde::de::IgnoredAny>,
    /// Exposed ports, such as `80/tcp`.
    #[serde(deserialize_with = "lenient")]
    pub exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
}

/// A running pull. Dropping it cancels the pull.
pub struct Pull {
    lines: BufReader<Box<dyn std::io::Read>>,
    address: crate::http::Address,
}

/// A progress message.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PullProgress {
    /// The operation.
    #[serde(deserialize_with = "lenient")]
    pub status: String,
    /// The layer.
    #[serde(deserialize_with = "lenient")]
    pub id: String,
    /// Why the pull failed.
    #[serde(deserialize_with = "lenient")]
    pub error: String,
}

impl DockerEngine {
    /// Inspects an image by name, digest or id, for one platform if the engine supports that. Fails with 404 if the
    /// machine does not have it.
    pub fn image(&self, name: &str, platform: Option<&str>) -> Result<EngineImage, DockerError> {
        let platform = platform.filter(|_| self.revision >= INSPECT_PLATFORM).and_then(as_json);
        let query = platform.map(|platform| format!("?platform={}", escape(&platform, b""))).unwrap_or_default();
        self.call_json(&Call::new(Method::Get, format!("/images/{}/json{query}", escape(name, b""))))
    }

    /// Removes an image by its id. Errors: 409 while a container uses it, or when it has names in several repositories.
    pub fn remove_image(&self, id: &str) -> Result<(), DockerError> {
        let call = Call::new(Method::Delete, format!("/images/{}", escape(id, b""))).timeouts(SLOW_CALL_TIMEOUTS);
        match self.call_without_result(&call) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }

    /// Starts a pull. `reference` has a tag or a digest, `auth` is the value of `X-Registry-Auth`. Later errors are in
    /// the progress messages.
    pub fn pull(&self, reference: &str, platform: Option<&str>, auth: Option<&str>) -> Result<Pull, DockerError> {
        let platform = platform.map(|platform| format!("&platform={}", escape(platform, b""))).unwrap_or_default();
        let path = format!("/images/create?fromImage={}{platform}", escape(reference, b""));
        let timeouts = ResponseTimeouts { response: PULL_IDLE_TIMEOUT, idle: PULL_IDLE_TIMEOUT };
        let call = Call::new(Method::Post, path).header("X-Registry-Auth", auth).timeouts(timeouts);
        let response: Incoming = self.call(&call)?;
        let lines: Box<dyn std::io::Read> = Box::new(response.into_reader());
        Ok(Pull { lines: BufReader::new(lines), address: self.service.address().clone() })
    }
}

impl Pull {
    /// The next progress message; `None` at the end. Fails if the pull failed or the connection broke.
    pub fn next_progress(&mut self) -> Result<Option<PullProgress>, DockerError> {
        let mut line = Vec::new();
        let mut limited = std::io::Read::take(&mut self.lines, MAX_LINE as u64);
        let read = limited.read_until(b'\n', &mut line).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => {
                DockerError::TimedOut { address: self.address.to_string(), what: "/images/create".to_owned() }
            }
            _ => DockerError::ConnectionLost {
                address: self.address.to_string(),
                what: "/images/create".to_owned(),
                why: error.to_string(),
            },
        })?;
        if read == 0 {
            return Ok(None);
        }
        let progress: PullProgress = decode::json(&line)
            .map_err(|error| DockerError::invalid_response(&self.address, "/images/create", &error.to_string()))?;
        if progress.error.is_empty() {
            Ok(Some(progress))
        } else {
            Err(DockerError::ErrorResponse { status: 500, message: progress.error })
        }
    }
}

/// A platform in the format of newer API versions.
fn as_json(platform: &str) -> Option<String> {
    let mut parts = platform.split('/');
    let (os, architecture, variant) = (parts.next()?, parts.next()?, parts.next());
    let names = [("os", Some(os)), ("architecture", Some(architecture)), ("variant", variant)];
    let present: BTreeMap<&str, &str> =
        crate::ordered::map(names.into_iter().filter_map(|(name, value)| Some((name, value?))));
    serde_json::to_string(&present).ok()
}
