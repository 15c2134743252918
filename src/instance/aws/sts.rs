//! Assumes roles with existing credentials or with a web identity token.

use std::fs;
use std::time::Duration;

use super::credentials::AwsCredentials;
use super::endpoint::STS;
use super::environment::variable;
use super::profile::Profiles;
use super::region;
use super::retry::retry_until;
use super::transport::{AwsRequest, Transport};
use super::xml::element;
use crate::token::Token;

/// The default session name, which CloudTrail shows.
pub const SESSION: &str = "mayfly";
/// The version of the STS API.
pub const VERSION: &str = "2011-06-15";
/// The timeout of a call of STS, with its retries.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A role and how to assume it.
pub struct AssumedRole {
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

impl AssumedRole {
    /// A role with the default settings.
    pub fn new(arn: &str) -> Self {
        Self { arn: arn.to_owned(), session: SESSION.to_owned(), external_id: None, policy: None, region: None }
    }
}

/// Temporary credentials of a role, valid for an hour. Errors: the call failed.
pub fn assume_role(role: &AssumedRole, credentials: &AwsCredentials) -> Result<AwsCredentials, String> {
    call("AssumeRole", role, &[], Some(credentials))
}

/// Temporary credentials of a role for the web identity token in this file. Errors: there is no token, or the call
/// failed.
pub fn assume_role_with_web_identity(role: &AssumedRole, file: &str) -> Result<AwsCredentials, String> {
    let token = fs::read_to_string(file).map_err(|error| format!("the web identity token {file}: {error}"))?;
    let token = Token::new(token.trim());
    call("AssumeRoleWithWebIdentity", role, &[("WebIdentityToken", token.reveal())], None)
}

fn call(
    action: &str,
    role: &AssumedRole,
    more: &[(&str, &str)],
    credentials: Option<&AwsCredentials>,
) -> Result<AwsCredentials, String> {
    let describe = |why: &dyn std::fmt::Display| format!("{action} {}: {why}", role.arn);
    // Every region of STS knows every role.
    let region = role.region.clone().or_else(|| region::find(None).ok()).unwrap_or_else(|| "us-east-1".to_owned());
    let mut parameters = vec![("RoleArn", role.arn.as_str()), ("RoleSessionName", &role.session)];
    parameters.push(("DurationSeconds", "3600"));
    parameters.extend(role.external_id.iter().map(|id| ("ExternalId", id.as_str())));
    parameters.extend(role.policy.iter().map(|policy| ("Policy", policy.as_str())));
    parameters.extend(more);
    let transport = Transport::new(STS, &region, &Profiles::read(&variable)).map_err(|why| describe(&why))?;
    let request = AwsRequest::query(VERSION, action, &parameters);
    let answer =
        retry_until(CALL_TIMEOUT, || transport.send(&request, credentials)).map_err(|failure| describe(&failure))?;
    decode_credentials(&answer).ok_or_else(|| describe(&"the response contains no credentials"))
}

fn decode_credentials(xml: &str) -> Option<AwsCredentials> {
    let fixed = AwsCredentials::fixed(&element(xml, "AccessKeyId")?, &element(xml, "SecretAccessKey")?);
    let expires = element(xml, "Expiration").and_then(|time| time.parse().ok());
    Some(AwsCredentials { session_token: element(xml, "SessionToken").map(Token::new), expires, ..fixed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_credentials_of_a_role() {
        let xml = "<R xmlns=\"https://sts\"><C><AccessKeyId>A</AccessKeyId><SecretAccessKey>S&amp;</SecretAccessKey>\
                   <SessionToken>T</SessionToken><Expiration>2030-01-01T00:00:00Z</Expiration></C></R>";
        let credentials = decode_credentials(xml).expect("credentials");
        assert_eq!(credentials.secret_key.reveal(), "S&");
        assert!(credentials.expires.is_some());
        assert!(decode_credentials("<html>").is_none());
    }
}
