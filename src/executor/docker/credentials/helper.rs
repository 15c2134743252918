//! Credential helpers: programs `docker-credential-NAME` on the agent's machine.
//!
//! A job may name only helpers that the configuration allows, and those run without the agent's privileges and
//! environment. A helper is searched for only in the agent's PATH, and has a time limit.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::RegistrySecret;
use crate::config::is_helper_name;
use crate::decode;
use crate::shim::PASSED_VARIABLES;
use crate::sys;
use crate::timed_child;
use crate::token::Token;

/// The largest response, in bytes.
const MAX_RESPONSE: usize = 1 << 20;
/// The longest part of an error message that is shown, in characters.
const MAX_ERROR_TEXT: usize = 200;

/// The origin of a helper's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamedBy {
    /// The administrator of the machine.
    Administrator,
    /// The author of a job.
    Job,
}

/// The settings for running helpers.
pub(super) struct CredentialHelpers<'a> {
    /// Their environment; helpers are searched for in its `PATH`.
    pub environment: &'a [(String, String)],
    /// The helpers that a job may name.
    pub allowed: &'a [String],
    /// User and group of helpers that a job named.
    pub unprivileged: Option<(u32, u32)>,
    /// The time limit.
    pub timeout: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct HelperResponse {
    username: String,
    secret: String,
}

impl CredentialHelpers<'_> {
    /// Gets the login for a server from a helper; `None` if the helper has none. Fails if the helper does not exist, or
    /// returns an invalid response, or exceeds the time limit.
    pub fn get(&self, name: &str, named_by: NamedBy, server: &str) -> Result<Option<RegistrySecret>, String> {
        if !is_helper_name(name) {
            return Err(format!("`{name}` is not the name of a credential helper"));
        }
        if named_by == NamedBy::Job && !self.allowed.iter().any(|allowed| allowed == name) {
            return Err(format!(
                "this runner does not allow jobs to use the credential helper `{name}` (allowed_credential_helpers)"
            ));
        }
        let program = format!("docker-credential-{name}");
        let (mut child, until) = (self.start(&program, named_by)?, Instant::now() + self.timeout);
        let outcome = converse(&mut child, server, until);
        // A helper may close its output before it exits; its exit status tells whether the response is valid. A helper
        // without a valid response is killed at once.
        let left = if outcome.is_ok() { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
        let status = timed_child::wait_for_group(&mut child, left);
        let text = outcome.map_err(|error| format!("{program}: {error}"))?;
        let status = status
            .map_err(|_| format!("{program} exceeded the time limit of {} s and was killed", self.timeout.as_secs()))?;
        if !status.success() {
            return error_result(&program, text.trim());
        }
        let response: HelperResponse =
            decode::json(text.as_bytes()).map_err(|_| format!("{program} returned an invalid response"))?;
        Ok(match (response.username.as_str(), response.secret.is_empty()) {
            (_, true) => None,
            ("<token>", false) => Some(RegistrySecret::Identity(Token::new(response.secret))),
            _ => Some(RegistrySecret::Password { username: response.username, password: Token::new(response.secret) }),
        })
    }

    fn start(&self, program: &str, named_by: NamedBy) -> Result<Child, String> {
        let mut command = Command::new(program);
        let is_passed = |key: &str| named_by == NamedBy::Administrator || PASSED_VARIABLES.contains(&key);
        command.env_clear().envs(self.environment.iter().filter(|(key, _)| is_passed(key)).cloned());
        if named_by == NamedBy::Job {
            command.env("HOME", "/").current_dir("/");
            if let Some((user, group)) = self.unprivileged {
                // The standard library also drops the supplementary groups.
                command.uid(user).gid(group);
            }
        }
        let streams = command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        streams.process_group(0).spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("{program} is not installed on this machine"),
            _ => format!("{program}: {error}"),
        })
    }
}

/// Sends the server and reads the response, until the helper closes its output or ends, or the time limit is exceeded. A
/// process that the helper has started may keep the output open after the helper's end.
fn converse(child: &mut Child, server: &str, until: Instant) -> std::io::Result<String> {
    if let Some(mut input) = child.stdin.take() {
        // If a helper exits without reading its input, its response explains why.
        let _ = input.write_all(format!("{server}\n").as_bytes());
    }
    let pidfd = sys::pidfd_open(child.id().cast_signed())?;
    let Some(output) = child.stdout.take() else { return Ok(String::new()) };
    let mut output = File::from(OwnedFd::from(output));
    let (mut response, mut block) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // The output is checked after the end of the helper, so that a response just before the end is not missed.
        let [_, is_readable] = sys::wait([Some(pidfd.as_fd()), Some(output.as_fd())], Some(left))?;
        let length = if is_readable && !left.is_zero() { output.read(&mut block)? } else { 0 };
        if length == 0 {
            return Ok(String::from_utf8_lossy(&response).into_owned());
        }
        response.extend_from_slice(&block[..length]);
        if response.len() > MAX_RESPONSE {
            return Err(std::io::Error::other("the response is too long"));
        }
    }
}

/// The error of the helper; `None` if the helper has no credentials for the server.
fn error_result(program: &str, text: &str) -> Result<Option<RegistrySecret>, String> {
    if text.to_ascii_lowercase().contains("credentials not found") {
        return Ok(None);
    }
    // A JSON object is a response, which may contain a secret.
    let reason = text.lines().next().filter(|line| !line.starts_with('{')).unwrap_or_default();
    let line: String = reason.chars().take(MAX_ERROR_TEXT).collect();
    Err(format!("{program} failed: {}", if line.is_empty() { "no reason given" } else { &line }))
}
