//! Proves the identity of this process to another party: it signs a `GetCallerIdentity` request, and the other party
//! sends it.

use serde::{Deserialize, Serialize};

use super::endpoint::STS;
use super::environment::variable;
use super::profile::Profiles;
use super::retry::retry_until;
use super::service_error::RequestFailure;
use super::sts::{CALL_TIMEOUT, VERSION};
use super::transport::{AwsRequest, Transport};
use super::xml::element;
use super::{region, source};
use crate::digest::sha256;

/// A signed `GetCallerIdentity` request that another party sends to verify the signer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignedIdentity {
    /// The region of STS.
    pub region: String,
    /// The headers with the signature.
    pub headers: Vec<(String, String)>,
}

/// Signs a `GetCallerIdentity` request for another party; `binding` limits it to one purpose. Errors: there are no
/// credentials, or no region.
pub fn sign(binding: &str) -> Result<SignedIdentity, String> {
    let region = region::find(None)?;
    let credentials = source::current()?;
    let transport = Transport::new(STS, &region, &Profiles::read(&variable))?;
    let more = vec![(BINDING.to_owned(), sha256(binding.as_bytes()))];
    Ok(SignedIdentity { headers: transport.sign(&get_caller_identity(), more, &credentials), region })
}

/// Why a signed identity is not established.
#[derive(Debug)]
pub enum Unverified {
    /// The proof is not one of this agent, or STS rejects it.
    Rejected(String),
    /// STS cannot be reached, or its response is unusable.
    Unanswered(String),
}

/// Sends a signed `GetCallerIdentity` request. Returns the ARN of the signer. Errors: the request is not the expected
/// one, was refused or not answered.
pub fn verify(signed: &SignedIdentity, binding: &str) -> Result<String, Unverified> {
    let rejected = |why: &str| Err(Unverified::Rejected(why.to_owned()));
    // The signer may choose only the region of the endpoint.
    let is_region = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !(1..=32).contains(&signed.region.len()) || !is_region(&signed.region) {
        return rejected("the proof names no region");
    }
    let header = |name: &str| signed.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let is_bound = header(BINDING).is_some_and(|(_, value)| *value == sha256(binding.as_bytes()));
    let names = header("Authorization").and_then(|(_, value)| value.split("SignedHeaders=").nth(1)?.split(',').next());
    let is_signed = names.is_some_and(|names| names.split(';').any(|name| name.eq_ignore_ascii_case(BINDING)));
    if !is_bound || !is_signed {
        return rejected("the proof was signed for another instance or boot");
    }
    let headers: Vec<(String, String)> =
        PASSED_ON.iter().filter_map(|name| header(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    let transport = Transport::new(STS, &signed.region, &Profiles::read(&variable)).map_err(Unverified::Unanswered)?;
    let request = get_caller_identity();
    let answer = retry_until(CALL_TIMEOUT, || transport.send_signed(&request, &headers));
    let answer = answer.map_err(|failure| match &failure {
        RequestFailure::Refused(problem) if !problem.is_temporary() => {
            Unverified::Rejected(format!("STS rejects the proof: {failure}"))
        }
        _ => Unverified::Unanswered(format!("STS did not answer the verification request: {failure}")),
    })?;
    element(&answer, "Arn").ok_or_else(|| Unverified::Unanswered("the response of STS contains no ARN".to_owned()))
}

/// The signed header with the binding.
const BINDING: &str = "X-Mayfly-Binding";
/// The headers that are passed to the other party.
const PASSED_ON: [&str; 5] = ["Content-Type", BINDING, "X-Amz-Date", "X-Amz-Security-Token", "Authorization"];

fn get_caller_identity() -> AwsRequest {
    AwsRequest::query(VERSION, "GetCallerIdentity", &[])
}
