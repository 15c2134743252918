//! Runner tokens that are stored in AWS: reads them from Systems Manager Parameter Store or Secrets Manager.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::{AwsClient, CallError};
use super::endpoint::{AwsService, SECRETS_MANAGER, SSM};
use super::transport::AwsRequest;
use crate::config::Config;
use crate::config::reference::TokenReference;
use crate::decode;
use crate::monitor::machine;
use crate::token::Token;

/// The timeout of fetching one token for an agent or a manager. A booting instance may have to wait for its network and
/// for its instance role.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a command that an operator or a hand-over waits for.
pub const COMMAND_FETCH_TIMEOUT: Duration = Duration::from_secs(20);
/// The minimum interval between two fetches because GitLab rejected a token.
pub const REFETCH_INTERVAL: Duration = Duration::from_secs(60);

/// Sets the tokens of the runners that have a token reference; the timeout applies to each. Errors: a token cannot be
/// read: whose, why, and what to do.
pub fn fetch_tokens(config: &mut Config, timeout: Duration) -> Result<(), String> {
    let region = config.mayfly.aws.as_ref().and_then(|aws| aws.region.clone());
    let mut known: Vec<(TokenReference, Token)> = Vec::new();
    let mut fetch_once = |reference: &TokenReference| match known.iter().find(|(known, _)| known == reference) {
        Some((_, token)) => Ok(token.clone()),
        None => fetch(reference, region.as_deref(), timeout)
            .inspect(|token| known.push((reference.clone(), token.clone())))
            .inspect(|_| machine::token_fetched(true))
            .inspect_err(|_| machine::token_fetched(false)),
    };
    for runner in &mut config.runners {
        let Some(reference) = &runner.token_reference else { continue };
        let missing = |why| format!("runner `{}`: cannot read the token {reference}: {why}", runner.name);
        runner.token = fetch_once(reference).map_err(missing)?;
    }
    if let Some(manager) = &mut config.mayfly.manager
        && let Some(reference) = &manager.agent_token_reference
    {
        let missing = |why| format!("[mayfly.manager]: cannot read the token {reference}: {why}");
        manager.agent_token = fetch_once(reference).map_err(missing)?;
    }
    Ok(())
}

fn fetch(reference: &TokenReference, region: Option<&str>, timeout: Duration) -> Result<Token, String> {
    let value = match reference {
        TokenReference::Parameter(name) => parameter(name, region, timeout)?,
        TokenReference::Secret { id, key } => {
            let secret = secret(id, region, timeout)?;
            match key {
                Some(key) => json_member(&secret, key)?,
                None if secret.trim_start().starts_with('{') => {
                    return Err("it is a JSON object; name the key after a `#`, as in \
                                \"aws-secretsmanager:ci/runner#token\""
                        .to_owned());
                }
                None => secret,
            }
        }
    };
    let text = value.trim();
    match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Token::new(text)),
        false => Err("the stored value is not a runner token".to_owned()),
    }
}

fn parameter(name: &str, region: Option<&str>, timeout: Duration) -> Result<String, String> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct GetParameter<'a> {
        name: &'a str,
        with_decryption: bool,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct ParameterResponse {
        parameter: Parameter,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Parameter {
        value: String,
    }
    let request = GetParameter { name, with_decryption: true };
    let response: ParameterResponse =
        call(SSM, "AmazonSSM", "GetParameter", &request, region_of(name).or(region), timeout)?;
    Ok(response.parameter.value)
}

fn secret(id: &str, region: Option<&str>, timeout: Duration) -> Result<String, String> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct GetSecretValue<'a> {
        secret_id: &'a str,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct SecretResponse {
        secret_string: Option<String>,
    }
    let request = GetSecretValue { secret_id: id };
    let region = region_of(id).or(region);
    let response: SecretResponse =
        call(SECRETS_MANAGER, "secretsmanager", "GetSecretValue", &request, region, timeout)?;
    response.secret_string.ok_or_else(|| "it is binary, not text".to_owned())
}

fn call<T: for<'de> Deserialize<'de>>(
    service: AwsService,
    prefix: &str,
    action: &str,
    request: &impl Serialize,
    region: Option<&str>,
    timeout: Duration,
) -> Result<T, String> {
    let body = serde_json::to_string(request).map_err(|error| error.to_string())?;
    let answer = AwsClient::new(service, region).call(&AwsRequest::json(prefix, action, body), timeout);
    // The parser's message may quote a part of the secret.
    serde_json::from_str(&answer.map_err(|error| explain(&error))?)
        .map_err(|_| "the response cannot be decoded".to_owned())
}

fn explain(error: &CallError) -> String {
    let advice = match error.code() {
        "AccessDeniedException" | "AccessDenied" => {
            "; allow this action for the instance's role, and kms:Decrypt for a customer managed key"
        }
        "ParameterNotFound" | "ResourceNotFoundException" => "; check the name and the region",
        _ => "",
    };
    format!("{error}{advice}")
}

/// The region in an ARN (`arn:PARTITION:SERVICE:REGION:…`).
fn region_of(id: &str) -> Option<&str> {
    let region = id.strip_prefix("arn:")?.split(':').nth(2)?;
    Some(region).filter(|region| !region.is_empty())
}

/// A string member of a JSON object.
fn json_member(secret: &str, key: &str) -> Result<String, String> {
    let members: std::collections::BTreeMap<String, &serde_json::value::RawValue> =
        decode::json(secret.as_bytes()).map_err(|_| format!("it is not a JSON object, so it has no key `{key}`"))?;
    let found = members.get(key).ok_or_else(|| format!("it has no key `{key}`"))?;
    decode::json(found.get().as_bytes()).map_err(|_| format!("the value of its key `{key}` is not a string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_has_its_region() {
        assert_eq!(region_of("arn:aws:ssm:eu-west-1:123456789012:parameter/ci/token"), Some("eu-west-1"));
        assert_eq!(region_of("/ci/token"), None);
        assert_eq!(region_of("arn:aws:s3:::bucket"), None);
    }

    #[test]
    fn a_secret_may_be_a_json_object() {
        let secret = r#"{"token":"glrt-a","n":1,"list":[{}]}"#;
        assert_eq!(json_member(secret, "token").as_deref(), Ok("glrt-a"));
        for (text, key) in [(secret, "n"), (secret, "other"), ("glrt-secret", "token")] {
            let why = json_member(text, key).expect_err("must be refused");
            assert!(!why.contains("glrt"), "{why}");
        }
    }
}
