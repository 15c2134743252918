//! Amazon ECR: recognizes its registries and fetches tokens for them (GetAuthorizationToken).
//!
//! A token is valid for all registries of a region that the agent's principal may read, also those of other accounts.
//! The agent sends it to the container engine with a pull and nowhere else.

use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::Deserialize;

use super::client::AwsClient;
use super::endpoint::{AwsService, ECR};
use super::transport::AwsRequest;
use crate::decode;
use crate::sync;
use crate::token::Token;

/// A token that expires within this time is replaced, because pulling a large image takes long.
const MARGIN_SECONDS: i64 = 60 * 60;

/// Timeout of the call, because a job waits for it.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Domains of the registries. No other host receives a token.
const DOMAINS: [&str; 7] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
];
/// The domains of the dual-stack endpoints.
const DUAL_STACK_DOMAINS: [&str; 3] = ["on.aws", "on.amazonwebservices.com.cn", "on.amazonwebservices.eu"];

/// A private registry, as its host name describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    region: String,
    fips: bool,
    dual_stack: bool,
}

impl Registry {
    /// The registry at `host`, if it is an ECR registry: `ACCOUNT.dkr.ecr.REGION.DOMAIN`, `dkr.ecr-fips`, and
    /// `ACCOUNT.dkr-ecr.REGION.on.aws`, `dkr-ecr-fips`.
    pub fn of_host(host: &str) -> Option<Self> {
        let (account, rest) = host.split_once('.')?;
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let (kind, dual_stack) = match (rest.strip_prefix("dkr.ecr"), rest.strip_prefix("dkr-ecr")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return None,
        };
        let (fips, location) = match kind.strip_prefix("-fips.") {
            Some(location) => (true, location),
            None => (false, kind.strip_prefix('.')?),
        };
        let (region, domain) = location.split_once('.')?;
        let domains: &[&str] = if dual_stack { &DUAL_STACK_DOMAINS } else { &DOMAINS };
        let is_region = !region.is_empty()
            && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        (is_account && is_region && domains.contains(&domain)).then(|| Self {
            region: region.to_owned(),
            fips,
            dual_stack,
        })
    }
}

/// A user name and a password that expires after some hours.
#[derive(Clone)]
struct Authorization {
    username: String,
    password: Token,
    expires: Timestamp,
}

/// Fetches an authorization. Errors: why the call failed.
type Fetch = dyn Fn(&Registry) -> Result<Authorization, String> + Send + Sync;

/// Tokens, cached until shortly before they expire; shared by all jobs.
pub struct EcrTokens {
    fetch: Box<Fetch>,
    kept: Mutex<Vec<(Registry, Authorization)>>,
}

impl Default for EcrTokens {
    fn default() -> Self {
        Self::with_fetch(Box::new(fetch))
    }
}

impl EcrTokens {
    /// Tokens that `fetch` obtains.
    fn with_fetch(fetch: Box<Fetch>) -> Self {
        Self { fetch, kept: Mutex::default() }
    }

    /// The user name and the password for a registry. Errors: no token can be fetched, and no cached one is valid.
    pub fn login(&self, registry: &Registry) -> Result<(String, Token), String> {
        self.login_at(registry, Timestamp::now())
    }

    fn login_at(&self, registry: &Registry, now: Timestamp) -> Result<(String, Token), String> {
        // Held during the call, so that jobs that start together make one call.
        let mut kept = sync::lock(&self.kept);
        let known = kept.iter().find(|(known, _)| known == registry).map(|(_, authorization)| authorization.clone());
        let left = |authorization: &Authorization| authorization.expires.as_second() - now.as_second();
        let authorization = match known {
            Some(known) if left(&known) > MARGIN_SECONDS => known,
            known => match ((self.fetch)(registry), known) {
                (Ok(fetched), _) => {
                    kept.retain(|(known, _)| known != registry);
                    kept.push((registry.clone(), fetched.clone()));
                    fetched
                }
                (Err(why), Some(known)) if left(&known) > 0 => {
                    log::warn!(
                        "cannot renew the token for Amazon ECR; using the old one, which is still valid region={} error={why}",
                        registry.region
                    );
                    known
                }
                (Err(why), _) => return Err(why),
            },
        };
        Ok((authorization.username, authorization.password))
    }
}

fn fetch(registry: &Registry) -> Result<Authorization, String> {
    let service = AwsService { fips: registry.fips, dual_stack: registry.dual_stack, ..ECR };
    let request = AwsRequest::json("AmazonEC2ContainerRegistry_V20150921", "GetAuthorizationToken", "{}".to_owned());
    let answer = AwsClient::new(service, Some(&registry.region)).call(&request, CALL_TIMEOUT);
    let answer = answer.map_err(|error| error.to_string())?;
    decode_authorization(answer.as_bytes()).ok_or_else(|| "the response contains no token".to_owned())
}

/// The response of GetAuthorizationToken.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthorizationTokenResponse {
    authorization_data: Vec<AuthorizationData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthorizationData {
    authorization_token: String,
    expires_at: f64,
}

fn decode_authorization(body: &[u8]) -> Option<Authorization> {
    let response: AuthorizationTokenResponse = decode::json(body).ok()?;
    let data = response.authorization_data.into_iter().next()?;
    let pair = String::from_utf8(BASE64_STANDARD.decode(data.authorization_token).ok()?).ok()?;
    let (username, password) = pair.split_once(':')?;
    let expires = Timestamp::from_second(data.expires_at as i64).ok()?;
    Some(Authorization { username: username.to_owned(), password: Token::new(password), expires })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[test]
    fn hosts_of_registries_are_known_and_no_others() {
        for (host, region, fips, dual_stack) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", false, false),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", false, false),
            ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "us-east-1", true, false),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1", false, true),
            ("123456789012.dkr-ecr-fips.us-west-2.on.aws", "us-west-2", true, true),
            ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", false, false),
        ] {
            let expected = Registry { region: region.to_owned(), fips, dual_stack };
            assert_eq!(Registry::of_host(host), Some(expected), "{host}");
        }
        for host in [
            "public.ecr.aws",
            "docker.io",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.test",
            "123456789012.dkr.ecr.eu-west-1.evil.test",
            "123456789012.dkr.ecr.eu/west.amazonaws.com",
            "123456789012.dkr.ecr..amazonaws.com",
            "12345.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.on.aws",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:5000",
        ] {
            assert_eq!(Registry::of_host(host), None, "{host}");
        }
    }

    #[test]
    fn a_token_is_kept_until_shortly_before_it_expires() {
        let asked = Arc::new(AtomicI64::new(0));
        let (count, twelve_hours) = (Arc::clone(&asked), 12 * 60 * 60);
        let tokens = EcrTokens::with_fetch(Box::new(move |registry| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            if number == 3 {
                return Err("throttled".to_owned());
            }
            let expires = Timestamp::from_second(number * twelve_hours).expect("a time");
            let password = Token::new(format!("{}-{number}", registry.region));
            Ok(Authorization { username: "AWS".to_owned(), password, expires })
        }));
        let registry = Registry::of_host("123456789012.dkr.ecr.r.amazonaws.com").expect("a registry");
        let other_account = Registry::of_host("999999999999.dkr.ecr.r.amazonaws.com").expect("a registry");
        let password = |registry: &Registry, second: i64| {
            let login = tokens.login_at(registry, Timestamp::from_second(second).expect("a time"));
            login.map(|(_, password)| password.reveal().to_owned())
        };
        assert_eq!(password(&registry, 0).as_deref(), Ok("r-1"));
        assert_eq!(password(&other_account, 10 * 60 * 60).as_deref(), Ok("r-1"), "good for the region");
        assert_eq!(password(&registry, 11 * 60 * 60 + 1).as_deref(), Ok("r-2"));
        assert_eq!(password(&registry, 23 * 60 * 60 + 1).as_deref(), Ok("r-2"), "the old one is still valid");
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn reads_an_authorization() {
        let body = br#"{"authorizationData":[{"authorizationToken":"QVdTOnB3OjE=","expiresAt":1.7e9,
            "proxyEndpoint":"https://x"}]}"#;
        let authorization = decode_authorization(body).expect("must decode");
        assert_eq!((authorization.username.as_str(), authorization.password.reveal()), ("AWS", "pw:1"));
        assert!(
            decode_authorization(b"{\"authorizationData\":[]}").is_none() && decode_authorization(b"<html>").is_none()
        );
    }
}
