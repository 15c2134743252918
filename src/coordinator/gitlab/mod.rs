//! GitLab over the Runner API: one client per server and set of certificates.

mod health;
mod info;
mod jobs;
mod runners;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decode;
use crate::digest::hex;
use crate::http::tls::TlsFiles;
use crate::http::{Client, HttpError, Method, Request, Response};
use crate::monitor::metrics;
use crate::random;
use crate::sync::{self, StopSignal};
use crate::version::user_agent;

pub use health::ServerHealth;
pub(super) use health::{server_answered, server_failed};
pub use info::RunnerManagerInfo;
pub use jobs::PendingReply;
pub use runners::{NewRunner, Registration, TokenStatus};

const JOBS_REQUEST: &str = "jobs/request";

/// A GitLab server.
pub struct GitLab {
    base: String,
    client: Client,
    info: RunnerManagerInfo,
    /// The timeout of a request about a job. If set, the request is sent once, and the caller retries.
    job_timeout: Option<Duration>,
    /// An opaque value from GitLab's last response. GitLab compares it to find out whether the runner's queue may have
    /// changed.
    last_update: Mutex<String>,
    /// Ends the delays between retries.
    stop: StopSignal,
    /// The server's time in its last response.
    server_date: Mutex<Option<SystemTime>>,
    tls: TlsFiles,
    /// The server's certificate chain; empty until the client has fetched it.
    chain: OnceLock<Option<String>>,
}

#[derive(Debug)]
pub enum ApiError {
    /// The token is unknown or not allowed (401, 403).
    Refused(String),
    /// Another response that is not a success.
    Status(u16, String),
    /// No usable response.
    Unreachable(String),
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "GitLab rejected the token: {why}"),
            Self::Status(status, why) => write!(f, "status {status}: {why}"),
            Self::Unreachable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ApiError {}

impl From<HttpError> for ApiError {
    fn from(error: HttpError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl GitLab {
    /// A client for the server at `url`. Fails if the URL or a certificate file is unusable.
    pub fn new(
        url: &str,
        tls: &TlsFiles,
        info: RunnerManagerInfo,
        connection_max_age: Duration,
    ) -> Result<Self, HttpError> {
        let base = api_base(url);
        let client = Client::new(&base, tls, &user_agent(), connection_max_age)?;
        Ok(Self {
            base,
            client,
            info,
            job_timeout: None,
            last_update: Mutex::new(String::new()),
            stop: StopSignal::default(),
            server_date: Mutex::new(None),
            tls: tls.clone(),
            chain: OnceLock::new(),
        })
    }

    /// Sends each request about a job only once, with this timeout. For a caller with many jobs: a request that hangs
    /// must not delay the others.
    pub fn with_job_timeout(self, timeout: Duration) -> Self {
        Self { job_timeout: Some(timeout), ..self }
    }

    /// The server's time in its last response, if it sent one.
    pub fn server_date(&self) -> Option<SystemTime> {
        *sync::lock(&self.server_date)
    }

    /// The server's certificate chain, fetched once. If the server is unreachable, the next call retries.
    fn chain(&self) -> Option<String> {
        if let Some(known) = self.chain.get() {
            return known.clone();
        }
        match crate::http::diagnose::trusted_chain(&self.base, &self.tls) {
            Ok(chain) => self.chain.get_or_init(|| chain).clone(),
            Err(why) => {
                log::warn!("cannot read the certificates of GitLab for jobs (CI_SERVER_TLS_CA_FILE) error={why}");
                None
            }
        }
    }

    /// Ends the delays between retries, because the agent is about to exit.
    pub fn stop_waiting(&self) {
        self.stop.stop();
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        headers: Vec<(&'static str, String)>,
        body: &[u8],
    ) -> Result<Response, HttpError> {
        self.send_within(self.job_timeout.filter(|_| path != JOBS_REQUEST), method, path, headers, body)
    }

    /// Sends a request; with a timeout only once.
    fn send_within(
        &self,
        timeout: Option<Duration>,
        method: Method,
        path: &str,
        headers: Vec<(&'static str, String)>,
        body: &[u8],
    ) -> Result<Response, HttpError> {
        let mut headers = headers;
        headers.push(("X-Request-Id", request_id()));
        let request = Request { method, url: format!("{}{path}", self.base), headers, body, timeout };
        let is_repeated = path != JOBS_REQUEST && timeout.is_none();
        let response = self.client.call(&request, &|duration| is_repeated && !self.stop.wait(duration));
        metrics::called(endpoint(method, path), response.as_ref().ok().map(|response| response.status));
        let response = response?;
        let date = response.header("Date").and_then(crate::http::http_date);
        *sync::lock(&self.server_date) = date;
        log::debug!("request answered method={method:?} path={path} status={}", response.status);
        match &response.cut {
            // A poll response counts as a job even if its payload is incomplete. Any other request can be repeated, and
            // an incomplete response does not prove that the request took effect.
            Some(why) if path != JOBS_REQUEST => Err(HttpError::Transport(why.clone())),
            _ => Ok(response),
        }
    }

    fn send_json(
        &self,
        method: Method,
        path: &str,
        secret: Option<(&'static str, &str)>,
        body: &impl Serialize,
    ) -> Result<Response, HttpError> {
        let body = serde_json::to_vec(body).map_err(|error| HttpError::Configuration(error.to_string()))?;
        let mut headers = vec![("Content-Type", "application/json".to_owned())];
        if !matches!(method, Method::Put | Method::Delete) {
            headers.push(("Accept", "application/json".to_owned()));
        }
        headers.extend(secret.map(|(name, value)| (name, value.to_owned())));
        self.send(method, path, headers, &body)
    }
}

/// The name of an endpoint in metrics.
fn endpoint(method: Method, path: &str) -> &'static str {
    match (method, path) {
        (_, JOBS_REQUEST) => "request_job",
        (Method::Patch, _) => "patch_trace",
        (Method::Put, _) => "update_job",
        _ => "manage_runner",
    }
}

/// The base URL of the API: the configured URL without trailing slashes and without the old suffix `/ci`.
pub fn api_base(url: &str) -> String {
    let trimmed = url.trim().trim_end_matches('/');
    let trimmed = trimmed.strip_suffix("/ci").unwrap_or(trimmed).trim_end_matches('/');
    format!("{trimmed}/api/v4/")
}

/// Thirty-two random hexadecimal digits, different for each request.
pub fn request_id() -> String {
    hex(&random::bytes::<16>())
}

/// Decodes a response that must be JSON.
fn decode<T: DeserializeOwned>(response: &Response) -> Result<T, ApiError> {
    if !response.is_json() {
        let kind = response.header("Content-Type").unwrap_or("no content type");
        return Err(ApiError::Unreachable(format!(
            "the server answers {} with {kind} instead of JSON; check that `url` is the address of GitLab, and that no \
             sign-in page or proxy answers in its place",
            response.status
        )));
    }
    decode::json(&response.body)
        .map_err(|error| ApiError::Unreachable(format!("status {} with broken JSON: {error}", response.status)))
}

/// The server's error message, shortened; error bodies contain none of the agent's secrets.
fn error_text(response: &Response) -> String {
    let parsed: Option<serde_json::Value> = decode::json(&response.body).ok();
    let message = parsed.as_ref().and_then(|value| value.get("message").or(value.get("error")));
    match message {
        Some(serde_json::Value::String(text)) => text.chars().take(300).collect(),
        Some(other) => other.to_string().chars().take(300).collect(),
        None => "no explanation".to_owned(),
    }
}
