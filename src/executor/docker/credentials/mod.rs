//! Registry logins: selects the login for an image.
//!
//! The sources, in GitLab's documented order: `DOCKER_AUTH_CONFIG` of the job, that of the runner's environment, the
//! agent's own `~/.docker/config.json`, the job's payload; last a token for Amazon ECR, which the agent fetches itself.
//! The longest path that matches an image wins; for the same path, the first source. If a source has no login, the next
//! one is tried. A login is never shown or stored: it is sent to the engine with the pull.

mod file;
mod helper;
#[cfg(test)]
mod tests;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use super::reference::{DOCKER_HUB, ImageName, ImageReference, normalized_registry};
use crate::config::Runner;
use crate::executor::user;
use crate::instance::aws::ecr::{self, EcrTokens};
use crate::payload;
use crate::token::Token;
use file::ConfigFile;
use helper::{CredentialHelpers, NamedBy};

/// The variable with a Docker configuration file, for jobs and runners.
pub const VARIABLE: &str = "DOCKER_AUTH_CONFIG";
/// The time limit of a credential helper.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// The address of Docker Hub for credential helpers.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// A login for the engine.
pub struct Login {
    /// The source, for messages.
    pub source: String,
    registry: String,
    secret: RegistrySecret,
}

#[derive(Clone)]
pub(super) enum RegistrySecret {
    Password {
        username: String,
        password: Token,
    },
    /// An identity token: helpers return it for the user `<token>`.
    Identity(Token),
}

/// `X-Registry-Auth` (Engine API).
#[derive(Default, Serialize)]
struct RegistryAuth<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    password: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    identitytoken: &'a str,
    serveraddress: &'a str,
}

impl Login {
    /// The `X-Registry-Auth` header of a pull.
    pub fn header(&self) -> Token {
        let secret = match &self.secret {
            RegistrySecret::Password { username, password } => {
                RegistryAuth { username, password: password.reveal(), ..RegistryAuth::default() }
            }
            RegistrySecret::Identity(token) => {
                RegistryAuth { identitytoken: token.reveal(), ..RegistryAuth::default() }
            }
        };
        // Serialising text to JSON cannot fail.
        let json = serde_json::to_vec(&RegistryAuth { serveraddress: &self.registry, ..secret }).unwrap_or_default();
        Token::new(BASE64_URL_SAFE.encode(json))
    }
}

/// All logins that are available to a job.
pub struct RegistryLogins<'a> {
    sources: Vec<LoginSource>,
    helpers: CredentialHelpers<'a>,
    ecr_logins: &'a [EcrLogin],
    /// Warnings about unreadable sources.
    pub warnings: Vec<String>,
}

/// The agent's login sources, passed to the process that pulls.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct LoginSources {
    /// `DOCKER_AUTH_CONFIG` of the runner's `environment`.
    pub runner: Option<String>,
    /// Docker's own files of the agent's user, in order of precedence.
    pub files: Vec<PathBuf>,
    /// The agent's environment, for credential helpers.
    pub environment: Vec<(String, String)>,
    /// The helpers that a job may name.
    pub allowed: Vec<String>,
    /// User and group of helpers that a job named; `None` if the agent cannot change to another user.
    pub unprivileged: Option<(u32, u32)>,
    /// Logins for Amazon ECR.
    pub ecr_logins: Vec<EcrLogin>,
}

impl fmt::Debug for LoginSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoginSources(…)")
    }
}

/// A login for one Amazon ECR registry.
#[derive(Clone, Serialize, Deserialize)]
pub struct EcrLogin {
    /// The host of the registry.
    host: String,
    /// User and password, or why there is no login.
    login: Result<(String, String), String>,
}

impl LoginSources {
    /// The sources for a runner's jobs on these images. Fetches ECR tokens if the runner's configuration allows it;
    /// `tokens` caches them for all jobs.
    pub fn for_runner(runner: &Runner, images: &[ImageReference], tokens: &EcrTokens) -> Self {
        let configured = runner.environment.iter().rev().find(|(key, _)| key == VARIABLE);
        let text = |(key, value): (OsString, OsString)| Some((key.into_string().ok()?, value.into_string().ok()?));
        Self {
            runner: configured.map(|(_, value)| value.clone()),
            files: default_files(&user::current().home),
            environment: env::vars_os().filter_map(text).collect(),
            allowed: runner.allowed_credential_helpers.clone(),
            unprivileged: Uid::effective().is_root().then(nobody),
            ecr_logins: if runner.ecr_login { fetch_ecr_logins(images, tokens) } else { Vec::new() },
        }
    }
}

/// The user id and group id of `nobody`.
fn nobody() -> (u32, u32) {
    /// The kernel's overflow uid.
    const OVERFLOW: u32 = 65_534;
    user::look_up("nobody").map_or((OVERFLOW, OVERFLOW), |user| (user.uid, user.gid))
}

fn fetch_ecr_logins(images: &[ImageReference], tokens: &EcrTokens) -> Vec<EcrLogin> {
    let mut fetched: Vec<EcrLogin> = Vec::new();
    for reference in images {
        let ImageReference::Named(name) = reference else { continue };
        let Some(registry) = ecr::Registry::of_host(&name.registry) else { continue };
        if fetched.iter().all(|known| known.host != name.registry) {
            let login = tokens.login(&registry);
            let login = login.map(|(username, password)| (username, password.reveal().to_owned()));
            fetched.push(EcrLogin { host: name.registry.clone(), login });
        }
    }
    fetched
}

/// The files in which Docker tools store logins, for the home directory `home`, in order of precedence.
fn default_files(home: &Path) -> Vec<PathBuf> {
    match env::var_os("DOCKER_CONFIG").filter(|directory| !directory.is_empty()) {
        Some(directory) => vec![PathBuf::from(directory).join("config.json")],
        None => vec![home.join(".docker/config.json"), home.join(".dockercfg")],
    }
}

/// A source of logins.
struct LoginSource {
    /// The name in messages.
    name: String,
    /// Who configured its credential helpers.
    named_by: NamedBy,
    file: ConfigFile,
}

/// A login that may match. A login from a helper is not fetched yet.
enum LoginCandidate<'a> {
    Known(&'a RegistrySecret),
    FromHelper { helper: &'a str, named_by: NamedBy, server: String },
}

impl<'a> RegistryLogins<'a> {
    /// Reads all sources. `job` is the job's own `DOCKER_AUTH_CONFIG`, `credentials` are those in the payload. An
    /// unreadable source is only a warning.
    pub fn read(job: Option<String>, credentials: &[payload::Credentials], access: &'a LoginSources) -> Self {
        let mut sources = Vec::new();
        let mut warnings = Vec::new();
        let mut add = |name: String, named_by, text: &str| match ConfigFile::parse(text) {
            Ok(file) => sources.push(LoginSource { name, named_by, file }),
            Err(why) => warnings.push(format!("cannot read registry logins from {name}: {why}")),
        };
        let runner = access.runner.clone();
        let variables = [
            (job, NamedBy::Job, "$DOCKER_AUTH_CONFIG"),
            (runner, NamedBy::Administrator, "$DOCKER_AUTH_CONFIG of the runner"),
        ];
        for (text, named_by, name) in variables {
            if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
                add(name.to_owned(), named_by, &text);
            }
        }
        if let Some(path) = access.files.iter().find(|path| path.exists()) {
            match fs::read_to_string(path) {
                Ok(text) => add(path.display().to_string(), NamedBy::Administrator, &text),
                Err(error) => warnings.push(format!("cannot read registry logins from {}: {error}", path.display())),
            }
        }
        let of_registries = credentials.iter().filter(|login| login.kind == "registry");
        let logins = of_registries.map(|login| (login.url.as_str(), login.username.as_str(), login.password.as_str()));
        let (name, file) = ("job payload (GitLab Registry)".to_owned(), ConfigFile::of_passwords(logins));
        sources.push(LoginSource { name, named_by: NamedBy::Job, file });
        let helpers = CredentialHelpers {
            environment: &access.environment,
            allowed: &access.allowed,
            unprivileged: access.unprivileged,
            timeout: HELPER_TIMEOUT,
        };
        Self { sources, helpers, ecr_logins: &access.ecr_logins, warnings }
    }

    /// The login for an image. `warn` is called for helpers and services that fail.
    pub fn find(&self, image: &ImageName, warn: &mut dyn FnMut(String)) -> Option<Login> {
        let registry = registry_address(image);
        for (source, candidate) in self.candidates(image) {
            let secret = match candidate {
                LoginCandidate::Known(secret) => Ok(Some(secret.clone())),
                LoginCandidate::FromHelper { helper, named_by, server } => self.helpers.get(helper, named_by, &server),
            };
            match secret {
                Ok(Some(secret)) => return Some(Login { source: source.to_owned(), registry, secret }),
                Ok(None) => {}
                Err(why) => warn(format!("no registry login from {source}: {why}")),
            }
        }
        let fetched = self.ecr_logins.iter().find(|fetched| fetched.host == image.registry)?;
        match &fetched.login {
            Ok((username, password)) => {
                let secret =
                    RegistrySecret::Password { username: username.clone(), password: Token::new(password.as_str()) };
                Some(Login { source: "Amazon ECR".to_owned(), registry, secret })
            }
            Err(why) => {
                warn(format!("no token for {}: {why}", fetched.host));
                None
            }
        }
    }

    /// The candidates, the best one first.
    fn candidates(&self, image: &ImageName) -> Vec<(&str, LoginCandidate<'_>)> {
        let path = image.normalized();
        let fits = |key: &str| path == key || path.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'));
        let mut found = Vec::new();
        for LoginSource { name: source, named_by, file } in &self.sources {
            let named_by = *named_by;
            for helper in file.helpers.iter().filter(|helper| fits(&helper.path)) {
                let server = match helper.path == image.registry {
                    true => registry_address(image),
                    false => helper.path.clone(),
                };
                found.push((
                    helper.path.len(),
                    source,
                    LoginCandidate::FromHelper { helper: &helper.name, named_by, server },
                ));
            }
            if let Some(helper) = &file.store {
                let server = registry_address(image);
                found.push((image.registry.len(), source, LoginCandidate::FromHelper { helper, named_by, server }));
            }
            for (key, secret) in file.passwords.iter().filter(|(key, _)| fits(key)) {
                found.push((key.len(), source, LoginCandidate::Known(secret)));
            }
        }
        // A stable sort: candidates of the same length stay in the order of their sources.
        found.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
        found.into_iter().map(|(_, source, candidate)| (source.as_str(), candidate)).collect()
    }
}

/// The address of an image's registry for the engine and for helpers.
fn registry_address(image: &ImageName) -> String {
    if image.registry == DOCKER_HUB { DOCKER_HUB_SERVER.to_owned() } else { image.registry.clone() }
}

/// Normalises a key of a configuration file to the form of image paths.
fn path_of_key(key: &str) -> String {
    let registry = normalized_registry(key);
    let plain = key.trim().split_once("://").map_or(key.trim(), |(_, rest)| rest).trim_end_matches('/');
    match plain.split_once('/') {
        // The API version in a URL is not part of image names.
        Some((_, "v1" | "v2")) | None => registry,
        Some((_, path)) => format!("{registry}/{path}"),
    }
}
