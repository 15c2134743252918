//! Sends one request to an AWS service: resolves the endpoint, signs, sends, and decodes errors.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};

use super::credentials::AwsCredentials;
use super::endpoint::{self, AwsService};
use super::environment::variable;
use super::profile::Profiles;
use super::service_error::{RequestFailure, ServiceError};
use super::sign::{CredentialScope, SignedRequest, authorize};
use crate::http::tls::TlsFiles;
use crate::http::{Incoming, Method, Outgoing, Timeouts, Transfer, escape, http_date};

/// The timeouts of one request.
const TIMEOUTS: Timeouts = Timeouts { total: Duration::from_secs(15), response: Duration::from_secs(10) };
/// Maximum size of a response, in bytes.
const MAX_RESPONSE: u64 = 4 << 20;

/// A request without its endpoint.
pub struct AwsRequest {
    /// Name of the action.
    pub action: String,
    content_type: &'static str,
    /// `X-Amz-Target`, for the JSON protocol.
    target: Option<String>,
    body: String,
}

impl AwsRequest {
    /// A call of the query protocol (Auto Scaling, EC2, STS).
    pub fn query(version: &str, action: &str, parameters: &[(&str, &str)]) -> Self {
        let mut body = format!("Action={action}&Version={version}");
        for (name, value) in parameters {
            body.push_str(&format!("&{}={}", escape(name, b""), escape(value, b"")));
        }
        let content_type = "application/x-www-form-urlencoded; charset=utf-8";
        Self { action: action.to_owned(), content_type, target: None, body }
    }

    /// A call of the JSON protocol 1.1; `prefix` is the target prefix (`AmazonSSM`).
    pub fn json(prefix: &str, action: &str, body: String) -> Self {
        let target = Some(format!("{prefix}.{action}"));
        Self { action: action.to_owned(), content_type: "application/x-amz-json-1.1", target, body }
    }
}

/// Seconds that the local clock is behind AWS.
static CLOCK_OFFSET_SECONDS: AtomicI64 = AtomicI64::new(0);

fn now() -> Timestamp {
    let behind = SignedDuration::from_secs(CLOCK_OFFSET_SECONDS.load(Ordering::Relaxed));
    Timestamp::now().checked_add(behind).unwrap_or_else(|_| Timestamp::now())
}

/// Sends requests to one service in one region.
pub struct Transport {
    service: AwsService,
    region: String,
    url: String,
    transfer: Transfer,
}

impl Transport {
    /// Configures the endpoint, the proxy and the certificates from the environment and the shared files. Errors: the
    /// URL, the proxy or `AWS_CA_BUNDLE` is not usable.
    pub fn new(service: AwsService, region: &str, profiles: &Profiles) -> Result<Self, String> {
        let url = endpoint::url(service, region, profiles, &variable);
        let files = TlsFiles { ca_file: variable("AWS_CA_BUNDLE").map(PathBuf::from), ..TlsFiles::default() };
        let transfer = Transfer::new(&url, &files, "mayfly", TIMEOUTS).map_err(|error| error.to_string())?;
        Ok(Self { service, region: region.to_owned(), url, transfer })
    }

    /// Sends a request, and once more if its signature was rejected because the local clock is wrong. Without
    /// credentials the request is not signed. Errors: see [`RequestFailure`].
    pub fn send(&self, request: &AwsRequest, credentials: Option<&AwsCredentials>) -> Result<String, RequestFailure> {
        let outcome = self.try_once(request, credentials);
        let Err(RequestFailure::Refused(problem)) = &outcome else { return outcome };
        let Some(behind) = problem.clock_skew_seconds(SystemTime::now()) else { return outcome };
        if CLOCK_OFFSET_SECONDS.swap(behind, Ordering::Relaxed) == behind {
            return outcome;
        }
        log::warn!(
            "this machine's clock differs from that of AWS; signing with the time of AWS; set the clock behind={behind}s"
        );
        self.try_once(request, credentials)
    }

    /// Signs a request that another party sends, together with these headers. Returns the headers to send.
    pub fn sign(
        &self,
        request: &AwsRequest,
        more: Vec<(String, String)>,
        credentials: &AwsCredentials,
    ) -> Vec<(String, String)> {
        let mut headers = vec![("Content-Type".to_owned(), request.content_type.to_owned())];
        headers.extend(more);
        let signature = self.signature(request, &headers, credentials);
        headers.extend(signature);
        headers
    }

    /// Sends a request that another party signed. Errors: see [`RequestFailure`].
    pub fn send_signed(&self, request: &AwsRequest, headers: &[(String, String)]) -> Result<String, RequestFailure> {
        self.post(request, headers)
    }

    fn try_once(&self, request: &AwsRequest, credentials: Option<&AwsCredentials>) -> Result<String, RequestFailure> {
        let mut headers = vec![("Content-Type".to_owned(), request.content_type.to_owned())];
        headers.extend(request.target.iter().map(|target| ("X-Amz-Target".to_owned(), target.clone())));
        if let Some(credentials) = credentials {
            headers.extend(self.signature(request, &headers, credentials));
        }
        self.post(request, &headers)
    }

    fn post(&self, request: &AwsRequest, headers: &[(String, String)]) -> Result<String, RequestFailure> {
        let mut body = request.body.as_bytes();
        let length = body.len() as u64;
        let url = if has_path(&self.url) { self.url.clone() } else { format!("{}/", self.url) };
        let sent = self.transfer.send(Method::Post, &url, headers, Outgoing::Sized(&mut body, length));
        read(sent.map_err(|error| RequestFailure::NoResponse(error.to_string()))?)
    }

    fn signature(
        &self,
        request: &AwsRequest,
        headers: &[(String, String)],
        credentials: &AwsCredentials,
    ) -> Vec<(String, String)> {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("https", &self.url));
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let usual = if scheme == "https" { ":443" } else { ":80" };
        let host = authority.strip_suffix(usual).unwrap_or(authority);
        let headers = headers.to_vec();
        let target = SignedRequest { method: "POST", scheme, host, path, query: Vec::new(), headers };
        let scope = CredentialScope { region: &self.region, service: self.service.name };
        authorize(&target, request.body.as_bytes(), credentials, scope, now())
    }
}

fn has_path(url: &str) -> bool {
    url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'))
}

fn read(answer: Incoming) -> Result<String, RequestFailure> {
    let status = answer.status;
    let at = answer.header("Date").and_then(http_date);
    let kind = answer.header("x-amzn-ErrorType").map(str::to_owned);
    let mut bytes = Vec::new();
    let outcome = answer.into_reader().take(MAX_RESPONSE).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match (status, outcome) {
        (200..=299, Ok(_)) => Ok(text),
        (200..=299, Err(error)) => Err(RequestFailure::NoResponse(format!("the response is incomplete: {error}"))),
        _ => Err(RequestFailure::Refused(ServiceError::decode(status, kind.as_deref(), &text, at))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::TestServer;

    fn transport(server: &TestServer) -> Transport {
        let transfer = Transfer::new(&server.url, &TlsFiles::default(), "mayfly", TIMEOUTS).expect("a client");
        Transport { service: endpoint::SSM, region: "eu-west-1".to_owned(), url: server.url.clone(), transfer }
    }

    #[test]
    fn a_wrong_clock_is_corrected_once() {
        let refused = "HTTP/1.1 400 X\r\nDate: Sun, 06 Nov 2044 08:49:37 GMT\r\nContent-Length: 38\r\n\r\n\
                       {\"__type\":\"InvalidSignatureException\"}";
        let server = TestServer::new(&[refused, "HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{}"]);
        let request = AwsRequest::json("AmazonSSM", "GetParameter", "{}".to_owned());
        let answer = transport(&server).send(&request, Some(&AwsCredentials::fixed("A", "S")));
        CLOCK_OFFSET_SECONDS.store(0, Ordering::Relaxed);
        assert_eq!(answer, Ok("{}".to_owned()));
        let seen = server.seen();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].header("x-amz-target"), Some("amazonssm.getparameter"));
        assert!(seen[1].header("x-amz-date").is_some_and(|date| date.starts_with("20441106t08")), "{}", seen[1].head);
        let signed = "signedheaders=content-type;host;x-amz-date;x-amz-target, signature=";
        assert!(seen[0].header("authorization").is_some_and(|header| header.contains(signed)), "{}", seen[0].head);
    }
}
