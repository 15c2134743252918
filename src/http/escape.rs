//! Percent-encoding.

use std::fmt::Write as _;

/// Percent-encodes every byte except the unreserved characters of RFC 3986 and those in `keep`.
pub fn escape(text: &str, keep: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            escaped.push(byte.into());
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_text_for_queries() {
        assert_eq!(escape("a/b:1 ü", b""), "a%2Fb%3A1%20%C3%BC");
        assert_eq!(escape("a/b~", b"/"), "a/b~");
    }
}
