//! Requests to one server over kept connections.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::http;
use ureq::{Agent, AsSendBody};

use super::connections::Connections;
use super::error::HttpError;
use super::proxy::Route;
use super::tls::TlsFiles;
use super::url::{is_same_server, origin, parse, resolve};
use super::{proxy_health, retry};

/// The largest response body.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;
/// The maximum number of redirects that the client follows.
const MAX_REDIRECTS: u32 = 10;
/// Headers that the client removes when a redirect leads to another server.
const SECRET_HEADERS: [&str; 4] = ["JOB-TOKEN", "RUNNER-TOKEN", "PRIVATE-TOKEN", "Authorization"];

/// The methods of the Runner API and of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
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
    pub method: Method,
    pub url: String,
    /// Names and values. Headers with tokens are sent only to the URL's own server.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty for none.
    pub body: &'a [u8],
    /// The time limit for the whole exchange, instead of those for a server that may be slow.
    pub timeout: Option<Duration>,
}

/// A response with any status.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: http::HeaderMap,
    /// The decoded body; its beginning if the response is incomplete.
    pub body: Vec<u8>,
    /// Why the body is incomplete; `None` if it is complete.
    pub cut: Option<String>,
}

impl Response {
    /// The value of a header, if it is valid text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The delay that the server requests before the next attempt.
    pub fn requested_delay(&self) -> Option<Duration> {
        retry::requested_delay(self.header("RateLimit-ResetTime"), self.header("Retry-After"))
    }

    /// Whether `Content-Type` is JSON.
    pub fn is_json(&self) -> bool {
        self.header("Content-Type").is_some_and(|kind| {
            kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
        })
    }
}

/// A client for one server. Threads share it.
pub struct Client {
    connections: Connections,
}

impl Client {
    /// A client for the server of `url`. `idle_age` is how long an unused connection is kept. Fails if the URL is not
    /// http or https.
    pub fn new(url: &str, files: &TlsFiles, user_agent: &str, idle_age: Duration) -> Result<Self, HttpError> {
        parse(url)?;
        Ok(Self { connections: Connections::new(files, user_agent, idle_age) })
    }

    /// Sends a request, up to [`retry::MAX_ATTEMPTS`] times while the response has a retryable status. `wait` waits
    /// between two attempts and returns false to stop; the last response is returned. Fails if there is no response.
    pub fn call(&self, request: &Request<'_>, wait: &dyn Fn(Duration) -> bool) -> Result<Response, HttpError> {
        let mut attempt = 0;
        loop {
            let response = self.send(request)?;
            attempt += 1;
            if !retry::is_retryable(response.status) || attempt == retry::MAX_ATTEMPTS {
                return Ok(response);
            }
            let delay = retry::delay(response.requested_delay(), attempt - 1);
            log::debug!("request will be retried status={} wait_ms={}", response.status, delay.as_millis());
            if !wait(delay) {
                return Ok(response);
            }
        }
    }

    /// One attempt; follows redirects.
    fn send(&self, request: &Request<'_>) -> Result<Response, HttpError> {
        let mut request = request.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (agent, route) = self.connections.agent(&request.url)?;
            let began = Instant::now();
            let response = exchange(&agent, &route, &request);
            let error = match &response {
                Ok(response) => proxy_health::gateway_error(&route, response.status),
                Err(error) => Some(error.to_string()),
            };
            proxy_health::record(&route, began, error.as_deref());
            let response = response?;
            let Some(location) = response.header("Location").filter(|_| is_redirect(response.status)) else {
                return Ok(response);
            };
            let target = resolve(&request.url, location)?;
            let is_same_server = is_same_server(&request.url, &target);
            let changes_state = !matches!(request.method, Method::Get | Method::Head);
            if !is_same_server && (changes_state || !request.body.is_empty()) {
                return Err(HttpError::Redirected { from: origin(&request.url), to: origin(&target) });
            }
            // A browser would continue with GET, usually to a sign-in page. The status 200 of that page would not mean
            // that the server has changed its state.
            if changes_state && matches!(response.status, 301..=303) {
                return Ok(response);
            }
            if !is_same_server {
                request.headers.retain(|(name, _)| !is_one_of(name, &SECRET_HEADERS));
            }
            request.url = target;
        }
        Err(HttpError::Transport(format!("{} redirects more than {MAX_REDIRECTS} times", origin(&request.url))))
    }
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn exchange(agent: &Agent, route: &Route, request: &Request<'_>) -> Result<Response, HttpError> {
    let server = origin(&request.url);
    let transport = |error: String| HttpError::Transport(format!("{server}: {error}{route}"));
    let mut builder = http::Request::builder().method(request.method.as_str()).uri(&request.url);
    for (name, value) in &request.headers {
        builder = builder.header(*name, value);
    }
    let unusable = |error: http::Error| HttpError::Configuration(format!("{server}: {error}"));
    let response = if request.body.is_empty() && matches!(request.method, Method::Get | Method::Delete) {
        agent.run(within(agent, builder.body(()).map_err(unusable)?, request.timeout))
    } else {
        // The Runner API has DELETE requests with a body.
        let body = builder.body(request.body).map_err(unusable)?;
        let body = agent.configure_request(body).allow_non_standard_methods(true).build();
        agent.run(within(agent, body, request.timeout))
    }
    .map_err(|error| transport(error.to_string()))?;
    let (parts, body) = response.into_parts();
    if let Some(why) = proxy_health::refusal(route, parts.status.as_u16(), &parts.headers) {
        return Err(transport(why));
    }
    let mut content = Vec::new();
    // An incomplete body is kept: the beginning of a payload identifies the job that must be reported as failed.
    let cut = match body.into_reader().take(MAX_RESPONSE_BYTES).read_to_end(&mut content) {
        Err(error) => Some(format!("{server}: the response body is incomplete: {error}")),
        Ok(length) if length as u64 == MAX_RESPONSE_BYTES => {
            Some(format!("{server}: the response body is larger than {} MiB", MAX_RESPONSE_BYTES >> 20))
        }
        Ok(_) => None,
    };
    Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: content, cut })
}

/// Limits the time of a request.
fn within<B: AsSendBody>(agent: &Agent, request: http::Request<B>, timeout: Option<Duration>) -> http::Request<B> {
    match timeout {
        Some(timeout) => agent.configure_request(request).timeout_global(Some(timeout)).build(),
        None => request,
    }
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}
