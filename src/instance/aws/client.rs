//! Calls one AWS service with the credentials of this process, with retries.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::endpoint::AwsService;
use super::profile::Profiles;
use super::region;
use super::retry::retry_until;
use super::service_error::RequestFailure;
use super::source::CredentialSource;
use super::transport::{AwsRequest, Transport};
use crate::instance::Refusal;
use crate::sync;

/// A client of one AWS service; shared by threads.
pub struct AwsClient {
    service: AwsService,
    /// The configured region; `None` to resolve it.
    region: Option<String>,
    /// The source of the credentials; `None` for that of the process.
    source: Option<Arc<CredentialSource>>,
    transport: Mutex<Option<Arc<Transport>>>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// The IAM permission of the call, such as `autoscaling:SetInstanceProtection`.
    pub permission: String,
    pub cause: Cause,
}

/// The cause of a failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The service refused the call.
    Refused {
        /// `AccessDenied`, `ValidationError`, …
        code: String,
        /// The message of the service, in one line.
        message: String,
    },
    /// Retries were throttled until the timeout. The call may have had its effect all the same.
    Busy {
        /// `Throttling`, `Status503`, …
        code: String,
    },
    /// The service did not answer. The call may have had its effect all the same.
    NoResponse(String),
    /// The call was not sent: there are no credentials, or no region.
    Unprepared(String),
}

impl CallError {
    /// The error code of the service; empty if there is none.
    pub fn code(&self) -> &str {
        match &self.cause {
            Cause::Refused { code, .. } | Cause::Busy { code } => code,
            Cause::NoResponse(_) | Cause::Unprepared(_) => "",
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Refused { code, message } => write!(f, "{} is refused with {code}: {message}", self.permission),
            Cause::Busy { code } => write!(f, "{} is throttled or unavailable: {code}", self.permission),
            Cause::NoResponse(why) => write!(f, "{} gets no answer: {why}", self.permission),
            Cause::Unprepared(why) => write!(f, "{} cannot be called: {why}", self.permission),
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        let action = error.permission;
        match error.cause {
            Cause::Refused { code, message } => Self::Denied { action, code, message },
            Cause::Busy { code } => Self::Throttled { action, code },
            Cause::NoResponse(why) | Cause::Unprepared(why) => Self::Unreachable { action, why },
        }
    }
}

impl AwsClient {
    /// A client of a service in this region, or in the region of the process.
    pub fn new(service: AwsService, region: Option<&str>) -> Self {
        Self { service, region: region.map(str::to_owned), source: None, transport: Mutex::default() }
    }

    /// A client with another source of credentials.
    pub fn with_source(service: AwsService, region: Option<&str>, source: &Arc<CredentialSource>) -> Self {
        Self { source: Some(Arc::clone(source)), ..Self::new(service, region) }
    }

    fn source(&self) -> &CredentialSource {
        self.source.as_deref().unwrap_or_else(|| CredentialSource::of_process())
    }

    /// Resolves the region and the credentials, so that the first call is quick. Errors: one of them is missing.
    pub fn prepare(&self) -> Result<(), CallError> {
        let ready = self.transport().and_then(|_| self.source().current());
        let error = |why| CallError { permission: format!("{}:*", self.service.name), cause: Cause::Unprepared(why) };
        ready.map(drop).map_err(error)
    }

    /// Makes a call, and retries temporary failures for at most `timeout` ([`Duration::ZERO`]: no retry). The call must
    /// be idempotent. Errors: see [`Cause`].
    pub fn call(&self, request: &AwsRequest, timeout: Duration) -> Result<String, CallError> {
        let error = |cause| CallError { permission: format!("{}:{}", self.service.name, request.action), cause };
        let mut unprepared = None;
        let outcome = retry_until(timeout, || {
            unprepared = None;
            self.send(request).unwrap_or_else(|why| {
                unprepared = Some(why.clone());
                Err(RequestFailure::NoResponse(why))
            })
        });
        outcome.map_err(|failure| match (failure, unprepared) {
            (_, Some(why)) => error(Cause::Unprepared(why)),
            (RequestFailure::Refused(problem), _) if problem.is_temporary() => {
                error(Cause::Busy { code: problem.code })
            }
            (RequestFailure::Refused(problem), _) => {
                error(Cause::Refused { code: problem.code, message: problem.message })
            }
            (RequestFailure::NoResponse(why), _) => error(Cause::NoResponse(why)),
        })
    }

    /// The error for a response that cannot be decoded.
    pub fn invalid_response(&self, action: &str, why: String) -> CallError {
        CallError { permission: format!("{}:{action}", self.service.name), cause: Cause::NoResponse(why) }
    }

    /// Sends the request, and once more with new credentials if the old ones have expired. Errors: the request cannot
    /// be sent.
    fn send(&self, request: &AwsRequest) -> Result<Result<String, RequestFailure>, String> {
        let transport = self.transport()?;
        let credentials = self.source().current()?;
        let outcome = transport.send(request, Some(&credentials));
        match &outcome {
            Err(RequestFailure::Refused(problem)) if problem.is_expiry() => {
                self.source().discard(&credentials);
                Ok(transport.send(request, Some(&self.source().current()?)))
            }
            _ => Ok(outcome),
        }
    }

    fn transport(&self) -> Result<Arc<Transport>, String> {
        let mut kept = sync::lock(&self.transport);
        if let Some(transport) = kept.as_ref() {
            return Ok(Arc::clone(transport));
        }
        let variable = |name: &str| self.source().variable(name);
        let region = region::find_with(self.region.as_deref(), &variable)?;
        let transport = Arc::new(Transport::new(self.service, &region, &Profiles::read(&variable))?);
        *kept = Some(Arc::clone(&transport));
        Ok(transport)
    }
}
