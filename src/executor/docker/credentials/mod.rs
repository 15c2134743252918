//! Logins at registries: which one counts for an image.
//!
//! Sources in GitLab's documented order: `DOCKER_AUTH_CONFIG` of the job, that of the runner's environment, the agent's
//! own `~/.docker/config.json`, the job's payload; at last a token for Amazon's registries, which the agent fetches
//! itself. The longest path that fits an image wins, and for the same path the first source. What one does not have is
//! looked for in the next. No login is ever shown or written anywhere: it goes to the engine with the pull.

mod file;
mod helper;
#[cfg(test)]
mod tests;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use serde::Serialize;

use super::reference::{DOCKER_HUB, Name, normalized_registry};
use crate::coordinator::Token;
use crate::instance::aws::ecr::{self, Tokens};
use crate::job::payload;
use file::ConfigFile;
pub use helper::Programs;

/// By this address helpers know Docker Hub.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// What the engine is to log in with.
pub struct Login {
    /// For people: where it comes from.
    pub source: String,
    registry: String,
    secret: Secret,
}

/// What proves who one is.
#[derive(Clone)]
pub(super) enum Secret {
    Password {
        username: String,
        password: Token,
    },
    /// What helpers give for the user `<token>`.
    Identity(Token),
}

/// `X-Registry-Auth` (Engine API).
#[derive(Default, Serialize)]
struct Header<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    password: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    identitytoken: &'a str,
    serveraddress: &'a str,
}

impl Login {
    /// The header that goes with a pull.
    pub fn header(&self) -> Token {
        let secret = match &self.secret {
            Secret::Password { username, password } => {
                Header { username, password: password.reveal(), ..Header::default() }
            }
            Secret::Identity(token) => Header { identitytoken: token.reveal(), ..Header::default() },
        };
        // Texts can always be written as JSON.
        let json = serde_json::to_vec(&Header { serveraddress: &self.registry, ..secret }).unwrap_or_default();
        Token::new(BASE64_URL_SAFE.encode(json))
    }
}

/// Everything a job can log in with.
pub struct Logins<'a> {
    sources: Vec<(String, ConfigFile)>,
    programs: &'a Programs,
    tokens: Option<&'a Tokens>,
    /// Sources that cannot be read, for warnings.
    pub troubles: Vec<String>,
}

/// Where logins are looked for.
pub struct Places<'a> {
    /// `DOCKER_AUTH_CONFIG` of the job.
    pub job: Option<String>,
    /// The same of the runner's `environment`.
    pub runner: Option<String>,
    /// Docker's own files of the agent's user.
    pub files: Vec<PathBuf>,
    /// What the server gave.
    pub payload: &'a [payload::Credentials],
    /// Credential helpers.
    pub programs: &'a Programs,
    /// Tokens for Amazon's registries, where the agent may fetch some.
    pub tokens: Option<&'a Tokens>,
}

/// Where Docker's own tools keep the logins of a user at home in `home`: the first file that is there counts.
pub fn usual_files(home: &Path) -> Vec<PathBuf> {
    match env::var_os("DOCKER_CONFIG").filter(|directory| !directory.is_empty()) {
        Some(directory) => vec![PathBuf::from(directory).join("config.json")],
        None => vec![home.join(".docker/config.json"), home.join(".dockercfg")],
    }
}

/// A login that may fit, still to be asked for where a helper has it.
enum Candidate<'a> {
    Known(&'a Secret),
    Ask { helper: &'a str, server: String },
}

impl<'a> Logins<'a> {
    /// Reads all sources; what cannot be read is a trouble, and no more.
    pub fn read(places: Places<'a>) -> Self {
        let mut sources = Vec::new();
        let mut troubles = Vec::new();
        let mut add = |name: String, text: &str| match ConfigFile::parse(text) {
            Ok(file) => sources.push((name, file)),
            Err(why) => troubles.push(format!("no registry login is taken from {name}: {why}")),
        };
        let variables = [(places.job, "$DOCKER_AUTH_CONFIG"), (places.runner, "$DOCKER_AUTH_CONFIG of the runner")];
        for (text, name) in variables {
            if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
                add(name.to_owned(), &text);
            }
        }
        if let Some(path) = places.files.iter().find(|path| path.exists()) {
            match fs::read_to_string(path) {
                Ok(text) => add(path.display().to_string(), &text),
                Err(error) => troubles.push(format!("no registry login is taken from {}: {error}", path.display())),
            }
        }
        let given = places.payload.iter().filter(|given| given.kind == "registry");
        let given = given.map(|given| (given.url.as_str(), given.username.as_str(), given.password.as_str()));
        sources.push(("job payload (GitLab Registry)".to_owned(), ConfigFile::of_passwords(given)));
        Self { sources, programs: places.programs, tokens: places.tokens, troubles }
    }

    /// The login for an image; `trouble` hears of helpers and services that do not answer as they should.
    pub fn find(&self, image: &Name, trouble: &mut dyn FnMut(String)) -> Option<Login> {
        let registry = registry_address(image);
        for (source, candidate) in self.candidates(image) {
            let secret = match candidate {
                Candidate::Known(secret) => Ok(Some(secret.clone())),
                Candidate::Ask { helper, server } => self.programs.ask(helper, &server),
            };
            match secret {
                Ok(Some(secret)) => return Some(Login { source: source.to_owned(), registry, secret }),
                Ok(None) => {}
                Err(why) => trouble(format!("no registry login comes from {source}: {why}")),
            }
        }
        let (host, tokens) = (ecr::Registry::of_host(&image.registry)?, self.tokens?);
        match tokens.login(&host) {
            Ok((username, password)) => {
                let source = format!("Amazon ECR ({})", host.region());
                Some(Login { source, registry, secret: Secret::Password { username, password } })
            }
            Err(why) => {
                trouble(format!("no token for Amazon ECR in {}: {why}", host.region()));
                None
            }
        }
    }

    /// What may fit, the best first.
    fn candidates(&self, image: &Name) -> Vec<(&str, Candidate<'_>)> {
        let path = image.normalized();
        let fits = |key: &str| path == key || path.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'));
        let mut found = Vec::new();
        for (source, file) in &self.sources {
            for helper in file.helpers.iter().filter(|helper| fits(&helper.path)) {
                let server = match helper.path == image.registry {
                    true => registry_address(image),
                    false => helper.path.clone(),
                };
                found.push((helper.path.len(), source, Candidate::Ask { helper: &helper.name, server }));
            }
            if let Some(helper) = &file.store {
                let server = registry_address(image);
                found.push((image.registry.len(), source, Candidate::Ask { helper, server }));
            }
            for (key, secret) in file.passwords.iter().filter(|(key, _)| fits(key)) {
                found.push((key.len(), source, Candidate::Known(secret)));
            }
        }
        // Those of the same length stay in the order of their sources.
        found.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
        found.into_iter().map(|(_, source, candidate)| (source.as_str(), candidate)).collect()
    }
}

/// What engine and helpers call the registry of an image.
fn registry_address(image: &Name) -> String {
    if image.registry == DOCKER_HUB { DOCKER_HUB_SERVER.to_owned() } else { image.registry.clone() }
}

/// A key of a configuration file as a path that images have: the registry's one name, then what may follow.
fn path_of_key(key: &str) -> String {
    let registry = normalized_registry(key);
    let plain = key.trim().split_once("://").map_or(key.trim(), |(_, rest)| rest).trim_end_matches('/');
    match plain.split_once('/') {
        // The API's version belongs to no image.
        Some((_, "v1" | "v2")) | None => registry,
        Some((_, path)) => format!("{registry}/{path}"),
    }
}
