//! Rotates runner tokens that expire: after three quarters of their lifetime, one at a time. GitLab invalidates the old
//! token at once, so the agent writes the new one to the configuration immediately. The rotation runs in a thread,
//! because GitLab may be slow.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::configuration::RunnerServers;
use super::server::RunnerServer;
use super::{Agent, AgentEvent, STACK};
use crate::config::Runner;
use crate::config::edit::Editor;
use crate::coordinator::source::JobSource;
use crate::sync;

/// Interval after a failed rotation.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);

/// The state of the token rotation.
#[derive(Default)]
pub struct Rotation {
    running: Arc<AtomicBool>,
    /// When the last rotation started.
    last_start: Option<Instant>,
}

impl Rotation {
    /// True while a token is being rotated. If the agent exited now, the new token would be lost.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Time until the next rotation may start.
    fn until_retry(&self) -> Duration {
        let since = self.last_start.map_or(RETRY_INTERVAL, |started| started.elapsed());
        RETRY_INTERVAL.saturating_sub(since)
    }
}

/// Held while tokens are rotated; its drop clears the flag, also after a panic.
struct RotationGuard {
    flag: Arc<AtomicBool>,
    events: Sender<AgentEvent>,
}

impl RotationGuard {
    fn begin(rotation: &Rotation, events: Sender<AgentEvent>) -> Self {
        rotation.running.store(true, Ordering::SeqCst);
        Self { flag: Arc::clone(&rotation.running), events }
    }
}

impl Drop for RotationGuard {
    fn drop(&mut self) {
        self.flag.store(false, Ordering::SeqCst);
        let _ = self.events.send(AgentEvent::Recheck);
    }
}

impl Agent {
    /// Starts the rotation of tokens that are due. Returns the time until the next one is due.
    pub(super) fn rotate_tokens(&mut self) -> Option<Duration> {
        if self.rotation.is_running() {
            return None;
        }
        let left = |(runner, _): &(Arc<Runner>, Arc<RunnerServer>)| until_due(runner);
        let next = self.servers.iter().filter_map(left).min()?;
        let until_retry = self.rotation.until_retry();
        if !next.is_zero() || !until_retry.is_zero() {
            return Some(next.max(until_retry));
        }
        let due = self.servers.iter().filter(|server| left(server) == Some(Duration::ZERO)).cloned().collect();
        self.rotation.last_start = Some(Instant::now());
        self.start_rotation(due);
        None
    }

    fn start_rotation(&self, due: RunnerServers) {
        let running = RotationGuard::begin(&self.rotation, self.events.clone());
        let config = self.options.config.clone();
        let rotate = move || {
            for (runner, server) in &due {
                rotate(&config, runner, server);
            }
            drop(running);
        };
        if let Err(error) = sync::spawn("rotate", STACK, rotate) {
            log::error!("cannot start the thread that rotates tokens error={error}");
        }
    }
}

fn rotate(config: &Path, runner: &Runner, server: &RunnerServer) {
    if runner.feature_flags.get("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION") == Some(&true) {
        log::warn!(
            "the token expires soon and is not rotated (FF_DISABLE_AUTOMATIC_TOKEN_ROTATION) runner={}",
            runner.name
        );
        return;
    }
    // The agent reloads the changed configuration, which has the new token.
    match replace_token(config, runner, server) {
        Ok(()) => log::info!("token rotated runner={}", runner.name),
        Err(why) => log::error!("cannot rotate the token runner={} error={why}", runner.name),
    }
}

fn replace_token(config: &Path, runner: &Runner, server: &RunnerServer) -> Result<(), String> {
    if let Some(reference) = &runner.token_reference {
        return Err(format!("the token is stored as {reference}; store a new one there and reload"));
    }
    let unwritten = |error| format!("{}: {error}", config.display());
    // Checks that the file is writable before requesting a token that could not be saved.
    let mut editor = Editor::open(config)?;
    if !editor.has_runner(&runner.url, &runner.token) {
        return Err(format!("the runner is no longer in {}", config.display()));
    }
    editor.save().map_err(unwritten)?;
    let registration = server.reset_token(&runner.token).map_err(|error| error.to_string())?;
    let token = registration.token.ok_or("the server sent no token")?;
    let now = jiff::Timestamp::now().to_string();
    editor.replace_token(&runner.token, &token, &now, registration.token_expires_at.as_deref());
    editor.save().map_err(unwritten)
}

/// Time until the token must be rotated; `None` if it does not expire.
fn until_due(runner: &Runner) -> Option<Duration> {
    let (obtained, expires) = runner.token_life.as_ref()?;
    let (obtained, expires): (jiff::Timestamp, jiff::Timestamp) = (obtained.parse().ok()?, expires.parse().ok()?);
    let life = expires.as_second() - obtained.as_second();
    let due = obtained.as_second() + life / 4 * 3;
    let left = due - jiff::Timestamp::now().as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}
