//! Rotates runner tokens that expire: after three quarters of their lifetime, one at a time. GitLab invalidates the old
//! token at once, so the agent writes the new one to the configuration immediately. The rotation runs in a thread,
//! because GitLab may be slow.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::configuration::RunnerServers;
use super::server::RunnerServer;
use super::{Agent, AgentEvent, STACK};
use crate::config::Runner;
use crate::config::edit::Editor;
use crate::coordinator::source::JobSource;
use crate::sync;
use crate::token::Token;

/// Interval after a failed rotation.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);

/// The state of the token rotation.
#[derive(Default)]
pub struct Rotation {
    running: Arc<AtomicBool>,
    /// When the last rotation started.
    last_start: Option<Instant>,
    /// The old and the new token of each rotation.
    replaced: ReplacedTokens,
}

/// Old tokens, each with the token that replaced it.
type ReplacedTokens = Arc<Mutex<Vec<(Token, Token)>>>;

impl Rotation {
    /// True while a token is being rotated. If the agent exited now, the new token would be lost.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// The token that is valid now. An agent that shuts down does not load the configuration with the new token.
    pub fn current_token(&self, token: &Token) -> Token {
        let replaced = sync::lock(&self.replaced);
        replaced.iter().fold(token.clone(), |token, (old, new)| if token == *old { new.clone() } else { token })
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
        let (config, replaced) = (self.options.config.clone(), Arc::clone(&self.rotation.replaced));
        let rotate = move || {
            for (runner, server) in &due {
                rotate(&config, runner, &**server, &replaced);
            }
            drop(running);
        };
        if let Err(error) = sync::spawn("rotate", STACK, rotate) {
            log::error!("cannot start the thread that rotates tokens error={error}");
        }
    }
}

fn rotate(config: &Path, runner: &Runner, server: &dyn JobSource, replaced: &ReplacedTokens) {
    if runner.feature_flags.get("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION") == Some(&true) {
        log::warn!(
            "the token expires soon and is not rotated (FF_DISABLE_AUTOMATIC_TOKEN_ROTATION) runner={}",
            runner.name
        );
        return;
    }
    // The agent reloads the changed configuration, which has the new token.
    match replace_token(config, runner, server, replaced) {
        Ok(()) => log::info!("token rotated runner={}", runner.name),
        Err(why) => log::error!("cannot rotate the token runner={} error={why}", runner.name),
    }
}

fn replace_token(
    config: &Path,
    runner: &Runner,
    server: &dyn JobSource,
    replaced: &ReplacedTokens,
) -> Result<(), String> {
    if let Some(reference) = &runner.token_reference {
        return Err(format!("the token is stored as {reference}; store a new one there and reload"));
    }
    let unwritten = |error| format!("{}: {error}", config.display());
    // Checks that the file is writable before requesting a token that could not be saved.
    let editor = Editor::open(config)?;
    if !editor.has_runner(&runner.url, &runner.token) {
        return Err(format!("the runner is no longer in {}", config.display()));
    }
    editor.save().map_err(unwritten)?;
    let registration = server.reset_token(&runner.token).map_err(|error| error.to_string())?;
    let token = registration.token.ok_or("the server sent no token")?;
    sync::lock(replaced).push((runner.token.clone(), token.clone()));
    let now = jiff::Timestamp::now().to_string();
    // The file may have changed during the request. A missing or empty file, and a text that is no TOML, are replaced:
    // another program may be writing the file, and GitLab sends the token only once.
    let changed = Editor::open(config).ok().filter(|changed| !changed.is_empty());
    let mut editor = changed.unwrap_or(editor);
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::{fs, thread};

    use super::*;
    use crate::agent::gitlab;
    use crate::config::Config;

    #[test]
    fn a_change_of_the_file_during_the_request_is_kept() {
        let directory = tempfile::tempdir().expect("create a directory");
        let path = directory.path().join("config.toml");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let text = format!("[[runners]]\nname = \"r\"\nurl = \"{url}\"\ntoken = \"old\"\nexecutor = \"shell\"\n");
        fs::write(&path, &text).expect("write the file");
        let config = Config::parse(&path, &text).expect("a configuration");
        let runner = &config.runners[0];
        let server = gitlab(&config, runner).expect("a client");
        let replaced = ReplacedTokens::default();

        thread::scope(|scope| {
            let rotation = scope.spawn(|| replace_token(&path, runner, &server, &replaced));
            let mut stream = BufReader::new(listener.accept().expect("a connection").0);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                assert_ne!(stream.read_line(&mut line).expect("a request"), 0, "the connection ended");
            }
            fs::write(&path, format!("concurrent = 7\n{text}")).expect("write the file");
            let body = r#"{"id":1,"token":"new","token_expires_at":null}"#;
            let head = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length:";
            write!(stream.get_mut(), "{head} {}\r\n\r\n{body}", body.len()).expect("write a response");
            assert_eq!(rotation.join().expect("no panic"), Ok(()));
        });

        let written = fs::read_to_string(&path).expect("read the file");
        assert!(written.contains("concurrent = 7") && written.contains("token = \"new\""), "{written}");
        let rotation = Rotation { replaced, ..Rotation::default() };
        assert_eq!(rotation.current_token(&runner.token).reveal(), "new");
        assert_eq!(rotation.current_token(&Token::new("other")).reveal(), "other");
    }
}
