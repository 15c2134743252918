//! Credential helpers: programs `docker-credential-NAME` on the agent's machine, asked by their protocol.
//!
//! A job may name only those that the configuration allows, and they run without the rights and the environment of the
//! agent. A name is only ever looked for in the agent's path, and has a time limit.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::Secret;
use crate::config::is_helper_name;
use crate::decode;
use crate::shim::PASSED_VARIABLES;
use crate::token::Token;

/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 1 << 20;
/// Letters of a helper's complaint that are told.
const ERROR_TEXT_MAX: usize = 200;

/// Who named a helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamedBy {
    /// Who configures the machine.
    Administrator,
    /// The author of a job.
    Job,
}

/// How helpers are run.
pub(super) struct CredentialHelpers<'a> {
    /// Their environment; its `PATH` is where they are looked for.
    pub environment: &'a [(String, String)],
    /// Those that a job may name.
    pub allowed: &'a [String],
    /// User and group of those that a job named.
    pub unprivileged: Option<(u32, u32)>,
    /// A helper that takes longer is ended.
    pub timeout: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl CredentialHelpers<'_> {
    /// Asks a helper for the login at a server; `None` when it knows none. Errors: there is no such helper, or it
    /// answers nonsense, or not in time.
    pub fn get(&self, name: &str, named_by: NamedBy, server: &str) -> Result<Option<Secret>, String> {
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
        // What it started itself goes with it; a group that is gone already is no error.
        let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        let status = child.wait().map_err(|error| format!("{program}: {error}"))?;
        let text = match outcome {
            Ok(Some(text)) => text,
            Ok(None) => return Err(format!("{program} took longer than {} s and was ended", self.timeout.as_secs())),
            Err(error) => return Err(format!("{program}: {error}")),
        };
        if !status.success() {
            return error_answer(&program, text.trim());
        }
        let answer: HelperAnswer =
            decode::json(text.as_bytes()).map_err(|_| format!("{program} answers something that is no login"))?;
        Ok(match (answer.username.as_str(), answer.secret.is_empty()) {
            (_, true) => None,
            ("<token>", false) => Some(Secret::Identity(Token::new(answer.secret))),
            _ => Some(Secret::Password { username: answer.username, password: Token::new(answer.secret) }),
        })
    }

    fn start(&self, program: &str, named_by: NamedBy) -> Result<Child, String> {
        let mut command = Command::new(program);
        let is_passed = |key: &str| named_by == NamedBy::Administrator || PASSED_VARIABLES.contains(&key);
        command.env_clear().envs(self.environment.iter().filter(|(key, _)| is_passed(key)).cloned());
        if named_by == NamedBy::Job {
            command.env("HOME", "/").current_dir("/");
            if let Some((user, group)) = self.unprivileged {
                // The standard library drops the supplementary groups as well.
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

/// Sends the question and reads the answer; `None` when the time is over.
fn converse(child: &mut Child, server: &str, until: Instant) -> std::io::Result<Option<String>> {
    if let Some(mut input) = child.stdin.take() {
        // One that ends without reading has its reasons in its answer.
        let _ = input.write_all(format!("{server}\n").as_bytes());
    }
    let Some(output) = child.stdout.take() else { return Ok(None) };
    let mut output = File::from(OwnedFd::from(output));
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if left.is_zero() || poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            return Ok(None);
        }
        match output.read(&mut piece)? {
            0 => break,
            length => answer.extend_from_slice(&piece[..length]),
        }
        if answer.len() > ANSWER_MAX {
            return Err(std::io::Error::other("the answer is too long"));
        }
    }
    Ok(Some(String::from_utf8_lossy(&answer).into_owned()))
}

/// What a helper says when it has none, and what it says when it cannot look.
fn error_answer(program: &str, text: &str) -> Result<Option<Secret>, String> {
    if text.to_ascii_lowercase().contains("credentials not found") {
        return Ok(None);
    }
    let line: String = text.lines().next().unwrap_or_default().chars().take(ERROR_TEXT_MAX).collect();
    Err(format!("{program} fails: {}", if line.is_empty() { "it does not say why" } else { &line }))
}
