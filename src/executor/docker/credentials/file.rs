//! The logins in a Docker configuration file (`config.json`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::{RegistrySecret, path_of_key};
use crate::decode;
use crate::token::Token;

/// The logins in a file. Paths are registry hosts with an optional repository prefix.
#[derive(Default)]
pub struct ConfigFile {
    /// `auths`
    pub passwords: Vec<(String, RegistrySecret)>,
    /// `credsStore`: the credential helper for all registries.
    pub store: Option<String>,
    /// `credHelpers`
    pub helpers: Vec<Helper>,
}

/// A credential helper for one registry.
pub struct Helper {
    /// The registry, with an optional repository prefix.
    pub path: String,
    /// The program's name without `docker-credential-`.
    pub name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawConfigFile {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl ConfigFile {
    /// Parses a file of the current or of the original format. Messages do not show its content.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid =
            |error: serde_json::Error| format!("not a Docker configuration: line {} is not valid", error.line());
        let raw: RawConfigFile = decode::json(text.as_bytes()).map_err(invalid)?;
        let auths = match &raw {
            RawConfigFile { auths: None, creds_store: None, cred_helpers: None } => {
                decode::json(text.as_bytes()).unwrap_or_default()
            }
            _ => raw.auths.unwrap_or_default(),
        };
        let mut passwords = Vec::new();
        for (key, entry) in auths {
            if let Some(secret) = entry.map(Entry::secret).transpose()?.flatten() {
                passwords.push((path_of_key(&key), secret));
            }
        }
        let helper = |(key, name): (String, String)| Helper { path: path_of_key(&key), name };
        let helpers = raw.cred_helpers.unwrap_or_default().into_iter().map(helper).collect();
        Ok(Self { passwords, store: raw.creds_store.filter(|name| !name.is_empty()), helpers })
    }

    /// A file with these registries, users and passwords.
    pub fn of_passwords<'a>(logins: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> Self {
        let password = |(key, username, password): (&str, &str, &str)| {
            let secret = RegistrySecret::Password { username: username.to_owned(), password: Token::new(password) };
            (path_of_key(key), secret)
        };
        Self { passwords: logins.map(password).collect(), ..Self::default() }
    }
}

impl Entry {
    /// The secret of an entry; a credential store leaves empty entries. Fails if `auth` is malformed.
    fn secret(self) -> Result<Option<RegistrySecret>, String> {
        let not_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = not_empty(self.identitytoken) {
            return Ok(Some(RegistrySecret::Identity(Token::new(token))));
        }
        if let Some(auth) = not_empty(self.auth) {
            let decoded = BASE64_STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_ref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
            let (username, password) = pair.ok_or("`auth` is not USER:PASSWORD in base64")?;
            return Ok(Some(RegistrySecret::Password {
                username: username.to_owned(),
                password: Token::new(password),
            }));
        }
        let pair = not_empty(self.username).zip(not_empty(self.password));
        Ok(pair.map(|(username, password)| RegistrySecret::Password { username, password: Token::new(password) }))
    }
}
