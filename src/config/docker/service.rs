//! `[[runners.docker.services]]`: services of every job.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// A service that every job gets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub name: String,
    /// Host names of the service, separated by spaces or commas.
    pub alias: String,
    /// Overrides the image's command.
    pub command: Vec<String>,
    /// Overrides the image's entrypoint.
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "pairs")]
    pub environment: Vec<(String, String)>,
}

/// Parses `KEY=VALUE` entries. An invalid entry may be a secret, so messages do not show it.
fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    let pair = |(index, text): (usize, String)| match text.split_once('=').filter(|(key, _)| !key.is_empty()) {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(D::Error::custom(format!("entry number {} is not KEY=VALUE", index + 1))),
    };
    Vec::deserialize(deserializer)?.into_iter().enumerate().map(pair).collect()
}
