//! `[[runners.docker.services]]`: services of every job.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// One of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Its image.
    pub name: String,
    /// Its names on the network, with blanks or commas between them.
    pub alias: String,
    /// Instead of the image's.
    pub command: Vec<String>,
    /// Instead of the image's.
    pub entrypoint: Vec<String>,
    /// Its environment.
    #[serde(deserialize_with = "pairs")]
    pub environment: Vec<(String, String)>,
}

/// `KEY=VALUE` each; the text of one that is not may be a secret, and is not shown.
fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    let pair = |(index, text): (usize, String)| match text.split_once('=').filter(|(key, _)| !key.is_empty()) {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(D::Error::custom(format!("entry number {} is not KEY=VALUE", index + 1))),
    };
    Vec::deserialize(deserializer)?.into_iter().enumerate().map(pair).collect()
}
