//! Errors of a request to an AWS service, of each of its protocols.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::xml;
use crate::decode;

/// Maximum length of an error message.
const MAX_MESSAGE: usize = 300;
/// A signature is rejected because of the clock only if the clocks differ by more than this.
const MIN_CLOCK_SKEW: Duration = Duration::from_secs(4 * 60);

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    /// The service responded with an error.
    Refused(ServiceError),
    /// No usable answer. The request may have had its effect.
    NoResponse(String),
}

/// An error of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    pub status: u16,
    /// `AccessDenied`, `Throttling`, …; `Status500` and the like if the response has no code.
    pub code: String,
    /// The message, in one line.
    pub message: String,
    /// The `Date` of the response.
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
    /// Decodes the error response of any protocol. `kind` is the header `x-amzn-ErrorType`.
    pub fn decode(status: u16, kind: Option<&str>, body: &str, at: Option<SystemTime>) -> Self {
        let json: Option<JsonError> = decode::json(body.as_bytes()).ok();
        let kind =
            kind.map(str::to_owned).or_else(|| Some(json.as_ref()?.kind.clone()).filter(|kind| !kind.is_empty()));
        // `com.amazonaws.ssm#ParameterNotFound:http://…`
        let kind = kind.as_deref().and_then(|kind| kind.split(':').next()?.rsplit('#').next().map(str::to_owned));
        let code = kind.or_else(|| xml::element(body, "Code")).filter(|code| is_code(code));
        let message = json.map(|json| json.message).or_else(|| xml::element(body, "Message")).unwrap_or_default();
        // Further lines repeat the request with the session token.
        let line = message.lines().next().unwrap_or_default();
        let message = match line.trim() {
            "" => format!("status {status} without a message"),
            line => line.chars().take(MAX_MESSAGE).collect(),
        };
        Self { status, code: code.unwrap_or_else(|| format!("Status{status}")), message, at }
    }

    /// Whether a retry may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self.status, 429 | 500 | 502 | 503 | 504) || RETRYABLE_CODES.contains(&self.code.as_str())
    }

    /// Whether new credentials may help.
    pub fn is_expiry(&self) -> bool {
        EXPIRED_CODES.contains(&self.code.as_str())
    }

    /// How many seconds the local clock is behind the service's, if the signature was rejected because of that.
    pub fn clock_skew_seconds(&self, now: SystemTime) -> Option<i64> {
        let at = self.at.filter(|_| CLOCK_SKEW_CODES.contains(&self.code.as_str()))?;
        let (skew, sign) = match at.duration_since(now) {
            Ok(ahead) => (ahead, 1),
            Err(behind) => (behind.duration(), -1),
        };
        (skew > MIN_CLOCK_SKEW).then(|| sign * i64::try_from(skew.as_secs()).unwrap_or(0))
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

fn is_code(code: &str) -> bool {
    code.starts_with(|first: char| first.is_ascii_alphabetic())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16, body: &str) -> ServiceError {
        ServiceError::decode(status, None, body, None)
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
        assert_eq!(ServiceError::decode(400, header, "{}", None).code, "ThrottlingException");
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
        assert_eq!(refused(now + Duration::from_secs(600)).clock_skew_seconds(now), Some(600));
        assert_eq!(refused(now - Duration::from_secs(600)).clock_skew_seconds(now), Some(-600));
        assert_eq!(refused(now + Duration::from_secs(20)).clock_skew_seconds(now), None);
        let denied = ServiceError { code: "AccessDenied".to_owned(), ..refused(now + Duration::from_secs(600)) };
        assert_eq!(denied.clock_skew_seconds(now), None);
    }
}
