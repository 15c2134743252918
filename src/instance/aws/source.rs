//! Finds the credentials: environment, shared files, web identity, container endpoint, instance profile. They are
//! cached for the process and renewed before they expire.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use ureq::http::Uri;

use super::credentials::AwsCredentials;
use super::environment::variable;
use super::metadata::{Metadata, MetadataError};
use super::profile::{Profile, Profiles};
use super::sts::{self, AssumedRole};
use crate::decode;
use crate::sync;
use crate::token::Token;

/// Container endpoints are local.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the response of a container endpoint, in bytes.
const MAX_RESPONSE: u64 = 1 << 20;
/// Credentials that expire within this time are renewed, if there are new ones already.
const RENEWAL_SECONDS: i64 = 15 * 60;

/// A source of credentials, with a cache.
pub struct CredentialSource {
    /// Values that replace environment variables.
    overrides: Vec<(&'static str, String)>,
    cached: Mutex<Option<AwsCredentials>>,
}

/// The source of the process.
static PROCESS: CredentialSource = CredentialSource { overrides: Vec::new(), cached: Mutex::new(None) };

/// The credentials of this process. Errors: no source has any, or the configured one does not answer.
pub fn current() -> Result<AwsCredentials, String> {
    PROCESS.current()
}

impl CredentialSource {
    /// The source of the process.
    pub fn of_process() -> &'static Self {
        &PROCESS
    }

    /// A source that uses a profile or other shared files than the environment.
    pub fn of_profile(profile: Option<&str>, config_file: Option<&str>, credentials_file: Option<&str>) -> Self {
        let pairs = [
            ("AWS_PROFILE", profile),
            ("AWS_CONFIG_FILE", config_file),
            ("AWS_SHARED_CREDENTIALS_FILE", credentials_file),
        ];
        let overrides = pairs.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned())));
        Self { overrides: overrides.collect(), cached: Mutex::default() }
    }

    /// An environment variable or its replacement.
    pub fn variable(&self, name: &str) -> Option<String> {
        // As in the AWS SDKs, an explicitly configured profile has priority over keys in the environment.
        const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
        let own = self.overrides.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        let hides = KEYS.contains(&name) && self.overrides.iter().any(|(known, _)| *known == "AWS_PROFILE");
        own.or_else(|| if hides { None } else { variable(name) })
    }

    /// The credentials. Errors: no source has any, or the configured one does not answer.
    pub fn current(&self) -> Result<AwsCredentials, String> {
        let mut kept = sync::lock(&self.cached);
        let now = Timestamp::now();
        if let Some(good) = kept.as_ref().filter(|kept| kept.are_valid_for(now, RENEWAL_SECONDS)) {
            return Ok(good.clone());
        }
        match (self.find(), kept.as_ref().filter(|kept| kept.are_valid_for(now, 0))) {
            (Ok(found), _) => {
                if !found.are_valid_for(now, 0) {
                    log::warn!("the AWS credentials have expired and no others were found; using them");
                }
                *kept = Some(found.clone());
                Ok(found)
            }
            (Err(why), Some(old)) => {
                log::warn!("cannot renew the AWS credentials; using the old ones, which are still valid error={why}");
                Ok(old.clone())
            }
            (Err(why), None) => Err(why),
        }
    }

    /// Drops credentials that a service rejected as expired.
    pub fn discard(&self, refused: &AwsCredentials) {
        let mut kept = sync::lock(&self.cached);
        kept.take_if(|kept| kept.access_key == refused.access_key);
    }

    /// Finds the credentials in the first place that has some.
    fn find(&self) -> Result<AwsCredentials, String> {
        let variable = |name: &str| self.variable(name);
        if let Some(found) = from_environment(&variable) {
            return Ok(found);
        }
        let profiles = Profiles::read(&variable);
        if let Some(found) = from_profile(&profiles, &profiles.name, &mut BTreeSet::new(), &variable)? {
            return Ok(found);
        }
        if profiles.is_chosen {
            return Err(format!(
                "the profile `{}` is in none of the shared AWS files, or has no credentials",
                profiles.name
            ));
        }
        if let Some(found) = from_container(&variable)? {
            return Ok(found);
        }
        from_instance(Metadata::of_process())
    }
}

/// Reads an environment variable.
type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

fn from_environment(variable: Variable<'_>) -> Option<AwsCredentials> {
    let mut found = AwsCredentials::fixed(&variable("AWS_ACCESS_KEY_ID")?, &variable("AWS_SECRET_ACCESS_KEY")?);
    found.session_token = variable("AWS_SESSION_TOKEN").map(Token::new);
    Some(found)
}

/// The keys of a profile, or of the role that it assumes. The web identity of the environment comes between the two.
fn from_profile(
    profiles: &Profiles,
    name: &str,
    seen: &mut BTreeSet<String>,
    variable: Variable<'_>,
) -> Result<Option<AwsCredentials>, String> {
    let is_first = seen.is_empty();
    if !seen.insert(name.to_owned()) {
        return Err(format!("the profile `{name}` is its own `source_profile`"));
    }
    let profile = profiles.get(name);
    if let Some(profile) = &profile
        && let Some(arn) = profile.value("role_arn")
    {
        return from_role(profiles, name, profile, &arn, seen, variable).map(Some);
    }
    if is_first && let Some((arn, file)) = variable("AWS_ROLE_ARN").zip(variable("AWS_WEB_IDENTITY_TOKEN_FILE")) {
        let session = variable("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| sts::SESSION.to_owned());
        return sts::assume_role_with_web_identity(&AssumedRole { session, ..AssumedRole::new(&arn) }, &file).map(Some);
    }
    let Some(profile) = profile else { return Ok(None) };
    if let Some(found) = from_keys(&profile) {
        return Ok(Some(found));
    }
    match ["credential_process", "sso_session", "sso_start_url"].iter().find(|key| profile.value(key).is_some()) {
        Some(key) => Err(format!("the profile `{name}` uses `{key}`, which mayfly does not support")),
        None => Ok(None),
    }
}

fn from_keys(profile: &Profile) -> Option<AwsCredentials> {
    let of = |keys: &std::collections::BTreeMap<String, String>| {
        let get = |name: &str| keys.get(name).filter(|value| !value.is_empty());
        let fixed = AwsCredentials::fixed(get("aws_access_key_id")?, get("aws_secret_access_key")?);
        Some(AwsCredentials { session_token: get("aws_session_token").map(|text| Token::new(text.as_str())), ..fixed })
    };
    of(&profile.credentials).or_else(|| of(&profile.config))
}

fn from_role(
    profiles: &Profiles,
    name: &str,
    profile: &Profile,
    arn: &str,
    seen: &mut BTreeSet<String>,
    variable: Variable<'_>,
) -> Result<AwsCredentials, String> {
    let session = profile.value("role_session_name").unwrap_or_else(|| sts::SESSION.to_owned());
    let role = AssumedRole { session, external_id: profile.value("external_id"), ..AssumedRole::new(arn) };
    if let Some(file) = profile.value("web_identity_token_file") {
        return sts::assume_role_with_web_identity(&role, &file);
    }
    if profile.value("mfa_serial").is_some() {
        return Err(format!(
            "the profile `{name}` requires an MFA code, which the agent cannot enter; use another profile"
        ));
    }
    let source = (profile.value("source_profile"), profile.value("credential_source"));
    let base = match (source.0.as_deref(), source.1.as_deref()) {
        (Some(own), _) if own == name => from_keys(profile),
        (Some(other), _) => from_profile(profiles, other, seen, variable)?,
        (None, Some("Environment")) => from_environment(variable),
        (None, Some("Ec2InstanceMetadata")) => Some(from_instance(Metadata::of_process())?),
        (None, Some("EcsContainer")) => from_container(variable)?,
        (None, Some(other)) => return Err(format!("the profile `{name}`: `credential_source = {other}` is unknown")),
        (None, None) => return Err(format!("the profile `{name}` has `role_arn` and no `source_profile`")),
    };
    let base = base.ok_or_else(|| format!("the profile `{name}` has no credentials to assume its role with"))?;
    sts::assume_role(&role, &base)
}

/// The response of the metadata service and of container endpoints.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct TemporaryCredentials {
    code: Option<String>,
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
    expiration: Option<String>,
}

fn decode_credentials(what: &str, body: &str) -> Result<AwsCredentials, String> {
    let temporary: TemporaryCredentials = decode::json(body.as_bytes()).unwrap_or_default();
    if let Some(code) = temporary.code.filter(|code| code != "Success") {
        let code: String = code.chars().filter(char::is_ascii_alphanumeric).take(60).collect();
        return Err(format!("{what} refused to return credentials: {code}"));
    }
    if temporary.access_key_id.is_empty() || temporary.secret_access_key.is_empty() {
        return Err(format!("{what} returned no credentials"));
    }
    let fixed = AwsCredentials::fixed(&temporary.access_key_id, &temporary.secret_access_key);
    let expires = temporary.expiration.and_then(|time| time.parse().ok());
    Ok(AwsCredentials { session_token: temporary.token.map(Token::new), expires, ..fixed })
}

fn from_container(variable: Variable<'_>) -> Result<Option<AwsCredentials>, String> {
    const WHAT: &str = "the container's credential endpoint";
    let relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let relative = relative.map(|path| format!("http://169.254.170.2{path}"));
    let Some(url) = relative.or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")) else { return Ok(None) };
    if !may_have_token(&url) {
        return Err(format!("{WHAT} must be https, or on this machine: AWS_CONTAINER_CREDENTIALS_FULL_URI"));
    }
    let token = match variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(path) => Some(fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?),
        None => variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    };
    let body = request(&url, token.as_deref().map(str::trim)).map_err(|why| format!("{WHAT} {why}"))?;
    decode_credentials(WHAT, &body).map(Some)
}

/// Whether the authorization token may be sent to the endpoint: over TLS, to this machine, or to an address that AWS
/// reserves for it.
fn may_have_token(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let known = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
    let is_near = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("https") || (uri.scheme_str() == Some("http") && (is_near || known.contains(&host)))
}

fn from_instance(metadata: &Metadata) -> Result<AwsCredentials, String> {
    const ROLES: &str = "meta-data/iam/security-credentials/";
    let describe = |error: MetadataError| match error {
        MetadataError::Absent => "no AWS credentials are configured, and the instance has no profile".to_owned(),
        other => format!("no AWS credentials are configured, and {other}"),
    };
    let names = metadata.get(ROLES).map_err(describe)?.text;
    let role = names.lines().next().unwrap_or_default().trim();
    if role.is_empty() {
        return Err(describe(MetadataError::Absent));
    }
    let item = metadata.get(&format!("{ROLES}{role}")).map_err(describe)?;
    decode_credentials("the instance metadata service", &item.text)
}

/// A request to a local endpoint, without a proxy.
fn request(url: &str, token: Option<&str>) -> Result<String, String> {
    let config = crate::http::plain_config().timeout_global(Some(ENDPOINT_TIMEOUT));
    let trust = url.starts_with("https:").then(|| crate::http::tls::config(&crate::http::tls::TlsFiles::default()));
    let mut builder = crate::http::agent(config, &crate::http::Route::Direct, trust.transpose()?)?.get(url);
    if let Some(token) = token {
        builder = builder.header("Authorization", token);
    }
    let mut answer = builder.call().map_err(|why| format!("did not respond: {why}"))?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(MAX_RESPONSE).read_to_string();
    match status {
        200 => body.map_err(|why| format!("sent an incomplete response: {why}")),
        _ => Err(format!("responded with status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(profiles: &Profiles) -> Result<Option<AwsCredentials>, String> {
        from_profile(profiles, &profiles.name, &mut BTreeSet::new(), &|_| None)
    }

    #[test]
    fn reads_the_profile_that_is_asked_for() {
        let text = "[default]\naws_access_key_id=A\naws_secret_access_key = B\n[ci]\naws_access_key_id = C\n\
                    aws_secret_access_key = D=\naws_session_token = E\n";
        let of = |name| found(&Profiles::of_text("", text, name));
        assert_eq!(of("default").expect("no error").expect("credentials").access_key, "A");
        let ci = of("ci").expect("no error").expect("credentials");
        assert_eq!((ci.access_key.as_str(), ci.secret_key.reveal()), ("C", "D="));
        assert_eq!(ci.session_token.expect("a session token").reveal(), "E");
        assert!(of("other").expect("no error").is_none());
        let config = "[profile ci]\naws_access_key_id = F\naws_secret_access_key = G\n";
        assert_eq!(
            found(&Profiles::of_text(config, "", "ci")).expect("no error").expect("credentials").access_key,
            "F"
        );
    }

    #[test]
    fn a_profile_that_cannot_be_followed_is_named() {
        for (config, part) in [
            (
                "[default]\nrole_arn = r\nsource_profile = b\n[profile b]\nrole_arn = q\nsource_profile = default\n",
                "own",
            ),
            ("[default]\nrole_arn = r\n", "no `source_profile`"),
            ("[default]\nrole_arn = r\nsource_profile = nobody\n", "no credentials to assume"),
            ("[default]\nrole_arn = r\ncredential_source = Moon\n", "Moon"),
            ("[default]\nrole_arn = r\nmfa_serial = m\n", "MFA"),
            ("[default]\ncredential_process = /bin/x\n", "credential_process"),
        ] {
            let why = found(&Profiles::of_text(config, "", "default")).expect_err("must be refused");
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn the_environment_needs_both_keys() {
        let both = |name: &str| (name != "AWS_SESSION_TOKEN").then(|| "x".to_owned());
        assert!(from_environment(&both).is_some());
        assert!(from_environment(&|name| (name == "AWS_ACCESS_KEY_ID").then(|| "x".to_owned())).is_none());
    }

    #[test]
    fn reads_temporary_credentials() {
        let body = r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"B","Token":"T",
            "Expiration":"2030-01-01T00:00:00Z"}"#;
        let temporary = decode_credentials("x", body).expect("credentials");
        assert!(temporary.are_fresh("2029-12-31T00:00:00Z".parse().expect("a time")));
        assert!(!temporary.are_fresh("2029-12-31T23:58:00Z".parse().expect("a time")));
        for nonsense in ["<html>", "{}", r#"{"AccessKeyId":"A"}"#] {
            assert!(decode_credentials("x", nonsense).is_err(), "{nonsense}");
        }
        let refused = decode_credentials("x", r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"no"}"#)
            .expect_err("must be refused");
        assert!(refused.contains("AssumeRoleUnauthorizedAccess"), "{refused}");
    }

    #[test]
    fn the_container_token_is_sent_to_allowed_addresses_only() {
        for url in ["https://x.test/", "http://127.0.0.1:1/a", "http://[::1]/", "http://169.254.170.23/v1"] {
            assert!(may_have_token(url), "{url}");
        }
        for url in ["http://x.test/", "http://169.254.169.254/", "ftp://localhost/", "nonsense"] {
            assert!(!may_have_token(url), "{url}");
        }
    }

    #[test]
    fn a_profile_that_is_named_has_priority_over_keys_of_the_environment() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[pool]\naws_access_key_id = A\naws_secret_access_key = S\n")
            .expect("write the file");
        let source = CredentialSource::of_profile(Some("pool"), None, file.path().to_str());
        assert_eq!(source.current().expect("credentials must be found").access_key, "A");
        assert_eq!(
            (source.variable("AWS_ACCESS_KEY_ID"), source.variable("AWS_PROFILE").as_deref()),
            (None, Some("pool"))
        );
        let missing = CredentialSource::of_profile(Some("other"), None, file.path().to_str());
        assert!(missing.current().is_err_and(|why| why.contains("the profile `other`")));
    }
}
