//! SHA-256 and hexadecimal encoding.

use ring::digest::{SHA256, digest};

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal encoding.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// The bytes of hexadecimal digits. A character that is not a digit counts as 0.
pub fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | pair.get(1).map_or(0, |low| digit(*low))).collect()
}

/// Whether a text consists of lower-case hexadecimal digits and has one of these lengths.
pub fn is_hex(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_leading_zeros() {
        assert_eq!(hex(&[0, 10, 0xff]), "000aff");
        assert!(sha256(b"").starts_with("e3b0c44298fc1c14"));
        assert_eq!(unhex("000aff"), [0, 10, 0xff]);
    }

    #[test]
    fn accepts_lower_case_digits_of_the_right_length() {
        for (text, accepted) in [("0af9", true), ("0AF9", false), ("0af", false), ("0ag9", false)] {
            assert_eq!(is_hex(text, &[4, 8]), accepted, "{text}");
        }
    }
}
