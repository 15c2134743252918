//! Secrets that must not appear in a log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A secret; it has no `Debug` or `Display` that shows it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: only for requests and configuration files, never for logs.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether the token is blank.
    pub fn is_empty(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// The short form for logs, paths and cache keys: without the known prefix (`glrt-`, `glrt-t1_`, `glrtr-`,
    /// `glcbt-`, `GR` and seven hexadecimal digits), the first nine characters.
    pub fn short(&self) -> String {
        let mut text = self.0.as_str();
        for prefix in ["glrt-", "glrtr-", "glcbt-"] {
            if let Some(rest) = text.strip_prefix(prefix) {
                text = rest;
                break;
            }
        }
        for prefix in ["t1_", "t2_", "t3_"] {
            text = text.strip_prefix(prefix).unwrap_or(text);
        }
        if let Some(rest) = text.strip_prefix("GR")
            && rest.len() >= 7
            && rest.is_char_boundary(7)
            && rest[..7].bytes().all(|b| b.is_ascii_hexdigit())
        {
            text = &rest[7..];
        }
        text.chars().take(9).collect()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens_every_kind_of_token() {
        for (token, short) in [
            ("glrt-abcdefghijkl", "abcdefghi"),
            ("glrt-t1_abcdefghijkl", "abcdefghi"),
            ("t3_abcdefghijkl", "abcdefghi"),
            ("glrtr-0123456789", "012345678"),
            ("glcbt-64_xyz", "64_xyz"),
            ("GR1348941abcdefghijkl", "abcdefghi"),
            ("GRxyz", "GRxyz"),
            ("plain", "plain"),
        ] {
            assert_eq!(Token::new(token).short(), short, "{token}");
        }
    }

    #[test]
    fn never_prints_a_token() {
        assert!(!format!("{:?}", Token::new("glrt-secret")).contains("secret"));
    }
}
