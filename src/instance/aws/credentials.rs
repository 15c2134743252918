//! Where the right to sign comes from: fixed keys, environment, shared files, a container's endpoint, the instance's
//! profile (IMDSv2), and a role assumed with any of those.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use ureq::Agent;

use super::sign::{Scope, Target, authorize, escape};
use crate::coordinator::Token;
use crate::http::tls::{self, TlsFiles};

/// Metadata services are near or not there at all.
const NEAR: Duration = Duration::from_secs(2);
const FAR: Duration = Duration::from_secs(30);
/// Credentials this close to their end are fetched anew.
const MARGIN_SECONDS: i64 = 5 * 60;

/// A key pair, and how long it counts.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Public.
    pub access_key: String,
    /// Secret.
    pub secret_key: Token,
    /// Belongs to keys that were lent for a time.
    pub session_token: Option<Token>,
    /// When they end, if they do.
    pub expires: Option<Timestamp>,
}

impl Credentials {
    /// Keys that stand in a configuration.
    pub fn fixed(access_key: &str, secret_key: &str) -> Self {
        let secret_key = Token::new(secret_key);
        Self { access_key: access_key.to_owned(), secret_key, session_token: None, expires: None }
    }

    /// Whether they count for some minutes more.
    pub fn are_fresh(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|end| end.as_second() - now.as_second() > MARGIN_SECONDS)
    }
}

/// The first source that has some. Errors: none has, or the one that is configured does not answer.
pub fn find() -> Result<Credentials, String> {
    if let Some(found) = from_environment(&|name| env::var(name).ok()) {
        return Ok(found);
    }
    if let Some(found) = from_files(&|name| env::var(name).ok()) {
        return Ok(found);
    }
    if let Some(found) = from_container()? {
        return Ok(found);
    }
    from_instance()
}

fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Option<Credentials> {
    let get = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut found = Credentials::fixed(&get("AWS_ACCESS_KEY_ID")?, &get("AWS_SECRET_ACCESS_KEY")?);
    found.session_token = get("AWS_SESSION_TOKEN").map(Token::new);
    Some(found)
}

fn from_files(variable: &dyn Fn(&str) -> Option<String>) -> Option<Credentials> {
    let path = match variable("AWS_SHARED_CREDENTIALS_FILE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(variable("HOME")?).join(".aws/credentials"),
    };
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    from_profile(&fs::read_to_string(path).ok()?, &profile)
}

fn from_profile(text: &str, profile: &str) -> Option<Credentials> {
    let mut inside = false;
    let (mut access, mut secret, mut session) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let value = Some(value.trim().to_owned());
            match key.trim() {
                "aws_access_key_id" => access = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => session = value,
                _ => {}
            }
        }
    }
    Some(Credentials { session_token: session.map(Token::new), ..Credentials::fixed(&access?, &secret?) })
}

/// What metadata services answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Lent {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
    expiration: Option<String>,
}

impl Lent {
    fn decode(what: &str, body: &str) -> Result<Credentials, String> {
        let lent: Self = serde_json::from_str(body).map_err(|_| format!("{what} answered no credentials"))?;
        let fixed = Credentials::fixed(&lent.access_key_id, &lent.secret_access_key);
        let expires = lent.expiration.and_then(|time| time.parse().ok());
        Ok(Credentials { session_token: lent.token.map(Token::new), expires, ..fixed })
    }
}

fn from_container() -> Result<Option<Credentials>, String> {
    const WHAT: &str = "the container's credential endpoint";
    let url = match (env::var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), env::var("AWS_CONTAINER_CREDENTIALS_FULL_URI"))
    {
        (Ok(path), _) => format!("http://169.254.170.2{path}"),
        (_, Ok(url)) => url,
        _ => return Ok(None),
    };
    let token = env::var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").ok().and_then(|path| fs::read_to_string(path).ok());
    let token = token.or_else(|| env::var("AWS_CONTAINER_AUTHORIZATION_TOKEN").ok());
    let headers: Vec<_> = token.iter().map(|token| ("Authorization", token.trim())).collect();
    Lent::decode(WHAT, &ask("GET", &url, &headers, WHAT)?).map(Some)
}

fn from_instance() -> Result<Credentials, String> {
    const WHAT: &str = "the instance's metadata service";
    let base = env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|_| "http://169.254.169.254".to_owned());
    let base = base.trim_end_matches('/');
    let seconds = [("X-aws-ec2-metadata-token-ttl-seconds", "300")];
    let token = ask("PUT", &format!("{base}/latest/api/token"), &seconds, WHAT)?;
    let session = [("X-aws-ec2-metadata-token", token.trim())];
    let roles = format!("{base}/latest/meta-data/iam/security-credentials/");
    let names = ask("GET", &roles, &session, WHAT)?;
    let role = names.lines().next().unwrap_or_default().trim().to_owned();
    if role.is_empty() {
        return Err("the instance has no profile, and no other credentials are configured".to_owned());
    }
    Lent::decode(WHAT, &ask("GET", &format!("{roles}{role}"), &session, WHAT)?)
}

/// A short request to something near, never through a proxy.
fn ask(method: &str, url: &str, headers: &[(&str, &str)], what: &str) -> Result<String, String> {
    let agent: Agent =
        Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(NEAR)).build().into();
    let mut builder = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let request = builder.body(()).map_err(|why| format!("{what}: {why}"))?;
    let mut answer = agent.run(request).map_err(|why| format!("{what} does not answer: {why}"))?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(1 << 20).read_to_string();
    match status {
        200 => body.map_err(|why| format!("{what}: {why}")),
        _ => Err(format!("{what} answers {status}")),
    }
}

/// Credentials of a role for an hour, narrowed by a policy. Errors: refused, or no answer.
pub fn assume_role(role: &str, policy: Option<&str>, region: &str, with: &Credentials) -> Result<Credentials, String> {
    let endpoint = env::var("AWS_ENDPOINT_URL_STS");
    let endpoint = endpoint.unwrap_or_else(|_| format!("https://sts.{region}.amazonaws.com"));
    let (scheme, host) = endpoint.trim_end_matches('/').split_once("://").unwrap_or(("https", endpoint.as_str()));
    let mut body = format!(
        "Action=AssumeRole&Version=2011-06-15&DurationSeconds=3600&RoleSessionName=mayfly&RoleArn={}",
        escape(role, b"")
    );
    if let Some(policy) = policy {
        body.push_str(&format!("&Policy={}", escape(policy, b"")));
    }
    let kind = ("Content-Type".to_owned(), "application/x-www-form-urlencoded".to_owned());
    let target = Target { method: "POST", scheme, host, path: "/", query: Vec::new(), headers: vec![kind.clone()] };
    let mut headers = authorize(&target, body.as_bytes(), with, Scope { region, service: "sts" }, Timestamp::now());
    headers.push(kind);
    let answer =
        post(&format!("{scheme}://{host}/"), &headers, &body).map_err(|why| format!("AssumeRole {role}: {why}"))?;
    decode_role(&answer).ok_or_else(|| format!("AssumeRole {role}: the answer holds no credentials"))
}

fn post(url: &str, headers: &[(String, String)], body: &str) -> Result<String, String> {
    let mut config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(FAR));
    if url.starts_with("https:") {
        config = config.tls_config(tls::config(&TlsFiles::default())?);
    }
    let mut request = config.build().new_agent().post(url);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut answer = request.send(body).map_err(|why| why.to_string())?;
    let status = answer.status().as_u16();
    let text = answer.body_mut().with_config().limit(1 << 20).read_to_string().map_err(|why| why.to_string())?;
    match status {
        200 => Ok(text),
        _ => Err(format!("status {status} {}", element(&text, "Message").unwrap_or_default())),
    }
}

fn decode_role(xml: &str) -> Option<Credentials> {
    let fixed = Credentials::fixed(&element(xml, "AccessKeyId")?, &element(xml, "SecretAccessKey")?);
    let expires = element(xml, "Expiration").and_then(|time| time.parse().ok());
    Some(Credentials { session_token: element(xml, "SessionToken").map(Token::new), expires, ..fixed })
}

/// The text of the first element of this name.
pub fn element(xml: &str, name: &str) -> Option<String> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let found = document.descendants().find(|node| node.tag_name().name() == name)?;
    found.text().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_profile_that_is_asked_for() {
        let text = "[default]\naws_access_key_id=A\naws_secret_access_key = B\n[ci]\naws_access_key_id = C\n\
                    aws_secret_access_key = D=\naws_session_token = E\n";
        assert_eq!(from_profile(text, "default").unwrap().access_key, "A");
        let ci = from_profile(text, "ci").unwrap();
        assert_eq!((ci.access_key.as_str(), ci.secret_key.reveal()), ("C", "D="));
        assert_eq!(ci.session_token.unwrap().reveal(), "E");
        assert!(from_profile(text, "other").is_none());
    }

    #[test]
    fn the_environment_needs_both_keys() {
        let both = |name: &str| (name != "AWS_SESSION_TOKEN").then(|| "x".to_owned());
        assert!(from_environment(&both).is_some());
        assert!(from_environment(&|name| (name == "AWS_ACCESS_KEY_ID").then(|| "x".to_owned())).is_none());
    }

    #[test]
    fn reads_what_services_answer() {
        let body = r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"B","Token":"T",
            "Expiration":"2030-01-01T00:00:00Z"}"#;
        let lent = Lent::decode("x", body).unwrap();
        assert!(lent.are_fresh("2029-12-31T00:00:00Z".parse().unwrap()));
        assert!(!lent.are_fresh("2029-12-31T23:58:00Z".parse().unwrap()));
        assert!(Lent::decode("x", "<html>").is_err());
        let xml = "<R xmlns=\"https://sts\"><C><AccessKeyId>A</AccessKeyId><SecretAccessKey>S&amp;</SecretAccessKey>\
                   <SessionToken>T</SessionToken><Expiration>2030-01-01T00:00:00Z</Expiration></C></R>";
        assert_eq!(decode_role(xml).unwrap().secret_key.reveal(), "S&");
    }
}
