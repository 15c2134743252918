//! Registers the agent with its manager, and keeps the registration on disk.

use std::fs;
use std::path::PathBuf;
use std::sync::MutexGuard;

use serde::{Deserialize, Serialize};

use super::protocol::{self, Introduction, PROTOCOL, VerifyBody, Welcome};
use super::{AgentIdentity, JobIntake, ManagerClient, STS_TOKEN, message};
use crate::coordinator::source::PollOutcome;
use crate::decode;
use crate::digest::sha256;
use crate::http::{HttpError, Method};
use crate::instance::Identity;
use crate::sync;
use crate::sys;
use crate::token::Token;
use crate::version::VERSION;

/// Whether the agent is registered with the manager.
#[derive(Default)]
pub(super) enum RegistrationState {
    /// The agent has not registered yet, or the manager has forgotten it.
    #[default]
    Missing,
    Registered(Welcome),
    /// The request that unregisters the agent may have arrived.
    Unregistering(Welcome),
    /// The agent has unregistered. It registers again only for another poll.
    Unregistered,
}

impl RegistrationState {
    /// The manager's settings for the agent, whose token the manager may still know.
    pub(super) fn welcome(&self) -> Option<&Welcome> {
        match self {
            Self::Registered(welcome) | Self::Unregistering(welcome) => Some(welcome),
            Self::Missing | Self::Unregistered => None,
        }
    }
}

/// The registration on disk; it survives a restart of the agent.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredRegistration {
    url: String,
    identity: Identity,
    /// The agent's token, stored before the first request that contains it.
    pub token: Token,
    /// The manager's response; `None` until it has arrived.
    pub welcome: Option<Welcome>,
}

/// The file with the registration.
pub fn path_of(agent: &AgentIdentity) -> PathBuf {
    agent.state_dir.join(format!("manager-{}.json", &sha256(agent.url.as_bytes())[..12]))
}

/// Loads the registration of an earlier agent in this boot.
pub fn load(agent: &AgentIdentity) -> Option<StoredRegistration> {
    let kept: StoredRegistration = decode::json(&fs::read(path_of(agent)).ok()?).ok()?;
    (kept.url == agent.url && kept.identity == agent.identity).then_some(kept)
}

/// Saves the registration. A failure is only logged.
pub fn save(agent: &AgentIdentity, token: &Token, welcome: Option<&Welcome>) {
    let kept = StoredRegistration {
        url: agent.url.clone(),
        identity: agent.identity.clone(),
        token: token.clone(),
        welcome: welcome.cloned(),
    };
    let path = path_of(agent);
    let written = serde_json::to_vec(&kept).map_err(std::io::Error::other);
    let written = written.and_then(|text| sys::replace_file_synced(&path, &text));
    if let Err(error) = written {
        log::error!(
            "cannot keep the agent's token; after a restart the manager refuses this agent until the next boot path={} \
             error={error}",
            path.display()
        );
    }
}

impl ManagerClient {
    /// The registration, which all clients of the manager share.
    pub(super) fn registration(&self) -> MutexGuard<'_, RegistrationState> {
        sync::lock(&self.jobs.registration)
    }

    /// Continues with the registration of an earlier agent in this boot.
    pub(super) fn restore_registration(&self) {
        let mut state = self.registration();
        if matches!(&*state, RegistrationState::Missing)
            && let Some(welcome) = load(&self.agent).and_then(|kept| kept.welcome)
        {
            *state = RegistrationState::Registered(welcome);
        }
    }

    /// Registers the agent unless it is registered, because it polls for jobs. The error is the outcome of the poll.
    pub(super) fn register(&self) -> Result<Token, PollOutcome> {
        let _turn = sync::lock(&self.jobs.registering);
        if let RegistrationState::Registered(known) = &*self.registration() {
            return Ok(known.token.clone());
        }
        // A shutdown that began after the decision to poll may have unregistered the agent already, and does not do it
        // twice.
        if self.jobs.intake() != JobIntake::Open {
            return Err(PollOutcome::NoJob);
        }
        self.send_registration()
    }

    /// As [`Self::register`], for reports about the agent's jobs. `None` if the agent leaves: the manager would count
    /// it as a new agent after it has unregistered.
    pub(super) fn register_again(&self) -> Option<Result<Token, PollOutcome>> {
        let _turn = sync::lock(&self.jobs.registering);
        match &*self.registration() {
            RegistrationState::Registered(known) => return Some(Ok(known.token.clone())),
            RegistrationState::Missing => {}
            RegistrationState::Unregistering(_) | RegistrationState::Unregistered => return None,
        }
        Some(self.send_registration())
    }

    /// Sends the registration. The caller holds the lock `registering`.
    fn send_registration(&self) -> Result<Token, PollOutcome> {
        let agent_token = match load(&self.agent) {
            Some(kept) => kept.token,
            None => {
                let token = protocol::new_agent_token();
                save(&self.agent, &token, None);
                token
            }
        };
        let body = self.introduction(agent_token).map_err(PollOutcome::Failed)?;
        let response = match self.send(Method::Post, "runners/verify", &self.agent.fleet_token, &body) {
            Ok(response) => response,
            Err(HttpError::Configuration(why)) => return Err(PollOutcome::Misconfigured(why)),
            Err(error) => return Err(PollOutcome::Failed(error.to_string())),
        };
        #[derive(Deserialize)]
        struct VerifyResponse {
            mayfly: Welcome,
        }
        match response.status {
            200 => {
                let accepted: VerifyResponse = decode::json(&response.body).map_err(|_| {
                    PollOutcome::Failed("the manager's response to the registration cannot be decoded".to_owned())
                })?;
                log::info!(
                    "registered with the manager url={} instance={} pool={}",
                    self.agent.url,
                    self.agent.identity.instance,
                    accepted.mayfly.pool
                );
                save(&self.agent, &accepted.mayfly.token, Some(&accepted.mayfly));
                let token = accepted.mayfly.token.clone();
                *self.registration() = RegistrationState::Registered(accepted.mayfly);
                Ok(token)
            }
            401 | 403 | 409 | 426 => Err(PollOutcome::Refused(message(&response))),
            status => Err(PollOutcome::Failed(format!("status {status}: {}", message(&response)))),
        }
    }

    /// The agent's identity with the fleet token, or with a proof of the instance's role instead. The error is the
    /// reason why the proof cannot be signed.
    fn introduction(&self, agent_token: Token) -> Result<VerifyBody, String> {
        let mut introduction = Introduction {
            protocol: PROTOCOL,
            instance: self.agent.identity.instance.clone(),
            boot: self.agent.identity.boot.clone(),
            agent_token: Some(agent_token),
            capacity: self.agent.capacity,
            version: VERSION.to_owned(),
            labels: self.agent.labels.clone(),
            proof: None,
        };
        let mut token = Some(self.agent.fleet_token.clone());
        if self.agent.fleet_token.reveal() == STS_TOKEN {
            token = None;
            let proof = (self.agent.prove)(&introduction.binding());
            let proof = proof.map_err(|why| format!("cannot sign a proof of this instance's role: {why}"))?;
            introduction.proof = Some(proof);
        }
        Ok(VerifyBody { token, mayfly: Some(introduction) })
    }

    /// Drops the registration after a response that rejects the token, because the manager lost its state. The agent
    /// registers again with the same token. A token that is unregistered, or replaced already, is rejected as well;
    /// such a response changes nothing.
    pub(super) fn forget_registration(&self, token: &Token) {
        let mut state = self.registration();
        if matches!(&*state, RegistrationState::Registered(known) if known.token == *token) {
            log::warn!("the manager does not know this agent any more; registering again url={}", self.agent.url);
            *state = RegistrationState::Missing;
            save(&self.agent, token, None);
        }
    }

    /// Begins to unregister the agent: from now on only a poll registers it again. Returns the agent's token; `None`
    /// if the agent is not registered. Waits for a registration in flight.
    pub(super) fn begin_unregistration(&self) -> Option<Token> {
        let _turn = sync::lock(&self.jobs.registering);
        let mut state = self.registration();
        let (next, token) = match std::mem::take(&mut *state) {
            RegistrationState::Registered(welcome) | RegistrationState::Unregistering(welcome) => {
                let token = welcome.token.clone();
                (RegistrationState::Unregistering(welcome), Some(token))
            }
            RegistrationState::Missing | RegistrationState::Unregistered => (RegistrationState::Unregistered, None),
        };
        *state = next;
        token
    }

    /// Removes the registration with this token, which the manager has removed. The response may arrive after the agent
    /// has resumed work and registered again with the same token; then the response changes nothing.
    pub(super) fn end_unregistration(&self, token: &Token) {
        let mut state = self.registration();
        if matches!(&*state, RegistrationState::Unregistering(known) if known.token == *token) {
            *state = RegistrationState::Unregistered;
            let _ = fs::remove_file(path_of(&self.agent));
        }
    }

    /// The agent's token; `None` while it is not registered.
    pub(super) fn token(&self) -> Option<Token> {
        self.registration().welcome().map(|welcome| welcome.token.clone())
    }

    /// Applies the number of concurrent jobs if the manager has changed it since the registration.
    pub(super) fn apply_capacity(&self, capacity: u32) {
        let mut state = self.registration();
        let RegistrationState::Registered(known) = &mut *state else { return };
        if known.capacity == capacity || capacity == 0 {
            return;
        }
        known.capacity = capacity;
        save(&self.agent, &known.token, Some(known));
        drop(state);
        (self.on_capacity)(capacity);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::coordinator::gitlab::ApiError;
    use crate::coordinator::manager::{JOBS_REQUEST, ManagedJobs};
    use crate::coordinator::source::JobSource;
    use crate::http::testing::TestServer;
    use crate::http::tls::TlsFiles;

    const REGISTERED: &str = r#"{"mayfly":{"token":"agent-token","pool":"p","capacity":1}}"#;

    fn response(status: u16, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status} X\r\nX-Mayfly-Manager: 1\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn client(url: &str, state_dir: &tempfile::TempDir) -> ManagerClient {
        client_with(url, state_dir, Arc::default())
    }

    fn client_with(url: &str, state_dir: &tempfile::TempDir, jobs: Arc<ManagedJobs>) -> ManagerClient {
        let agent = AgentIdentity {
            url: url.to_owned(),
            tls: TlsFiles::default(),
            fleet_token: Token::new("fleet-token"),
            identity: Identity { instance: "i-1".to_owned(), boot: "b-1".to_owned() },
            prove: |_| unreachable!("the agent has a fleet token"),
            capacity: None,
            labels: Default::default(),
            state_dir: state_dir.path().to_owned(),
            connection_max_age: Duration::from_secs(60),
        };
        ManagerClient::new(agent, jobs, Box::new(|_, _| {}), Box::new(|_| {})).expect("a client")
    }

    fn paths(server: &TestServer) -> Vec<String> {
        server.seen().iter().filter_map(|seen| Some(seen.head.split(' ').nth(1)?.to_owned())).collect()
    }

    #[test]
    fn a_manager_that_has_lost_its_state_gets_the_same_token_again() {
        let directory = tempfile::tempdir().expect("create a directory");
        let answers = [response(200, REGISTERED), response(401, "{}"), response(200, REGISTERED), response(200, "{}")];
        let server = TestServer::new(&answers.each_ref().map(String::as_str));
        let client = client(&server.url, &directory);
        assert!(client.register().is_ok());
        assert!(client.send_heartbeat() && client.send_heartbeat());
        let verify = "/api/v4/runners/verify";
        let heartbeat = "/api/v4/runners/heartbeat";
        assert_eq!(paths(&server), [verify, heartbeat, verify, heartbeat]);
        let again = String::from_utf8_lossy(&server.seen()[2].body).into_owned();
        assert!(again.contains("agent-token"), "{again}");
    }

    #[test]
    fn an_agent_that_unregistered_registers_again_only_for_a_poll() {
        let directory = tempfile::tempdir().expect("create a directory");
        let answers = [response(200, REGISTERED), response(500, "{}"), response(204, ""), response(200, REGISTERED)];
        let server = TestServer::new(&answers.each_ref().map(String::as_str));
        let client = Arc::new(client(&server.url, &directory));
        let token = client.register().expect("registered");
        assert!(client.unregister(&token, "s_1", TIMEOUT).is_err());
        client.forget_registration(&token);
        assert!(client.register_again().is_none(), "the request may have arrived");
        assert!(client.unregister(&token, "s_1", TIMEOUT).is_ok(), "the token is kept for another attempt");
        assert!(client.register_again().is_none() && !client.send_heartbeat());
        assert!(load(&client.agent).is_none(), "the file is removed");
        assert_eq!(server.seen().len(), 3);
        assert!(client.register().is_ok(), "an agent that resumes work polls");
    }

    /// The main loop reads the registration, and must not wait for a manager that does not answer.
    #[test]
    fn a_registration_in_flight_delays_no_reader_and_no_request_after_the_timeout() {
        let directory = tempfile::tempdir().expect("create a directory");
        let (listener, client) = client_of_listener(&directory);
        thread::scope(|scope| {
            let registration = scope.spawn(|| client.register().is_ok());
            let mut stream = accept(&listener);
            assert!(read(&mut stream).starts_with("POST /api/v4/runners/verify"));
            assert_eq!((client.capacity(), client.token().is_none()), (None, true));
            let unregistration = scope.spawn(|| client.unregister(&Token::new(""), "", Duration::ZERO));
            write(&mut stream, &response(200, REGISTERED));
            assert!(registration.join().expect("no panic"));
            // Either nothing was registered when it began, or its time has passed.
            let result = unregistration.join().expect("no panic");
            assert!(matches!(result, Ok(()) | Err(ApiError::Unreachable(_))), "{result:?}");
            stream.get_ref().set_nonblocking(true).expect("set the mode");
            assert!(stream.fill_buf().map_or(true, <[u8]>::is_empty), "a request was sent");
        });
        listener.set_nonblocking(true).expect("set the mode");
        assert!(listener.accept().is_err(), "a request was sent");
    }

    /// The manager rejects a heartbeat that arrives after the request that unregisters the agent.
    #[test]
    fn a_heartbeat_that_meets_the_unregistration_does_not_register_the_agent_again() {
        let directory = tempfile::tempdir().expect("create a directory");
        let (listener, client) = client_of_listener(&directory);
        thread::scope(|scope| {
            let mut first = register_at(&listener, &client);

            let heartbeat = scope.spawn(|| client.send_heartbeat());
            assert!(read(&mut first).starts_with("POST /api/v4/runners/heartbeat"));
            let unregistration = scope.spawn(|| client.unregister(&Token::new(""), "", TIMEOUT).is_ok());
            let mut second = accept(&listener);
            assert!(read(&mut second).starts_with("DELETE /api/v4/runners/managers"));
            write(&mut first, &response(401, "{}"));
            assert!(!heartbeat.join().expect("no panic"), "no request follows");
            write(&mut second, &response(204, ""));
            assert!(unregistration.join().expect("no panic"));
        });
    }

    /// A job from the journal has its own client of the manager.
    #[test]
    fn a_heartbeat_of_another_client_does_not_register_the_agent_again() {
        let directory = tempfile::tempdir().expect("create a directory");
        let answers = [response(200, REGISTERED), response(204, ""), response(401, "{}"), response(200, REGISTERED)];
        let server = TestServer::new(&answers.each_ref().map(String::as_str));
        let jobs = Arc::<ManagedJobs>::default();
        let polling = Arc::new(client_with(&server.url, &directory, Arc::clone(&jobs)));
        let token = polling.register().expect("registered");
        let reporting = client_with(&server.url, &directory, Arc::clone(&jobs));
        assert_eq!(reporting.token(), Some(token.clone()));
        assert!(polling.unregister(&token, "s_1", TIMEOUT).is_ok());
        assert!(!reporting.send_heartbeat());
        reporting.forget_registration(&token);
        assert!(reporting.register_again().is_none());
        assert_eq!(server.seen().len(), 2, "{:?}", paths(&server));
        assert!(load(&polling.agent).is_none(), "the file stays removed");
    }

    /// The group keeps the instance while the request that unregisters the agent is in flight.
    #[test]
    fn a_late_response_to_the_unregistration_does_not_remove_the_next_registration() {
        let directory = tempfile::tempdir().expect("create a directory");
        let (listener, client) = client_of_listener(&directory);
        thread::scope(|scope| {
            let mut first = register_at(&listener, &client);

            let unregistration = scope.spawn(|| client.unregister(&Token::new(""), "", TIMEOUT).is_ok());
            assert!(read(&mut first).starts_with("DELETE /api/v4/runners/managers"));
            let _second = register_at(&listener, &client);
            write(&mut first, &response(204, ""));
            assert!(unregistration.join().expect("no panic"));
        });
        assert!(client.token().is_some(), "the agent is registered");
        assert!(load(&client.agent).is_some_and(|kept| kept.welcome.is_some()), "the file stays");
    }

    #[test]
    fn a_poll_that_begins_after_the_shutdown_does_not_register_the_agent() {
        let directory = tempfile::tempdir().expect("create a directory");
        let server = TestServer::new(&[&response(200, REGISTERED)]);
        let client = client(&server.url, &directory);
        for intake in [JobIntake::Closed, JobIntake::Abandoned] {
            client.jobs.set_intake(intake);
            assert!(matches!(client.register(), Err(PollOutcome::NoJob)));
        }
        assert_eq!(server.seen().len(), 0);
        client.jobs.set_intake(JobIntake::Open);
        assert!(client.register().is_ok(), "an agent that resumes work polls");
    }

    #[test]
    fn an_agent_that_resumes_work_uses_the_responses_to_its_next_polls() {
        let directory = tempfile::tempdir().expect("create a directory");
        // The empty response closes the connection, as a manager that restarts.
        let answers = [response(200, REGISTERED), String::new(), response(204, ""), response(204, "")];
        let server = TestServer::new(&answers.each_ref().map(String::as_str));
        let client = client(&server.url, &directory);
        let token = client.register().expect("registered");
        let poll = || client.send(Method::Post, JOBS_REQUEST, &token, &serde_json::json!({}));
        poll().expect_err("no response");
        client.jobs.set_intake(JobIntake::Closed);
        sync::try_until(TIMEOUT, Duration::from_millis(10), || client.abandon_polls().then_some(()))
            .expect("the manager is silent");
        poll().expect_err("the agent ignores the response");
        client.jobs.set_intake(JobIntake::Open);
        assert_eq!(poll().expect("a response").status, 204);
    }

    /// A client of a manager whose responses the test sends itself, so that it decides their order.
    fn client_of_listener(state_dir: &tempfile::TempDir) -> (TcpListener, Arc<ManagerClient>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        (listener, Arc::new(client(&url, state_dir)))
    }

    fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
        BufReader::new(listener.accept().expect("a connection").0)
    }

    /// Registers the client over a new connection, and returns the connection.
    fn register_at(listener: &TcpListener, client: &ManagerClient) -> BufReader<TcpStream> {
        thread::scope(|scope| {
            let registration = scope.spawn(|| client.register().is_ok());
            let mut stream = accept(listener);
            assert!(read(&mut stream).starts_with("POST /api/v4/runners/verify"));
            write(&mut stream, &response(200, REGISTERED));
            assert!(registration.join().expect("no panic"));
            stream
        })
    }

    fn read(stream: &mut BufReader<TcpStream>) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).expect("a request"), 0, "the connection ended");
        }
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).expect("a body");
        head
    }

    fn write(stream: &mut BufReader<TcpStream>, response: &str) {
        stream.get_mut().write_all(response.as_bytes()).expect("write a response");
    }
}
