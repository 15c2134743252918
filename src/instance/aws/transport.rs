//! Sends one request to an AWS service: resolves the endpoint, signs, sends, and decodes errors.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::credentials::AwsCredentials;
use super::endpoint::{self, AwsService};
use super::environment::variable;
use super::profile::Profiles;
use super::sign::{CredentialScope, SignedRequest, authorize};
use super::xml;
use crate::backoff::Backoff;
use crate::decode;
use crate::http::tls::TlsFiles;
use crate::http::{Incoming, Method, Outgoing, Timeouts, Transfer, escape, http_date};

/// The timeouts of one request.
const TIMEOUTS: Timeouts = Timeouts { total: Duration::from_secs(15), response: Duration::from_secs(10) };
/// Maximum size of an answer.
const ANSWER_MAX: u64 = 4 << 20;
/// Maximum length of an error message.
const MESSAGE_MAX: usize = 300;
/// A signature is rejected because of the clock only if the clocks differ by more than this.
const CLOCK_SKEW_MIN: Duration = Duration::from_secs(4 * 60);
/// The delay of a retry is a random part of this back-off.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(20)).with_jitter(1.0);

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

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    /// The service answered with an error.
    Refused(ServiceError),
    /// No usable answer. The request may have had its effect.
    NoResponse(String),
}

/// An error of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    pub status: u16,
    /// `AccessDenied`, `Throttling`, …; `Status500` and the like if the answer has no code.
    pub code: String,
    /// The message, in one line.
    pub message: String,
    /// The `Date` of the answer.
    at: Option<SystemTime>,
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(problem) => write!(f, "{}: {}", problem.code, problem.message),
            Self::NoResponse(why) => f.write_str(why),
        }
    }
}

/// Error codes that allow a retry, regardless of the status (AWS SDKs and Tools Reference Guide, retry behavior).
const RETRYABLE_CODES: [&str; 19] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "ProvisionedThroughputExceededException",
    "TransactionInProgressException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "LimitExceededException",
    "SlowDown",
    "EC2ThrottledException",
    "PriorRequestNotComplete",
    "RequestTimeout",
    "RequestTimeoutException",
    // Codes of Auto Scaling.
    "ResourceContention",
    "ScalingActivityInProgress",
    "ScalingActivityInProgressFault",
];
const EXPIRED_CODES: [&str; 4] =
    ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidClientTokenId"];
const CLOCK_SKEW_CODES: [&str; 6] = [
    "RequestTimeTooSkewed",
    "RequestExpired",
    "RequestInTheFuture",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "AuthFailure",
];

impl ServiceError {
    /// Whether a retry may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self.status, 429 | 500 | 502 | 503 | 504) || RETRYABLE_CODES.contains(&self.code.as_str())
    }

    /// Whether new credentials may help.
    pub fn is_expiry(&self) -> bool {
        EXPIRED_CODES.contains(&self.code.as_str())
    }

    /// How many seconds the local clock is behind the service's, if the signature was rejected because of that.
    fn skew(&self, now: SystemTime) -> Option<i64> {
        let at = self.at.filter(|_| CLOCK_SKEW_CODES.contains(&self.code.as_str()))?;
        let (skew, sign) = match at.duration_since(now) {
            Ok(ahead) => (ahead, 1),
            Err(behind) => (behind.duration(), -1),
        };
        (skew > CLOCK_SKEW_MIN).then(|| sign * i64::try_from(skew.as_secs()).unwrap_or(0))
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
        let Some(behind) = problem.skew(SystemTime::now()) else { return outcome };
        if CLOCK_OFFSET_SECONDS.swap(behind, Ordering::Relaxed) == behind {
            return outcome;
        }
        log::warn!(
            "this machine's clock differs from that of AWS; signing with the time of AWS; set the clock seconds={behind}"
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
    let outcome = answer.into_reader().take(ANSWER_MAX).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match (status, outcome) {
        (200..=299, Ok(_)) => Ok(text),
        (200..=299, Err(error)) => Err(RequestFailure::NoResponse(format!("the response is incomplete: {error}"))),
        _ => Err(RequestFailure::Refused(explain(status, kind.as_deref(), &text, at))),
    }
}

/// An error of the JSON protocol.
#[derive(Deserialize)]
struct JsonError {
    #[serde(rename = "__type", default)]
    kind: String,
    #[serde(alias = "Message", default)]
    message: String,
}

fn explain(status: u16, kind: Option<&str>, body: &str, at: Option<SystemTime>) -> ServiceError {
    let json: Option<JsonError> = decode::json(body.as_bytes()).ok();
    let kind = kind.map(str::to_owned).or_else(|| Some(json.as_ref()?.kind.clone()).filter(|kind| !kind.is_empty()));
    // `com.amazonaws.ssm#ParameterNotFound:http://…`
    let kind = kind.as_deref().and_then(|kind| kind.split(':').next()?.rsplit('#').next().map(str::to_owned));
    let code = kind.or_else(|| xml::element(body, "Code")).filter(|code| is_code(code));
    let message = json.map(|json| json.message).or_else(|| xml::element(body, "Message")).unwrap_or_default();
    // Further lines repeat the request with the session token.
    let line = message.lines().next().unwrap_or_default();
    let message = match line.trim() {
        "" => format!("status {status} without a message"),
        line => line.chars().take(MESSAGE_MAX).collect(),
    };
    ServiceError { status, code: code.unwrap_or_else(|| format!("Status{status}")), message, at }
}

fn is_code(code: &str) -> bool {
    code.starts_with(|first: char| first.is_ascii_alphabetic())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Retries temporary failures for `timeout` in total, with exponential back-off and jitter.
pub fn retry_until<T>(
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, RequestFailure>,
) -> Result<T, RequestFailure> {
    let began = Instant::now();
    let mut tries = 0;
    loop {
        let failure = match attempt() {
            Ok(answer) => return Ok(answer),
            Err(RequestFailure::Refused(problem)) if !problem.is_temporary() => {
                return Err(RequestFailure::Refused(problem));
            }
            Err(failure) => failure,
        };
        let wait = retry_delay(tries);
        tries += 1;
        if began.elapsed() + wait >= timeout {
            return Err(failure);
        }
        log::debug!("retrying a call to AWS wait_ms={} error={failure}", wait.as_millis());
        thread::sleep(wait);
    }
}

/// The delay after `tries` failures: full jitter, so that clients that failed together do not retry together.
pub fn retry_delay(tries: u32) -> Duration {
    BACKOFF.delay(tries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::TestServer;
    use std::cell::Cell;

    fn problem(status: u16, body: &str) -> ServiceError {
        explain(status, None, body, None)
    }

    #[test]
    fn reads_the_errors_of_each_protocol() {
        let query = "<ErrorResponse xmlns=\"http://a/\"><Error><Type>Sender</Type><Code>AccessDenied</Code>\
                     <Message>User: x is not authorized\nThe Canonical String: secret</Message></Error></ErrorResponse>";
        let ec2 = "<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>slow</Message></Error></Errors>\
                   <RequestID>1</RequestID></Response>";
        let json = r#"{"__type":"com.amazonaws.ssm#ParameterNotFound","message":"no"}"#;
        assert_eq!(problem(403, query).code, "AccessDenied");
        assert_eq!(problem(403, query).message, "User: x is not authorized");
        assert_eq!((problem(503, ec2).code, problem(503, ec2).message), ("RequestLimitExceeded".into(), "slow".into()));
        assert_eq!(problem(400, json).code, "ParameterNotFound");
        let header = Some("ThrottlingException:http://internal.amazon.com/x/");
        assert_eq!(explain(400, header, "{}", None).code, "ThrottlingException");
        for nonsense in ["<html><h1>500</h1>", "", "{", "{\"__type\":\"403\"}"] {
            assert_eq!(problem(500, nonsense).code, "Status500", "{nonsense}");
        }
    }

    #[test]
    fn knows_retryable_errors() {
        let with = |status, code: &str| ServiceError { code: code.to_owned(), ..problem(status, "") };
        assert!(with(500, "ResourceContention").is_temporary() && with(400, "Throttling").is_temporary());
        assert!(with(400, "ScalingActivityInProgress").is_temporary() && with(502, "Status502").is_temporary());
        assert!(!with(400, "ValidationError").is_temporary() && !with(403, "AccessDenied").is_temporary());
        assert!(with(403, "ExpiredToken").is_expiry());
    }

    #[test]
    fn a_wrong_clock_is_distinguished_from_a_wrong_key() {
        let now = SystemTime::now();
        let refused = |at| ServiceError { code: "SignatureDoesNotMatch".to_owned(), at: Some(at), ..problem(403, "") };
        assert_eq!(refused(now + Duration::from_secs(600)).skew(now), Some(600));
        assert_eq!(refused(now - Duration::from_secs(600)).skew(now), Some(-600));
        assert_eq!(refused(now + Duration::from_secs(20)).skew(now), None);
        let denied = ServiceError { code: "AccessDenied".to_owned(), ..refused(now + Duration::from_secs(600)) };
        assert_eq!(denied.skew(now), None);
    }

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

    #[test]
    fn retries_end_with_the_timeout() {
        let tries = Cell::new(0);
        let busy = || {
            tries.set(tries.get() + 1);
            Err::<(), _>(RequestFailure::Refused(problem(503, "")))
        };
        assert!(retry_until(Duration::ZERO, busy).is_err());
        assert_eq!(tries.get(), 1);
        let second = || match tries.replace(tries.get() + 1) {
            1 => Err(RequestFailure::NoResponse("cut".to_owned())),
            _ => Ok(tries.get()),
        };
        assert_eq!(retry_until(Duration::from_secs(60), second), Ok(3));
    }
}
