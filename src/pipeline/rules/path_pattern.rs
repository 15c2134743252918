//! `regexp` of `rules:changes` and `rules:exists`: a regular expression for paths.

use crate::pipeline::pattern::RegexPattern;

/// The number of characters of an expression, after its variables are expanded, as on GitLab.
const MAX_LENGTH: usize = 255;

/// A compiled expression. GitLab uses Ruby's engine for it, which has more features than RE2. Of these, negative
/// lookaheads at the start are supported, because rules exclude directories with them: `^(?!docs/)`.
#[derive(Clone, Debug)]
pub struct PathPattern {
    /// The patterns of the lookaheads: none of them may match at the start of the path.
    excluded: Vec<RegexPattern>,
    pattern: RegexPattern,
}

impl PathPattern {
    /// Compiles an expression. The error explains why it cannot be used.
    pub fn compile(text: &str) -> Result<Self, String> {
        let length = text.chars().count();
        if length == 0 || length > MAX_LENGTH {
            return Err(format!("it has {length} characters; 1 to {MAX_LENGTH} are allowed"));
        }
        let mut excluded = Vec::new();
        let Some(mut rest) = text.strip_prefix('^').or_else(|| text.strip_prefix("\\A")) else {
            return Ok(Self { excluded, pattern: compile(text)? });
        };
        while let Some(after) = rest.strip_prefix("(?!") {
            let end = find_at_top_level(after, ')').ok_or_else(|| "a lookahead is not closed".to_owned())?;
            excluded.push(compile(&format!("^(?:{})", &after[..end]))?);
            rest = &after[end + 1..];
        }
        if !excluded.is_empty() && find_at_top_level(rest, '|').is_some() {
            return Err("alternatives after a lookahead must be in a group".to_owned());
        }
        let pattern = if excluded.is_empty() { text.to_owned() } else { format!("^{rest}") };
        Ok(Self { excluded, pattern: compile(&pattern)? })
    }

    pub fn is_match(&self, path: &str) -> bool {
        self.pattern.is_match(path) && !self.excluded.iter().any(|excluded| excluded.is_match(path))
    }
}

fn compile(text: &str) -> Result<RegexPattern, String> {
    RegexPattern::compile(text, "").map_err(|why| match why.contains("lookarounds") {
        true => "of lookarounds, only `(?!x)` directly after `^` or `\\A` is supported".to_owned(),
        false => why,
    })
}

/// The position of the first `wanted` outside of groups, classes and escapes.
fn find_at_top_level(text: &str, wanted: char) -> Option<usize> {
    let mut depth = 0_usize;
    let mut in_class = false;
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => drop(characters.next()),
            ']' => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            c if c == wanted && depth == 0 => return Some(at),
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_paths() {
        for (text, path, expected) in [
            (r"\Alib/.*\.go\z", "lib/a/b.go", true),
            (r"\Alib/.*\.go\z", "x/lib/b.go", false),
            ("b$", "a/b", true),
            ("^(?:a|b)/", "b/x", true),
            ("^(?!docs/)", "docs/x", false),
            ("^(?!docs/)", "a/docs/x", true),
            (r"\A(?!docs/|.*[)]\.md$).*\.md", "a.md", true),
            (r"\A(?!docs/|.*[)]\.md$).*\.md", "a).md", false),
            (r"^(?!a(b|c)\))(?!d).", "ac)", false),
            (r"^(?!a(b|c)\))(?!d).", "ac", true),
            (r"^(?!a(b|c)\))(?!d).", "d", false),
            ("^(?!a)(x|y)", "y", true),
            ("/a/", "x/a/b", true),
        ] {
            assert_eq!(PathPattern::compile(text).expect(text).is_match(path), expected, "{text} {path}");
        }
    }

    #[test]
    fn refuses_expressions_that_cannot_be_used() {
        let long = "a".repeat(256);
        for text in ["", long.as_str(), "[a", "^(?!a", "^(?!a)b|c", "a(?!b)", "^(?!(?!a))"] {
            assert!(PathPattern::compile(text).is_err(), "{text}");
        }
        assert!(PathPattern::compile(&long[1..]).is_ok());
    }
}
