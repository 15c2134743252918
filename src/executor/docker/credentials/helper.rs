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

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::RegistrySecret;
use crate::config::is_helper_name;
use crate::decode;
use crate::shim::PASSED_VARIABLES;
use crate::sys;
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
        let mut child = self.start(&program, named_by)?;
        let outcome = converse(&mut child, server, Instant::now() + self.timeout);
        // Kills the helper's children as well. Their process group may already have ended.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        let status = child.wait().map_err(|error| format!("{program}: {error}"))?;
        let text = match outcome {
            Ok(Some(text)) => text,
            Ok(None) => {
                return Err(format!(
                    "{program} exceeded the time limit of {} s and was killed",
                    self.timeout.as_secs()
                ));
            }
            Err(error) => return Err(format!("{program}: {error}")),
        };
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

/// Sends the server and reads the response; `None` if the time limit is exceeded.
fn converse(child: &mut Child, server: &str, until: Instant) -> std::io::Result<Option<String>> {
    if let Some(mut input) = child.stdin.take() {
        // If a helper exits without reading its input, its response explains why.
        let _ = input.write_all(format!("{server}\n").as_bytes());
    }
    let Some(output) = child.stdout.take() else { return Ok(None) };
    let mut output = File::from(OwnedFd::from(output));
    let (mut response, mut block) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || sys::wait([Some(output.as_fd())], Some(left))? == [false] {
            return Ok(None);
        }
        match output.read(&mut block)? {
            0 => break,
            length => response.extend_from_slice(&block[..length]),
        }
        if response.len() > MAX_RESPONSE {
            return Err(std::io::Error::other("the response is too long"));
        }
    }
    Ok(Some(String::from_utf8_lossy(&response).into_owned()))
}

/// The error of the helper; `None` if the helper has no credentials for the server.
fn error_result(program: &str, text: &str) -> Result<Option<RegistrySecret>, String> {
    if text.to_ascii_lowercase().contains("credentials not found") {
        return Ok(None);
    }
    let line: String = text.lines().next().unwrap_or_default().chars().take(MAX_ERROR_TEXT).collect();
    Err(format!("{program} failed: {}", if line.is_empty() { "no reason given" } else { &line }))
}
