//! Names of caches: in messages, in the file system, and in an object store.

use crate::digest::sha256;

/// The length of the longest file name, in bytes.
const MAX_PART_LENGTH: usize = 255;
/// The length of the longest object name in bytes, with room for its prefix.
const MAX_NAME_LENGTH: usize = 700;

/// The format of cache names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFormat {
    /// The key, without characters that could leave the directory.
    Readable,
    /// The hash of the key (`FF_HASH_CACHE_KEYS`).
    Hashed,
}

/// The name of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheKey {
    /// The name for messages.
    pub shown: String,
    /// A relative path without `.` and `..`; empty if nothing of the key is usable.
    pub name: String,
    /// A warning if the key was changed.
    pub warning: Option<String>,
    format: KeyFormat,
}

impl CacheKey {
    /// Sanitises a key, or hashes it.
    pub fn new(raw: &str, format: KeyFormat) -> Self {
        if format == KeyFormat::Hashed {
            return Self { shown: raw.to_owned(), name: sha256(raw.as_bytes()), warning: None, format };
        }
        let name = sanitise(raw);
        if name.len() > MAX_NAME_LENGTH || name.split('/').any(|part| part.len() > MAX_PART_LENGTH) {
            let hash = sha256(raw.as_bytes());
            let warning =
                format!("cache key of {} bytes is too long for a file name; using its hash {hash}", raw.len());
            return Self { shown: hash.clone(), name: hash, warning: Some(warning), format };
        }
        let warning = (name != raw).then(|| format!("cache key {raw:?} sanitized to {name:?}"));
        Self { shown: name.clone(), name, warning, format }
    }

    /// The last part of the object name. A hash gets a directory with its first two characters.
    pub fn object(&self) -> String {
        match self.name.get(..2).filter(|_| self.format == KeyFormat::Hashed) {
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
            let key = CacheKey::new(raw, KeyFormat::Readable);
            assert_eq!(key.name, name, "{raw:?}");
            assert_eq!(key.warning.is_some(), raw != name, "{raw:?}");
        }
    }

    #[test]
    fn hashes_a_key_on_request_or_if_it_is_too_long() {
        let key = CacheKey::new("abc", KeyFormat::Hashed);
        assert!(key.name.starts_with("ba7816bf") && key.shown == "abc");
        assert!(key.object().starts_with("ba/ba7816bf"));
        let key = CacheKey::new(&"x".repeat(10_000), KeyFormat::Readable);
        assert_eq!(key.name.len(), 64);
        assert!(key.warning.unwrap().contains("10000 bytes"));
    }

    proptest! {
        #[test]
        fn no_key_leaves_the_directory(raw in "[a./\\\\%2fFeE ]{0,40}") {
            let name = CacheKey::new(&raw, KeyFormat::Readable).name;
            prop_assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".." || part == "."), "{name}");
            prop_assert_eq!(name.is_empty(), name.split('/').any(str::is_empty));
        }
    }
}
