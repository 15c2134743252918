//! Requests and answers over one kept connection.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;
use ureq::http;

use super::connections::Connections;
use super::error::Error;
use super::retry;
use super::tls::TlsFiles;
use super::url::{is_same_server, origin, parse, resolve};

/// Bytes of an answer that are read at most.
const ANSWER_MAX: u64 = 64 << 20;
/// Redirects that are followed at most.
const REDIRECTS_MAX: u32 = 10;
/// Headers that are meant for one host only.
const SECRET_HEADERS: [&str; 4] = ["JOB-TOKEN", "RUNNER-TOKEN", "PRIVATE-TOKEN", "Authorization"];
/// Headers that mean nothing without the body they describe.
const BODY_HEADERS: [&str; 2] = ["Content-Type", "Content-Range"];

/// The methods of the Runner API and of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
    /// DELETE
    Delete,
}

impl Method {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// A request.
#[derive(Clone)]
pub struct Request<'a> {
    /// Its method.
    pub method: Method,
    /// Its absolute URL.
    pub url: String,
    /// Names and values; those with tokens stay on the URL's host.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty for none.
    pub body: &'a [u8],
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    headers: http::HeaderMap,
    /// The body, decoded; what came of it where it breaks off.
    pub body: Vec<u8>,
    /// Why the body is not whole.
    pub cut: Option<String>,
    /// How often it was asked for: more than once when the server said that it could not.
    pub tries: u32,
}

impl Response {
    /// A header, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// True for a body that calls itself JSON.
    pub fn is_json(&self) -> bool {
        self.header("Content-Type").is_some_and(|kind| {
            kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
        })
    }
}

/// A client for one server; shared by threads.
pub struct Client {
    connections: Connections,
}

impl Client {
    /// A client for the server of `url`. `idle_age` is how long an unused connection is kept. Errors: the URL is none
    /// of http or https.
    pub fn new(url: &str, files: &TlsFiles, user_agent: &str, idle_age: Duration) -> Result<Self, Error> {
        parse(url)?;
        Ok(Self { connections: Connections::new(files, user_agent, idle_age) })
    }

    /// Makes a call: up to five tries while the server answers that it cannot now; `rest` waits between them and says
    /// false to give up. The last answer is returned as it is. Errors: no answer at all.
    pub fn call(&self, request: &Request<'_>, rest: &dyn Fn(Duration) -> bool) -> Result<Response, Error> {
        let mut attempt = 0;
        loop {
            let mut response = self.send(request)?;
            attempt += 1;
            response.tries = attempt;
            if !retry::is_retryable(response.status) || attempt == retry::TRIES {
                return Ok(response);
            }
            let wait = retry::wait(response.header("RateLimit-ResetTime"), response.header("Retry-After"), attempt - 1);
            log::debug!("asked to come back later status={} wait_ms={}", response.status, wait.as_millis());
            if !rest(wait) {
                return Ok(response);
            }
        }
    }

    /// One try, redirects followed.
    fn send(&self, request: &Request<'_>) -> Result<Response, Error> {
        let mut request = request.clone();
        for _ in 0..=REDIRECTS_MAX {
            let agent = self.connections.agent(&request.url)?;
            let response = exchange(&agent, &request)?;
            let Some(location) = response.header("Location").filter(|_| is_redirect(response.status)) else {
                return Ok(response);
            };
            let target = resolve(&request.url, location)?;
            if matches!(response.status, 301..=303) && !matches!(request.method, Method::Get | Method::Head) {
                (request.method, request.body) = (Method::Get, &[]);
                request.headers.retain(|(name, _)| !is_one_of(name, &BODY_HEADERS));
            }
            if !is_same_server(&request.url, &target) {
                if !request.body.is_empty() {
                    return Err(Error::Redirected { from: origin(&request.url), to: origin(&target) });
                }
                request.headers.retain(|(name, _)| !is_one_of(name, &SECRET_HEADERS));
            }
            request.url = target;
        }
        Err(Error::Transport(format!("{} redirects more than {REDIRECTS_MAX} times", origin(&request.url))))
    }
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn exchange(agent: &Agent, request: &Request<'_>) -> Result<Response, Error> {
    let place = origin(&request.url);
    let transport = |error: ureq::Error| Error::Transport(format!("{place}: {error}"));
    let mut builder = http::Request::builder().method(request.method.as_str()).uri(&request.url);
    for (name, value) in &request.headers {
        builder = builder.header(*name, value);
    }
    let unusable = |error: http::Error| Error::Configuration(format!("{place}: {error}"));
    let response = if request.body.is_empty() && matches!(request.method, Method::Get | Method::Delete) {
        agent.run(builder.body(()).map_err(unusable)?)
    } else {
        // The Runner API has DELETE with a body.
        let request = builder.body(request.body).map_err(unusable)?;
        let request = agent.configure_request(request).allow_non_standard_methods(true).build();
        agent.run(request)
    }
    .map_err(transport)?;
    let (parts, body) = response.into_parts();
    let mut content = Vec::new();
    // What came says enough in many cases: a status, or whose job it is that was handed out.
    let cut = match body.into_reader().take(ANSWER_MAX).read_to_end(&mut content) {
        Err(error) => Some(format!("{place}: the answer breaks off: {error}")),
        Ok(length) if length as u64 == ANSWER_MAX => Some(format!("{place}: the answer is too large")),
        Ok(_) => None,
    };
    Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: content, cut, tries: 1 })
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}
