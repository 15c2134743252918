//! Keyword `coverage`: extracts the number from the last match of a pattern.

use super::record::Coverage;
use crate::pipeline::pattern::RegexPattern;

/// Compiles a pattern between slashes; `None` for an invalid one, which the planner has already refused.
pub fn finder(text: &str) -> Option<Coverage> {
    let pattern = RegexPattern::between_slashes(text)?.ok()?;
    Some(Box::new(move |line| pattern.last_match(line).and_then(|found| number(&found))))
}

/// The first number in a text.
fn number(text: &str) -> Option<String> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let rest = &text[start..];
    let whole = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let behind = rest[whole..].strip_prefix('.').unwrap_or_default();
    let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
    let end = if digits > 0 { whole + 1 + digits } else { whole };
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
