//! Slugs and other values that GitLab derives from names.

use ring::digest::{SHA256, digest};

/// The maximum length of a slug in bytes.
const MAX_LENGTH: usize = 63;

/// The maximum length of `CI_ENVIRONMENT_SLUG` in bytes.
const MAX_ENVIRONMENT_LENGTH: usize = 24;

/// The length of a hash suffix in base-36 digits.
const HASH_LENGTH: usize = 6;

/// `CI_COMMIT_REF_SLUG` and similar: lower case; anything but letters and digits becomes a dash; at most 63 characters.
pub fn slug(text: &str) -> String {
    if text.is_ascii() {
        let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
        let slug: String = text.bytes().take(MAX_LENGTH).map(|byte| char::from(plain(byte))).collect();
        return slug.trim_matches('-').to_owned();
    }
    let slug: String = text.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let end = slug.len().min(MAX_LENGTH);
    slug[..end].trim_matches('-').to_owned()
}

/// `CI_ENVIRONMENT_SLUG`: at most 24 characters. A name that had to change ends in a part of its hash, so that it stays
/// unique.
pub fn environment_slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.to_lowercase().chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '-' };
        if c != '-' || !slug.ends_with('-') {
            slug.push(c);
        }
    }
    if !slug.starts_with(|c: char| c.is_ascii_lowercase()) {
        slug = format!("env-{}", slug.trim_start_matches('-'));
    }
    if slug.len() <= MAX_ENVIRONMENT_LENGTH && slug == name {
        return slug.strip_suffix('-').unwrap_or(&slug).to_owned();
    }
    slug.truncate(MAX_ENVIRONMENT_LENGTH - 1 - HASH_LENGTH);
    if !slug.ends_with('-') {
        slug.push('-');
    }
    slug + &hash_suffix(name)
}

/// The last six base-36 digits of the SHA-256 of a name.
fn hash_suffix(name: &str) -> String {
    const MODULUS: u64 = 36_u64.pow(HASH_LENGTH as u32);
    let hash = digest(&SHA256, name.as_bytes());
    let mut number = hash.as_ref().iter().fold(0_u64, |number, byte| (number * 256 + u64::from(*byte)) % MODULUS);
    let mut digits = [0_u8; HASH_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// `CI_ENVIRONMENT_TIER`, guessed from the environment's name.
pub fn environment_tier(name: &str) -> &'static str {
    let name = name.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if has(&["dev", "review", "trunk"]) {
        "development"
    } else if has(&["test", "tst", "int", "acpt", "accept", "qa", "qc", "control", "quality"]) {
        "testing"
    } else if has(&["stg", "stag", "modl", "model", "pre", "demo", "non"]) {
        "staging"
    } else if has(&["prd", "prod", "live"]) {
        "production"
    } else {
        "other"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_the_same_slugs_as_gitlab() {
        for (text, expected) in [
            ("Feature/ABC__x--y", "feature-abc--x--y"),
            ("-x-", "x"),
            ("Team/Sub.Group/app", "team-sub-group-app"),
            (&"a".repeat(80), &"a".repeat(63)),
        ] {
            assert_eq!(slug(text), expected);
        }
        for (name, expected) in [("production", "production"), ("review/Feature_One", "review-feature-on-jjm9d4")] {
            assert_eq!(environment_slug(name), expected);
        }
        assert!(environment_slug("7up").starts_with("env-7up-"));
        assert_eq!(environment_slug(&"x".repeat(40)).len(), 24);
    }

    #[test]
    fn guesses_the_tier_from_the_name() {
        for (name, tier) in [
            ("review/7", "development"),
            ("QA", "testing"),
            ("pre-prod", "staging"),
            ("live", "production"),
            ("x", "other"),
        ] {
            assert_eq!(environment_tier(name), tier);
        }
    }
}
