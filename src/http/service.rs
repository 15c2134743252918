//! A client for a local service such as a container engine, on a Unix socket or on a TCP address with its own
//! certificates.
//!
//! Requests use no proxy, and redirects are not followed, so that no request reaches another server. Bodies are
//! streamed, and a connection can be upgraded to raw bytes in both directions.

use std::io;
use std::time::Duration;

use ureq::config::AutoHeaderValue;
use ureq::{Agent, http};

use super::address::{Address, ConnectionError};
use super::client::Method;
use super::proxy::Route;
use super::socket;
use super::tls;
use super::transfer::Incoming;
use super::upgraded::{self, UpgradedConnection};
use super::url::parse;

/// The timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The timeouts of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseTimeouts {
    /// Until the response begins.
    pub response: Duration,
    /// Between two parts of its body.
    pub idle: Duration,
}

/// A client for one service.
pub struct LocalService {
    address: Address,
    agent: Agent,
    user_agent: String,
}

impl LocalService {
    /// A client for the service at an address; does not connect yet. Fails if a certificate file is unusable.
    pub fn new(address: &Address, user_agent: &str) -> Result<Self, ConnectionError> {
        let config = socket::plain_config()
            .user_agent(user_agent)
            .accept_encoding(AutoHeaderValue::None)
            .input_buffer_size(64 * 1024)
            .output_buffer_size(16 * 1024)
            .max_idle_age(IDLE_TIMEOUT)
            .timeout_connect(Some(CONNECT_TIMEOUT));
        let agent = match address {
            Address::Unix(path) => socket::local_agent(config.proxy(None).build(), path),
            Address::Tcp(_, files) => {
                let trust = files.as_ref().map(tls::config).transpose();
                let agent = trust.and_then(|trust| socket::agent(config, &Route::Direct, trust));
                agent.map_err(ConnectionError::Configuration)?
            }
        };
        let service = Self { address: address.clone(), agent, user_agent: user_agent.to_owned() };
        parse(&service.url("/")).map_err(|error| ConnectionError::Configuration(error.to_string()))?;
        Ok(service)
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Requests `path` (with its query), with an optional JSON body. Fails if there is no response.
    pub fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
        timeouts: ResponseTimeouts,
    ) -> Result<Incoming, ConnectionError> {
        let mut builder = http::Request::builder().method(method.as_str()).uri(self.url(path));
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let unusable = |error: http::Error| ConnectionError::Configuration(error.to_string());
        let outcome = match body {
            Some(body) => {
                let request = builder.header("Content-Type", "application/json").body(body).map_err(unusable)?;
                self.agent.run(self.with_timeouts(request, timeouts))
            }
            // A POST without a body still needs a `Content-Length`.
            None if method == Method::Post => {
                let request = builder.body(&[][..]).map_err(unusable)?;
                self.agent.run(self.with_timeouts(request, timeouts))
            }
            None => self.agent.run(self.with_timeouts(builder.body(()).map_err(unusable)?, timeouts)),
        };
        outcome.map(Incoming::new).map_err(connection_error)
    }

    fn with_timeouts<B: ureq::AsSendBody>(
        &self,
        request: http::Request<B>,
        timeouts: ResponseTimeouts,
    ) -> http::Request<B> {
        self.agent
            .configure_request(request)
            .allow_non_standard_methods(true)
            .timeout_recv_response(Some(timeouts.response))
            .timeout_per_read(Some(timeouts.idle.max(timeouts.response)))
            .timeout_per_write(Some(timeouts.response))
            .build()
    }

    /// Requests `path` on a new connection, which is upgraded to raw bytes in both directions. Fails if there is no
    /// response, or if the response refuses the upgrade (with its status and the beginning of its body).
    pub fn upgrade(
        &self,
        path: &str,
        response_timeout: Duration,
    ) -> Result<Result<UpgradedConnection, (u16, String)>, ConnectionError> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
             Content-Length: 0\r\n\r\n",
            self.host(),
            self.user_agent
        );
        upgraded::open(&self.address, &head, CONNECT_TIMEOUT, response_timeout)
    }

    fn host(&self) -> &str {
        match &self.address {
            Address::Unix(_) => "localhost",
            Address::Tcp(authority, _) => authority,
        }
    }

    fn url(&self, path: &str) -> String {
        let scheme = if matches!(self.address, Address::Tcp(_, Some(_))) { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.host())
    }
}

fn connection_error(error: ureq::Error) -> ConnectionError {
    match error {
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => ConnectionError::TimedOut,
        ureq::Error::Io(error) => ConnectionError::Io(error),
        ureq::Error::Timeout(_) => ConnectionError::TimedOut,
        ureq::Error::HostNotFound => ConnectionError::Io(io::Error::new(io::ErrorKind::NotFound, "no such host")),
        other => ConnectionError::InvalidResponse(other.to_string()),
    }
}
