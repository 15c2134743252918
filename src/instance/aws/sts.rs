//! Assumes roles with existing credentials or with a web identity token.

use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credentials::Credentials;
use super::endpoint::STS;
use super::environment::variable;
use super::profile::Profiles;
use super::region;
use super::source;
use super::transport::{Request, Transport, retry_until};
use super::xml::element;
use crate::digest::sha256;
use crate::token::Token;

/// The default session name, which CloudTrail shows.
pub const SESSION: &str = "mayfly";
const VERSION: &str = "2011-06-15";
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A role and how to assume it.
pub struct Role {
    pub arn: String,
    /// The session name.
    pub session: String,
    /// The external id that the role requires.
    pub external_id: Option<String>,
    /// A session policy that limits the role.
    pub policy: Option<String>,
    /// The region of STS; `None` for the region of this process.
    pub region: Option<String>,
}

impl Role {
    /// A role with the default settings.
    pub fn new(arn: &str) -> Self {
        Self { arn: arn.to_owned(), session: SESSION.to_owned(), external_id: None, policy: None, region: None }
    }
}

/// Temporary credentials of a role, valid for an hour. Errors: the call failed.
pub fn assume_role(role: &Role, with: &Credentials) -> Result<Credentials, String> {
    ask("AssumeRole", role, &[], Some(with))
}

/// Temporary credentials of a role for the web identity token in this file. Errors: there is no token, or the call
/// failed.
pub fn with_web_identity(role: &Role, file: &str) -> Result<Credentials, String> {
    let token = fs::read_to_string(file).map_err(|error| format!("the web identity token {file}: {error}"))?;
    let token = Token::new(token.trim());
    ask("AssumeRoleWithWebIdentity", role, &[("WebIdentityToken", token.reveal())], None)
}

fn ask(
    action: &str,
    role: &Role,
    more: &[(&str, &str)],
    credentials: Option<&Credentials>,
) -> Result<Credentials, String> {
    let describe = |why: &dyn std::fmt::Display| format!("{action} {}: {why}", role.arn);
    // Every region of STS knows every role.
    let region = role.region.clone().or_else(|| region::find(None).ok()).unwrap_or_else(|| "us-east-1".to_owned());
    let mut parameters = vec![("RoleArn", role.arn.as_str()), ("RoleSessionName", &role.session)];
    parameters.push(("DurationSeconds", "3600"));
    parameters.extend(role.external_id.iter().map(|id| ("ExternalId", id.as_str())));
    parameters.extend(role.policy.iter().map(|policy| ("Policy", policy.as_str())));
    parameters.extend(more);
    let transport = Transport::new(STS, &region, &Profiles::read(&variable)).map_err(|why| describe(&why))?;
    let request = Request::query(VERSION, action, &parameters);
    let answer =
        retry_until(CALL_TIMEOUT, || transport.send(&request, credentials)).map_err(|failure| describe(&failure))?;
    decode(&answer).ok_or_else(|| describe(&"the answer holds no credentials"))
}

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
pub fn sign_caller_identity(binding: &str) -> Result<SignedIdentity, String> {
    let region = region::find(None)?;
    let credentials = source::current()?;
    let transport = Transport::new(STS, &region, &Profiles::read(&variable))?;
    let more = vec![(BINDING.to_owned(), sha256(binding.as_bytes()))];
    Ok(SignedIdentity { headers: transport.sign(&caller_identity_request(), more, &credentials), region })
}

/// Sends a signed `GetCallerIdentity` request. Returns the ARN of the signer. Errors: the request is not the expected
/// one, was refused or not answered.
pub fn caller_identity(signed: &SignedIdentity, binding: &str) -> Result<String, String> {
    // The signer may choose only the region of the endpoint.
    let is_region = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !(1..=32).contains(&signed.region.len()) || !is_region(&signed.region) {
        return Err("the proof names no region".to_owned());
    }
    let header = |name: &str| signed.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let is_bound = header(BINDING).is_some_and(|(_, value)| *value == sha256(binding.as_bytes()));
    let names = header("Authorization").and_then(|(_, value)| value.split("SignedHeaders=").nth(1)?.split(',').next());
    let is_signed = names.is_some_and(|names| names.split(';').any(|name| name.eq_ignore_ascii_case(BINDING)));
    if !is_bound || !is_signed {
        return Err("the proof was signed for another instance or boot".to_owned());
    }
    let headers: Vec<(String, String)> =
        PASSED_ON.iter().filter_map(|name| header(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    let transport = Transport::new(STS, &signed.region, &Profiles::read(&variable))?;
    let request = caller_identity_request();
    let answer = retry_until(CALL_TIMEOUT, || transport.send_signed(&request, &headers));
    let answer = answer.map_err(|failure| format!("STS rejects the proof: {failure}"))?;
    element(&answer, "Arn").ok_or_else(|| "the answer of STS holds no ARN".to_owned())
}

/// The signed header with the binding.
const BINDING: &str = "X-Mayfly-Binding";
/// The headers that are passed to the other party.
const PASSED_ON: [&str; 5] = ["Content-Type", BINDING, "X-Amz-Date", "X-Amz-Security-Token", "Authorization"];

fn caller_identity_request() -> Request {
    Request::query(VERSION, "GetCallerIdentity", &[])
}

fn decode(xml: &str) -> Option<Credentials> {
    let fixed = Credentials::fixed(&element(xml, "AccessKeyId")?, &element(xml, "SecretAccessKey")?);
    let expires = element(xml, "Expiration").and_then(|time| time.parse().ok());
    Some(Credentials { session_token: element(xml, "SessionToken").map(Token::new), expires, ..fixed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_credentials_of_a_role() {
        let xml = "<R xmlns=\"https://sts\"><C><AccessKeyId>A</AccessKeyId><SecretAccessKey>S&amp;</SecretAccessKey>\
                   <SessionToken>T</SessionToken><Expiration>2030-01-01T00:00:00Z</Expiration></C></R>";
        let lent = decode(xml).unwrap();
        assert_eq!(lent.secret_key.reveal(), "S&");
        assert!(lent.expires.is_some());
        assert!(decode("<html>").is_none());
    }
}
