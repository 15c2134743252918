//! Requests and answers over one kept connection.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use ureq::Agent;
use ureq::http;

use super::connections::{self, Connections};
use super::retry;
use super::tls::TlsFiles;

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
    connections: Connections,
}

impl Client {
    /// A client for the server of `url`. `idle_age` is how long an unused connection is kept. Errors: the URL is none
    /// of http or https.
    pub fn new(url: &str, files: &TlsFiles, user_agent: &str, idle_age: Duration) -> Result<Self, Error> {
        connections::parse(url)?;
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

/// Scheme, host and port of a URL, for comparison and for messages: never a path or a query, which may hold secrets.
pub fn origin(url: &str) -> String {
    let end = url.find("://").map_or(0, |at| at + 3);
    let host_end = url[end..].find(['/', '?', '#']).map_or(url.len(), |at| end + at);
    let authority = &url[end..host_end];
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}{}", &url[..end], host).to_ascii_lowercase()
}

/// Whether two URLs mean the same scheme, host and port.
pub fn is_same_server(one: &str, other: &str) -> bool {
    let with_port = |url: &str| {
        let origin = origin(url);
        let default = if origin.starts_with("https:") { ":443" } else { ":80" };
        origin.strip_suffix(default).map(str::to_owned).unwrap_or(origin)
    };
    with_port(one) == with_port(other)
}

/// Where a `Location` leads from `base` (RFC 3986, without dot segments: servers do not send them). Errors: it is none of
/// http or https.
pub fn resolve(base: &str, location: &str) -> Result<String, Error> {
    let location = location.trim();
    let target = match location.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()) {
        Some(scheme) if scheme == "http" || scheme == "https" => {
            format!("{scheme}{}", location.get(scheme.len()..).unwrap_or_default())
        }
        Some(_) if location.contains("://") && !location.starts_with(['/', '?']) => location.to_owned(),
        _ if location.starts_with("//") => {
            format!("{}:{location}", base.split(':').next().unwrap_or("https"))
        }
        _ if location.starts_with('/') => format!("{}{location}", origin(base)),
        _ => {
            let path = base.split(['?', '#']).next().unwrap_or(base);
            let directory = path.rfind('/').filter(|at| *at >= origin(base).len()).map_or(path, |at| &path[..at]);
            format!("{directory}/{location}")
        }
    };
    match connections::parse(&target) {
        Ok(_) => Ok(target),
        Err(_) => Err(Error::Transport(format!("{} redirects to something that is no URL", origin(base)))),
    }
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
        assert_eq!(resolve("https://h/a", "//x/b").expect("a URL"), "https://x/b");
        assert_eq!(resolve("http://h/a/b?c=/d", "e?f").expect("a URL"), "http://h/a/e?f");
        assert_eq!(resolve("http://h", "HTTPS://X/b").expect("a URL"), "https://X/b");
        for nonsense in ["ftp://x/b", "https://", "http://a b/", "//"] {
            assert!(resolve("http://h:1/a", nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_port_that_goes_without_saying_makes_no_other_server() {
        assert!(is_same_server("https://h/a", "https://H:443/b"));
        assert!(is_same_server("http://h:80", "http://h/"));
        for other in ["http://h/", "https://h:80/", "https://h.test/", "https://h@evil.test/"] {
            assert!(!is_same_server("https://h/a", other), "{other}");
        }
    }
}
