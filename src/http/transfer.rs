//! Streaming uploads and downloads of archives, with GitLab and object stores.
//!
//! Redirects are not followed: the caller decides which server may get a token.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::config::AutoHeaderValue;
use ureq::http;
use ureq::{Agent, SendBody};

use super::client::Method;
use super::error::HttpError;
use super::proxy::Route;
use super::tls::{self, TlsFiles};
use super::url::{origin, parse};
use super::{proxy_health, retry, socket};

/// The part of an error response that is read.
const MAX_EXPLANATION_BYTES: u64 = 64 << 10;
/// Larger bodies are sent with `Expect: 100-continue`, so that the server can refuse them before they are sent.
const MIN_EXPECT_BYTES: u64 = 1 << 20;
/// How long the client waits for `100 Continue` before it sends the body.
const CONTINUE_TIMEOUT: Duration = Duration::from_millis(300);

/// A client for transfers with one server.
pub struct Transfer {
    agent: Agent,
    route: Route,
}

/// The timeouts of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the whole transfer.
    pub total: Duration,
    /// From the end of the request to the response.
    pub response: Duration,
}

/// The body of a request.
pub enum Outgoing<'a> {
    Nothing,
    /// A stream of unknown length.
    Stream(&'a mut dyn Read),
    /// A stream and its length in bytes.
    Sized(&'a mut dyn Read, u64),
}

/// A response with an unread body.
pub struct Incoming {
    pub status: u16,
    headers: http::HeaderMap,
    body: ureq::Body,
}

impl Transfer {
    /// A client for the server of `url`. Fails if a certificate file or the proxy in the environment is unusable.
    pub fn new(url: &str, files: &TlsFiles, user_agent: &str, timeouts: Timeouts) -> Result<Self, HttpError> {
        let uri = parse(url)?;
        let route = Route::from_environment(&uri).map_err(HttpError::Configuration)?;
        let config = socket::plain_config()
            .user_agent(user_agent)
            .accept_encoding(AutoHeaderValue::None)
            .input_buffer_size(128 * 1024)
            .output_buffer_size(128 * 1024)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_await_100(Some(CONTINUE_TIMEOUT))
            .timeout_recv_response(Some(timeouts.response))
            .timeout_global(Some(timeouts.total));
        let trust = route.needs_tls(uri.scheme_str()).then(|| tls::config(files)).transpose();
        let agent = trust.and_then(|trust| socket::agent(config, &route, trust)).map_err(HttpError::Configuration)?;
        Ok(Self { agent, route })
    }

    /// Sends one request. Fails if there is no response.
    pub fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(String, String)],
        body: Outgoing<'_>,
    ) -> Result<Incoming, HttpError> {
        let (server, began) = (origin(url), Instant::now());
        let mut builder = http::Request::builder().method(method.as_str()).uri(url);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let unusable = |why: http::Error| HttpError::Configuration(format!("{server}: {why}"));
        let response = match body {
            Outgoing::Nothing => self.agent.run(builder.body(()).map_err(unusable)?),
            Outgoing::Stream(stream) => {
                let builder = self.with_expect(builder);
                self.agent.run(builder.body(SendBody::from_reader(stream)).map_err(unusable)?)
            }
            Outgoing::Sized(stream, length) => {
                let mut builder = builder.header("Content-Length", length.to_string());
                if length > MIN_EXPECT_BYTES {
                    builder = self.with_expect(builder);
                }
                self.agent.run(builder.body(SendBody::from_reader(stream)).map_err(unusable)?)
            }
        };
        let response = response.map(Incoming::new).map_err(|error| error.to_string());
        let response = response.and_then(|response| {
            match proxy_health::refusal(&self.route, response.status, &response.headers) {
                Some(why) => Err(why),
                None => Ok(response),
            }
        });
        let error = match &response {
            Ok(response) => proxy_health::gateway_error(&self.route, response.status),
            Err(error) => Some(error.clone()),
        };
        proxy_health::record(&self.route, began, error.as_deref());
        response.map_err(|why| HttpError::Transport(format!("{server}: {why}{}", self.route)))
    }

    /// Asks the server to confirm the request before the body is sent. Not through a forwarding proxy: squid adds
    /// header fields to `100 Continue`, which the HTTP library takes for the final response.
    fn with_expect(&self, builder: http::request::Builder) -> http::request::Builder {
        match self.route {
            Route::Forward(_) => builder,
            Route::Direct | Route::Tunnel(_) => builder.header("Expect", "100-continue"),
        }
    }
}

impl Incoming {
    pub(super) fn new(response: http::Response<ureq::Body>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// The value of a header, if it is valid text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The length of the body, if the server sends it.
    pub fn length(&self) -> Option<u64> {
        self.header("Content-Length")?.parse().ok()
    }

    /// The status with its standard reason phrase, for the log.
    pub fn status_line(&self) -> String {
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        format!("{} {}", self.status, reason.unwrap_or("")).trim_end().to_owned()
    }

    /// The delay that the server requests before the next attempt.
    pub fn requested_delay(&self) -> Option<Duration> {
        retry::requested_delay(self.header("RateLimit-ResetTime"), self.header("Retry-After"))
    }

    /// The body as a stream. A truncated body is an error.
    pub fn into_reader(self) -> impl Read {
        let left = self.length();
        CompleteBody { body: self.body.into_reader(), left }
    }

    /// The beginning of the body as text, to explain an error.
    pub fn explanation(self) -> String {
        String::from_utf8_lossy(&self.beginning()).into_owned()
    }

    /// The beginning of the body.
    pub fn beginning(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.body.into_reader().take(MAX_EXPLANATION_BYTES).read_to_end(&mut bytes);
        bytes
    }
}

/// Turns a premature end of the body into an error.
struct CompleteBody<R> {
    body: R,
    left: Option<u64>,
}

impl<R: Read> Read for CompleteBody<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let missing = |left: u64, kind| io::Error::new(kind, format!("{left} bytes are missing"));
        let length = self.body.read(buffer).map_err(|why| match self.left {
            Some(left) if why.kind() == io::ErrorKind::UnexpectedEof => missing(left, why.kind()),
            _ => why,
        })?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(length as u64);
            if length == 0 && *left > 0 && !buffer.is_empty() {
                return Err(missing(*left, io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(length)
    }
}
