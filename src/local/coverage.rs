//! Keyword `coverage`: extracts the number from the last match of a pattern.

use super::record::CoverageFinder;
use crate::pipeline::pattern::RegexPattern;

/// Compiles a pattern between slashes; `None` for an invalid pattern, which the planner refuses.
pub fn finder(text: &str) -> Option<CoverageFinder> {
    let pattern = RegexPattern::between_slashes(text)?.ok()?;
    Some(Box::new(move |line| pattern.last_match(line).and_then(|found| number(&found))))
}

/// The first number in a text.
fn number(text: &str) -> Option<String> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let rest = &text[start..];
    let integer = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let fraction = rest[integer..].strip_prefix('.').unwrap_or_default();
    let digits = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
    let end = if digits > 0 { integer + 1 + digits } else { integer };
    Some(rest[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extracts_the_first_number_of_the_match() {
        for (text, expected) in [("TOTAL 87.25%", Some("87.25")), ("100.", Some("100")), ("none", None)] {
            assert_eq!(number(text).as_deref(), expected, "{text}");
        }
    }
}
