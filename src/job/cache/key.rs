//! Names of caches: in messages, in the file system, and in an object store.

use crate::digest::sha256;

/// The longest file name.
const PART_MAX: usize = 255;
/// The longest object name, with room for its prefix.
const NAME_MAX: usize = 700;

/// The name of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    /// The name for messages.
    pub human: String,
    /// A relative path without `.` and `..`; empty if nothing of the key is usable.
    pub name: String,
    /// A warning if the key was changed.
    pub warning: Option<String>,
}

impl CacheKey {
    /// Sanitises a key, or hashes it (`FF_HASH_CACHE_KEYS`).
    pub fn new(raw: &str, hashed: bool) -> Self {
        if hashed {
            return Self { human: raw.to_owned(), name: sha256(raw.as_bytes()), warning: None };
        }
        let name = sanitise(raw);
        if name.len() > NAME_MAX || name.split('/').any(|part| part.len() > PART_MAX) {
            let hash = sha256(raw.as_bytes());
            let warning =
                format!("cache key of {} bytes is too long for a file name; using its hash {hash}", raw.len());
            return Self { human: hash.clone(), name: hash, warning: Some(warning) };
        }
        let warning = (name != raw).then(|| format!("cache key {raw:?} sanitized to {name:?}"));
        Self { human: name.clone(), name, warning }
    }

    /// The last part of the object name. A hash gets a directory with its first two characters.
    pub fn object(&self, hashed: bool) -> String {
        match self.name.get(..2).filter(|_| hashed) {
            Some(start) => format!("{start}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Decodes escaped slashes and dots, resolves `.` and `..` without leaving the cache's directory, and trims white
/// space.
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
    fn keys_cannot_leave_their_directory() {
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
            let key = CacheKey::new(raw, false);
            assert_eq!(key.name, name, "{raw:?}");
            assert_eq!(key.warning.is_some(), raw != name, "{raw:?}");
        }
    }

    #[test]
    fn hashes_a_key_on_request_or_if_it_is_too_long() {
        let key = CacheKey::new("abc", true);
        assert!(key.name.starts_with("ba7816bf") && key.human == "abc");
        assert!(key.object(true).starts_with("ba/ba7816bf"));
        let key = CacheKey::new(&"x".repeat(10_000), false);
        assert_eq!(key.name.len(), 64);
        assert!(key.warning.unwrap().contains("10000 bytes"));
    }

    proptest! {
        #[test]
        fn no_key_leaves_the_directory(raw in "[a./\\\\%2fFeE ]{0,40}") {
            let name = CacheKey::new(&raw, false).name;
            prop_assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".." || part == "."), "{name}");
            prop_assert_eq!(name.is_empty(), name.split('/').any(str::is_empty));
        }
    }
}
