//! Requests and answers over one kept connection.

use std::fmt;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::Agent;
use ureq::http;

use super::tls::{self, Stamp, TlsFiles};
use super::{proxy, retry};

/// Bytes of an answer that are read at most.
const ANSWER_MAX: u64 = 64 << 20;
/// Redirects that are followed at most.
const REDIRECTS_MAX: u32 = 10;
/// Headers that are meant for one host only.
const SECRET_HEADERS: [&str; 4] = ["JOB-TOKEN", "RUNNER-TOKEN", "PRIVATE-TOKEN", "Authorization"];

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
    /// The body, decoded.
    pub body: Vec<u8>,
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

/// Why a request got no answer.
#[derive(Debug)]
pub enum Error {
    /// A URL that cannot be used, or a certificate file that cannot be read.
    Configuration(String),
    /// The network, TLS, or the server's way of speaking.
    Transport(String),
    /// The server sends a call with a secret in its body to another host.
    Redirected { from: String, to: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(why) | Self::Transport(why) => f.write_str(why),
            Self::Redirected { from, to } => write!(
                f,
                "{from} redirects the call to {to}; a token is not sent to another host: put the right `url` into the \
                 configuration"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// A client for one server; shared by threads.
pub struct Client {
    base: http::Uri,
    files: TlsFiles,
    user_agent: String,
    idle_age: Duration,
    transport: Mutex<Option<(Agent, Stamp)>>,
}

impl Client {
    /// A client for the server of `url`. `idle_age` is how long an unused connection is kept. Errors: the URL is none
    /// of http or https.
    pub fn new(url: &str, files: &TlsFiles, user_agent: &str, idle_age: Duration) -> Result<Self, Error> {
        let base: http::Uri =
            url.parse().map_err(|error| Error::Configuration(format!("`{url}` is not a URL: {error}")))?;
        if !matches!(base.scheme_str(), Some("http" | "https")) || base.host().is_none_or(str::is_empty) {
            return Err(Error::Configuration(format!("`{url}` is not an http or https URL")));
        }
        let user_agent = user_agent.to_owned();
        Ok(Self { base, files: files.clone(), user_agent, idle_age, transport: Mutex::new(None) })
    }

    /// Makes a call: up to five tries while the server answers that it cannot now; `rest` waits between them and says
    /// false to give up. The last answer is returned as it is. Errors: no answer at all.
    pub fn call(&self, request: &Request<'_>, rest: &dyn Fn(Duration) -> bool) -> Result<Response, Error> {
        let mut attempt = 0;
        loop {
            let response = self.send(request)?;
            attempt += 1;
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
        let agent = self.agent()?;
        let mut request = request.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = exchange(&agent, &request)?;
            let Some(location) = response.header("Location").filter(|_| is_redirect(response.status)) else {
                return Ok(response);
            };
            let target = resolve(&request.url, location)?;
            if matches!(response.status, 301..=303) && request.method != Method::Get {
                (request.method, request.body) = (Method::Get, &[]);
            }
            let (from, to) = (origin(&request.url), origin(&target));
            if from != to {
                if !request.body.is_empty() {
                    return Err(Error::Redirected { from, to });
                }
                request
                    .headers
                    .retain(|(name, _)| !SECRET_HEADERS.iter().any(|secret| secret.eq_ignore_ascii_case(name)));
            }
            request.url = target;
        }
        Err(Error::Transport(format!("{} redirects more than {REDIRECTS_MAX} times", origin(&request.url))))
    }

    /// The connection pool; made anew when a certificate file has changed.
    fn agent(&self) -> Result<Agent, Error> {
        let mut transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if let Some((agent, built_from)) = transport.as_ref()
            && *built_from == stamp
        {
            return Ok(agent.clone());
        }
        let agent = self.build()?;
        *transport = Some((agent.clone(), stamp));
        Ok(agent)
    }

    fn build(&self) -> Result<Agent, Error> {
        let scheme = self.base.scheme_str().unwrap_or("https");
        let host = self.base.host().unwrap_or_default();
        let proxy = proxy::for_url(scheme, host, |name| std::env::var(name).ok());
        let proxy = proxy.map(|proxy| ureq::Proxy::new(&proxy)).transpose();
        let proxy = proxy.map_err(|error| Error::Configuration(format!("the proxy of the environment: {error}")))?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(self.user_agent.as_str())
            .proxy(proxy)
            .input_buffer_size(16 * 1024)
            .output_buffer_size(16 * 1024)
            .max_idle_connections(100)
            .max_idle_age(self.idle_age.min(Duration::from_secs(90)))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(600)))
            .timeout_global(Some(Duration::from_secs(3600)));
        if scheme == "https" {
            config = config.tls_config(tls::config(&self.files).map_err(Error::Configuration)?);
        }
        Ok(config.build().new_agent())
    }
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
    body.into_reader()
        .take(ANSWER_MAX)
        .read_to_end(&mut content)
        .map_err(|error| Error::Transport(format!("{place}: the answer breaks off: {error}")))?;
    Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: content })
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Scheme, host and port of a URL, for comparison and for messages: never a path or a query, which may hold secrets.
pub fn origin(url: &str) -> String {
    let end = url.find("://").map_or(0, |at| at + 3);
    let host_end = url[end..].find(['/', '?', '#']).map_or(url.len(), |at| end + at);
    let authority = &url[end..host_end];
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}{}", &url[..end], host).to_ascii_lowercase()
}

fn resolve(base: &str, location: &str) -> Result<String, Error> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Ok(location.to_owned());
    }
    if location.starts_with('/') && !location.starts_with("//") {
        return Ok(format!("{}{location}", origin(base)));
    }
    Err(Error::Transport(format!("{} redirects to something that is no URL", origin(base))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_secrets() {
        assert_eq!(origin("https://user:pass@Host.test:8443/a?private_token=x"), "https://host.test:8443");
        assert_eq!(origin("http://h"), "http://h");
    }

    #[test]
    fn resolves_locations() {
        assert_eq!(resolve("http://h:1/a", "/b").expect("a URL"), "http://h:1/b");
        assert_eq!(resolve("http://h:1/a", "https://x/b").expect("a URL"), "https://x/b");
        assert!(resolve("http://h:1/a", "//x/b").is_err());
    }
}
