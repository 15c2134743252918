//! Lists of patterns for image names, and of devices.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::Device;
use crate::archive::glob::GlobPattern;

/// Patterns such as those of `allowed_images`: `*` matches within one part of a name, `**` across parts.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Vec<(String, GlobPattern)>);

impl Patterns {
    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a pattern matches the whole name as written.
    pub fn match_name(&self, name: &str) -> bool {
        // A pattern splits names at slashes and ignores empty parts, but `a//b` must not match `a/b`.
        let parts_are_named = name.split('/').all(|part| !part.is_empty());
        parts_are_named && self.0.iter().any(|(_, pattern)| pattern.matches(name.as_bytes()))
    }

    /// Parses patterns.
    pub fn parse(texts: Vec<String>) -> Result<Self, String> {
        let pattern = |text: String| match GlobPattern::parse(&text) {
            Ok(pattern) => Ok((text, pattern)),
            Err(why) => Err(format!("`{text}` is not a pattern: {why}")),
        };
        texts.into_iter().map(pattern).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<&str> = self.0.iter().map(|(text, _)| text.as_str()).collect();
        f.write_str(&texts.join(", "))
    }
}

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(Vec::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A table that maps patterns to devices.
pub fn devices<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(Patterns, Vec<Device>)>, D::Error> {
    let table = BTreeMap::<String, Vec<String>>::deserialize(deserializer)?;
    let entry = |(text, list): (String, Vec<String>)| {
        let devices = list.iter().map(|text| text.parse()).collect::<Result<_, String>>()?;
        Ok((Patterns::parse(vec![text])?, devices))
    };
    table.into_iter().map(entry).collect::<Result<_, String>>().map_err(D::Error::custom)
}
