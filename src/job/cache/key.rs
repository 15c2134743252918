//! What a cache is called: by people, in the file system, and in an object store.

use crate::digest::sha256;

/// What a part of a path may be long.
const PART_MAX: usize = 255;
/// What a name in an object store may be long, with room for what stands before it.
const NAME_MAX: usize = 700;

/// A name for a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// As people know it.
    pub human: String,
    /// A relative path without `.` and `..`; empty when nothing is left of the key.
    pub name: String,
    /// What was changed, if something was.
    pub warning: Option<String>,
}

impl Key {
    /// The key as it may be used, or its hash (`FF_HASH_CACHE_KEYS`).
    pub fn new(raw: &str, hashed: bool) -> Self {
        if hashed {
            return Self { human: raw.to_owned(), name: sha256(raw.as_bytes()), warning: None };
        }
        let name = sanitise(raw);
        if name.len() > NAME_MAX || name.split('/').any(|part| part.len() > PART_MAX) {
            let hash = sha256(raw.as_bytes());
            let warning = format!("cache key of {} bytes is too long for a file; its hash {hash} is used", raw.len());
            return Self { human: hash.clone(), name: hash, warning: Some(warning) };
        }
        let warning = (name != raw).then(|| format!("cache key {raw:?} sanitized to {name:?}"));
        Self { human: name.clone(), name, warning }
    }

    /// The last part of an object's name: hashes are spread over directories.
    pub fn object(&self, hashed: bool) -> String {
        match self.name.get(..2).filter(|_| hashed) {
            Some(start) => format!("{start}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Decodes escaped slashes and dots, resolves `.` and `..` within the cache's own directory, and drops blank ends.
fn sanitise(raw: &str) -> String {
    let mut text = raw.replace('\\', "/").replace('\0', "");
    for (escaped, plain) in [("%2f", "/"), ("%2F", "/"), ("%2e", "."), ("%2E", ".")] {
        text = text.replace(escaped, plain);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            _ => parts.push(part),
        }
    }
    while let Some(last) = parts.pop() {
        let trimmed = last.trim_end();
        if !matches!(trimmed, "" | "." | "..") {
            parts.push(trimmed);
            break;
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_stay_within_their_directory() {
        for (raw, name) in [
            ("deps-protected", "deps-protected"),
            ("job/main", "job/main"),
            ("../../etc", "etc"),
            ("a/../../b", "b"),
            ("/a//b/", "a/b"),
            ("a%2f..%2F%2e%2E/b", "b"),
            ("a\\b", "a/b"),
            ("a/b  ", "a/b"),
            ("a/  /\t", "a"),
            ("..", ""),
            (" ", ""),
            ("a b/c", "a b/c"),
        ] {
            let key = Key::new(raw, false);
            assert_eq!(key.name, name, "{raw:?}");
            assert_eq!(key.warning.is_some(), raw != name, "{raw:?}");
        }
    }

    #[test]
    fn a_key_can_be_hashed_or_has_to_be() {
        let key = Key::new("abc", true);
        assert!(key.name.starts_with("ba7816bf") && key.human == "abc");
        assert!(key.object(true).starts_with("ba/ba7816bf"));
        let key = Key::new(&"x".repeat(10_000), false);
        assert_eq!(key.name.len(), 64);
        assert!(key.warning.unwrap().contains("10000 bytes"));
    }

    proptest! {
        #[test]
        fn no_key_leads_out(raw in "[a./\\\\%2fFeE ]{0,40}") {
            let name = Key::new(&raw, false).name;
            prop_assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".." || part == "."), "{name}");
            prop_assert_eq!(name.is_empty(), name.split('/').any(str::is_empty));
        }
    }
}
