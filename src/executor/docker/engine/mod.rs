//! The part of the Docker Engine API that jobs need, over the engine's socket. Podman's socket works as far as it
//! implements this API.
//!
//! This layer contains only requests to an engine and their responses; it does not depend on jobs.

pub mod attached;
pub mod containers;
mod error;
mod exec;
pub mod images;
pub mod networks;
pub mod spec;
pub mod system;
pub mod volumes;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::decode;
use crate::http::service::{LocalService, ResponseTimeouts};
use crate::http::{Address, Incoming, Method, escape};

pub use error::DockerError;

/// The newest supported API version.
const NEWEST: Revision = Revision(1, 47);
/// The oldest API version that has everything jobs need (Docker 17.09).
const OLDEST: Revision = Revision(1, 32);

/// Timeouts of requests that need no work by the engine.
const QUICK_CALL_TIMEOUTS: ResponseTimeouts =
    ResponseTimeouts { response: Duration::from_secs(60), idle: Duration::from_secs(60) };
/// Timeouts of requests that need work, such as unpacking images or setting up devices, while other jobs keep the
/// engine busy.
const SLOW_CALL_TIMEOUTS: ResponseTimeouts =
    ResponseTimeouts { response: Duration::from_secs(300), idle: Duration::from_secs(300) };

/// The largest response, in bytes.
const MAX_RESPONSE: u64 = 32 << 20;

/// An API version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Revision(pub u32, pub u32);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Revision {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// The address of an engine and its API version: enough to connect again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineAddress {
    pub address: Address,
    /// The API version to use.
    pub revision: Revision,
}

/// An engine.
pub struct DockerEngine {
    service: LocalService,
    revision: Revision,
}

/// A request.
struct Call<'a> {
    method: Method,
    /// The path after the API version.
    path: String,
    headers: Vec<(&'static str, &'a str)>,
    body: Option<Vec<u8>>,
    timeouts: ResponseTimeouts,
}

impl<'a> Call<'a> {
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: None, timeouts: QUICK_CALL_TIMEOUTS }
    }

    fn json(mut self, body: &impl Serialize) -> Self {
        // Serialising these types cannot fail.
        self.body = Some(serde_json::to_vec(body).unwrap_or_default());
        self
    }

    fn header(mut self, name: &'static str, value: Option<&'a str>) -> Self {
        self.headers.extend(value.map(|value| (name, value)));
        self
    }

    fn timeouts(mut self, timeouts: ResponseTimeouts) -> Self {
        self.timeouts = timeouts;
        self
    }
}

impl DockerEngine {
    /// Connects to the engine at an address and negotiates the API version. Fails if no engine listens there, access is
    /// denied, the engine does not respond, or its API is too old.
    pub fn connect(address: &Address) -> Result<Self, DockerError> {
        Self::connect_with(address, QUICK_CALL_TIMEOUTS)
    }

    /// As [`DockerEngine::connect`], with a timeout for the response.
    pub fn connect_within(address: &Address, timeout: Duration) -> Result<Self, DockerError> {
        Self::connect_with(address, ResponseTimeouts { response: timeout, idle: timeout })
    }

    fn connect_with(address: &Address, timeouts: ResponseTimeouts) -> Result<Self, DockerError> {
        let service = open(address)?;
        let response = service
            .send(Method::Get, "/_ping", &[], None, timeouts)
            .map_err(|error| DockerError::from_connection(address, "_ping", error))?;
        let revision = response.header("Api-Version").and_then(Revision::parse);
        let status = response.status;
        let body = response.explanation();
        let revision = match (status, revision) {
            (200, Some(revision)) => revision,
            (500.., _) => return Err(DockerError::error_response(address, "_ping", status, &body)),
            (400, _) if body.contains("HTTPS server") => {
                return Err(DockerError::NeedsTls { address: address.to_string() });
            }
            _ => return Err(DockerError::invalid_response(address, "_ping", "the response has no `Api-Version`")),
        };
        if revision < OLDEST {
            return Err(DockerError::TooOld { address: address.to_string(), has: revision, needs: OLDEST });
        }
        Ok(Self { service, revision: revision.min(NEWEST) })
    }

    /// The engine at a known address; does not connect yet. Fails if a certificate file is unreadable.
    pub fn at(address: &EngineAddress) -> Result<Self, DockerError> {
        Ok(Self { service: open(&address.address)?, revision: address.revision })
    }

    /// The address, for another process.
    pub fn engine_address(&self) -> EngineAddress {
        EngineAddress { address: self.service.address().clone(), revision: self.revision }
    }

    /// The API version in use.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    fn versioned_path(&self, path: &str) -> String {
        format!("/v{}{path}", self.revision)
    }

    /// Sends a request. Any status other than 2xx or 304 (nothing to change) is an error, also a redirect.
    fn call(&self, call: &Call<'_>) -> Result<Incoming, DockerError> {
        let what = call.path.split('?').next().unwrap_or_default();
        let address = self.service.address();
        let response = self
            .service
            .send(call.method, &self.versioned_path(&call.path), &call.headers, call.body.as_deref(), call.timeouts)
            .map_err(|error| DockerError::from_connection(address, what, error))?;
        match response.status {
            200..300 | 304 => Ok(response),
            status => Err(DockerError::error_response(address, what, status, &response.explanation())),
        }
    }

    /// Sends a request whose response has no content.
    fn call_without_result(&self, call: &Call<'_>) -> Result<(), DockerError> {
        // Read the body to its end, so that the connection can be reused.
        self.call(call).map(|response| drop(response.explanation()))
    }

    fn call_json<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, DockerError> {
        use std::io::Read;
        let response = self.call(call)?;
        let mut body = Vec::new();
        let what = call.path.split('?').next().unwrap_or_default();
        let read = response.into_reader().take(MAX_RESPONSE).read_to_end(&mut body);
        let invalid = |why: String| DockerError::invalid_response(self.service.address(), what, &why);
        read.map_err(|error| invalid(format!("the response is incomplete: {error}")))?;
        decode::json(&body).map_err(|error| invalid(error.to_string()))
    }
}

fn open(address: &Address) -> Result<LocalService, DockerError> {
    LocalService::new(address, &crate::version::user_agent())
        .map_err(|error| DockerError::from_connection(address, "", error))
}

/// A filter for lists: all these labels must be present.
fn with_labels(labels: &[(&str, &str)]) -> String {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    escape(&serde_json::json!({"label": labels}).to_string(), b"")
}

/// Decodes lists and maps that may be `null`.
fn lenient<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::TestServer;

    const PING: &str = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK";

    fn engine(answers: &[&str]) -> Result<DockerEngine, DockerError> {
        let server = TestServer::new(answers);
        let address = server.url.strip_prefix("http://").expect("a URL").to_owned();
        DockerEngine::connect(&Address::Tcp(address, None))
    }

    fn json(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn negotiates_the_newest_common_version() {
        assert_eq!(engine(&[PING]).expect("an engine").revision(), Revision(1, 41));
        let newer = PING.replace("1.41", "1.99");
        assert_eq!(engine(&[&newer]).expect("an engine").revision(), NEWEST);
        let older = PING.replace("1.41", "1.24");
        let why = engine(&[&older]).err().expect("must be refused").to_string();
        assert!(why.contains("has API version 1.24") && why.contains("update the engine"), "{why}");
    }

    #[test]
    fn reports_a_server_that_is_not_an_engine() {
        for (answer, part) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat", "should be a container engine"),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n",
                "should be a container engine",
            ),
            ("SSH-2.0-x\r\n\r\n", "should be a container engine"),
            ("HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy", "busy"),
        ] {
            let why = engine(&[answer]).err().expect("must be refused").to_string();
            assert!(why.contains(part), "{answer}: {why}");
        }
    }

    #[test]
    fn says_what_to_do_without_an_engine() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("docker.sock");
        let connect =
            || DockerEngine::connect(&Address::Unix(path.clone())).err().expect("must be refused").to_string();
        assert!(connect().contains("install or start it"), "{}", connect());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind the address"));
        assert!(connect().contains("does not run"), "{}", connect());
    }

    #[test]
    fn passes_on_error_messages_of_the_engine() {
        let engine = engine(&[
            PING,
            &json("409 Conflict", r#"{"message":"the name is taken"}"#),
            &json("404 Not Found", r#"{"message":"no such thing"}"#),
            &json("307 Temporary Redirect", "{}"),
            &json("200 OK", r#"{"Id": 7}"#),
        ])
        .expect("an engine");
        let taken =
            engine.create_container("a b", None, &spec::CreateContainer::default()).expect_err("must be refused");
        assert_eq!((taken.status(), taken.to_string().as_str()), (Some(409), "the name is taken"));
        assert!(engine.container("x").expect_err("the container must be missing").is_missing());
        let redirected = engine.start_container("x").expect_err("must be refused");
        assert!(redirected.to_string().contains("an engine never does"), "{redirected}");
        let odd = engine.container("x").expect_err("must be refused");
        assert!(matches!(odd, DockerError::InvalidResponse { .. }), "{odd}");
    }

    #[test]
    fn a_pull_that_fails_halfway_is_an_error() {
        let body = "{\"status\":\"Pulling\",\"id\":\"x\"}\r\n{\"errorDetail\":{},\"error\":\"manifest unknown\"}\r\n";
        let engine = engine(&[PING, &json("200 OK", body)]).expect("an engine");
        let mut pull = engine.pull("a/b:1", None, Some("e30=")).expect("begin the pull");
        assert_eq!(pull.next_progress().expect("read the progress of the pull").expect("a line").status, "Pulling");
        assert_eq!(pull.next_progress().expect_err("the pull must fail").to_string(), "manifest unknown");
    }

    #[test]
    fn escapes_filters_in_queries() {
        assert_eq!(with_labels(&[("a", "b")]), "%7B%22label%22%3A%5B%22a%3Db%22%5D%7D");
    }
}
