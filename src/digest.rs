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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_leading_zeros() {
        assert_eq!(hex(&[0, 10, 0xff]), "000aff");
        assert!(sha256(b"").starts_with("e3b0c44298fc1c14"));
    }
}
