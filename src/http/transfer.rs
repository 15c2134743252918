//! Long bodies, streamed both ways: archives to and from GitLab and object stores.
//!
//! No redirect is followed here: whoever asks decides where a token may go.

use std::io::{self, Read};
use std::time::Duration;

use ureq::config::AutoHeaderValue;
use ureq::http;
use ureq::{Agent, AsSendBody, SendBody};

use super::client::Method;
use super::error::Error;
use super::proxy::{self, Proxy};
use super::tls::{self, TlsFiles};
use super::url::{origin, parse};
use super::{retry, socket};

/// Bytes of an answer that nobody wants for itself, but for what it says of an error.
const EXPLANATION_MAX: u64 = 64 << 10;
/// From this length on a server is asked whether it wants a body, so that one it refuses is not sent for nothing.
const WELCOME: u64 = 1 << 20;
/// How long a server may think about whether it wants a body at all, before it gets it anyway.
const EXPECT: Duration = Duration::from_millis(300);

/// A client for transfers with one server.
pub struct Transfer {
    agent: Agent,
}

/// How long a transfer may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// All of it.
    pub total: Duration,
    /// From the end of the request to the answer.
    pub answer: Duration,
}

/// What is sent.
pub enum Outgoing<'a> {
    /// Nothing.
    Nothing,
    /// A stream whose end is not known.
    Stream(&'a mut dyn Read),
    /// A stream of so many bytes.
    Sized(&'a mut dyn Read, u64),
}

/// An answer whose body has not been read yet.
pub struct Incoming {
    /// Status code.
    pub status: u16,
    headers: http::HeaderMap,
    body: ureq::Body,
}

impl Transfer {
    /// A client for the server of `url`. Errors: a certificate file or the environment's proxy cannot be used.
    pub fn new(url: &str, files: &TlsFiles, user_agent: &str, patience: Patience) -> Result<Self, Error> {
        let uri = parse(url)?;
        let proxy = proxy::of_environment(&uri).map_err(Error::Configuration)?;
        let is_tls = uri.scheme_str() == Some("https") || proxy.as_ref().is_some_and(Proxy::is_tls);
        let mut config = socket::plain_config()
            .user_agent(user_agent)
            .accept_encoding(AutoHeaderValue::None)
            .proxy(proxy.as_ref().map(Proxy::for_agent))
            .input_buffer_size(128 * 1024)
            .output_buffer_size(128 * 1024)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_await_100(Some(EXPECT))
            .timeout_recv_response(Some(patience.answer))
            .timeout_global(Some(patience.total));
        if is_tls {
            config = config.tls_config(tls::config(files).map_err(Error::Configuration)?);
        }
        Ok(Self { agent: socket::agent(config.build()) })
    }

    /// Makes one request. Errors: no answer.
    pub fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(String, String)],
        body: Outgoing<'_>,
    ) -> Result<Incoming, Error> {
        let place = origin(url);
        let mut builder = http::Request::builder().method(method.as_str()).uri(url);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let unusable = |why: http::Error| Error::Configuration(format!("{place}: {why}"));
        let response = match body {
            Outgoing::Nothing => self.agent.run(builder.body(()).map_err(unusable)?),
            Outgoing::Stream(stream) => {
                let builder = builder.header("Expect", "100-continue");
                self.run(builder.body(SendBody::from_reader(stream)).map_err(unusable)?)
            }
            Outgoing::Sized(stream, length) => {
                let mut builder = builder.header("Content-Length", length.to_string());
                if length > WELCOME {
                    builder = builder.header("Expect", "100-continue");
                }
                self.run(builder.body(SendBody::from_reader(stream)).map_err(unusable)?)
            }
        };
        response.map(Incoming::of).map_err(|why| Error::Transport(format!("{place}: {why}")))
    }

    fn run(&self, request: http::Request<impl AsSendBody>) -> Result<http::Response<ureq::Body>, ureq::Error> {
        self.agent.run(request)
    }
}

impl Incoming {
    pub(super) fn of(response: http::Response<ureq::Body>) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// A header, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The length of the body, where the server says it.
    pub fn length(&self) -> Option<u64> {
        self.header("Content-Length")?.parse().ok()
    }

    /// Status and its usual name, for the log.
    pub fn status_line(&self) -> String {
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        format!("{} {}", self.status, reason.unwrap_or("")).trim_end().to_owned()
    }

    /// How long to wait before asking again, after so many tries.
    pub fn wait(&self, tries: u32) -> Duration {
        retry::wait(self.header("RateLimit-ResetTime"), self.header("Retry-After"), tries)
    }

    /// The body as it comes in; that it ends where it should is checked.
    pub fn into_reader(self) -> impl Read {
        let left = self.length();
        Whole { body: self.body.into_reader(), left }
    }

    /// The beginning of the body, as the explanation of an error.
    pub fn explanation(self) -> String {
        String::from_utf8_lossy(&self.beginning()).into_owned()
    }

    /// The beginning of the body.
    pub fn beginning(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.body.into_reader().take(EXPLANATION_MAX).read_to_end(&mut bytes);
        bytes
    }
}

/// A body that ends too early is an error, not an end.
struct Whole<R> {
    body: R,
    left: Option<u64>,
}

impl<R: Read> Read for Whole<R> {
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
