//! Regular expressions as GitLab accepts them: RE2 between slashes, with flags.
//!
//! They run on `regex-lite`. Its syntax differs from RE2's in a few cases, which are translated. Like RE2, it matches
//! in linear time, so no pattern can hang the planner.

use regex_lite::{Regex, RegexBuilder};

/// Memory limits for a compiled pattern, in bytes, tried in order; nearly all patterns fit into the first.
const SIZES: [usize; 2] = [16 << 10, 1 << 20];

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct RegexPattern {
    regex: Regex,
    size: usize,
}

impl RegexPattern {
    /// Compiles `/…/flags`. `None`: the text does not have this form. The error says what is wrong with the pattern.
    pub fn between_slashes(text: &str) -> Option<Result<Self, String>> {
        let rest = text.strip_prefix('/')?;
        let (body, flags) = rest.rsplit_once('/')?;
        if !flags.chars().all(|flag| "ismU".contains(flag)) {
            return None;
        }
        Some(Self::compile(body, flags))
    }

    /// Compiles a pattern without slashes.
    pub fn compile(body: &str, flags: &str) -> Result<Self, String> {
        let has = |flag| flags.contains(flag);
        let mut builder = RegexBuilder::new(&translate(body));
        builder
            .case_insensitive(has('i'))
            .dot_matches_new_line(has('s'))
            .multi_line(has('m'))
            .swap_greed(has('U'))
            .nest_limit(100);
        let [small, large] = SIZES;
        let (compiled, size) = match builder.size_limit(small).build() {
            Ok(regex) => (Ok(regex), small),
            Err(_) => (builder.size_limit(large).build(), large),
        };
        compiled.map(|regex| Self { regex, size }).map_err(|error| error.to_string())
    }

    /// The upper bound of its memory use, in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The last match in the text; if the pattern has groups, the last group that matched.
    pub fn last_match(&self, text: &str) -> Option<String> {
        let found = self.regex.captures_iter(text).last()?;
        let groups = found.iter().skip(1).flatten().last();
        groups.or_else(|| found.get(0)).map(|part| part.as_str().to_owned())
    }

    /// Whether it matches anywhere in the text.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

/// In RE2, `{` without a following repetition is literal, and `[`, `&&`, `--`, `~~` are literal in a class.
fn translate(body: &str) -> String {
    let mut out = String::with_capacity(body.len() + 8);
    let mut rest = body;
    let mut in_class = false;
    let mut class_start = 0;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let next = after.chars().next();
                out.push('\\');
                out.extend(next);
                rest = &after[next.map_or(0, char::len_utf8)..];
                continue;
            }
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                rest = after;
                if let Some(negated) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = negated;
                }
                class_start = out.len();
                continue;
            }
            '[' => match after.find(":]").filter(|_| after.starts_with(':')) {
                Some(end) => {
                    out.push_str(&rest[..end + 3]);
                    rest = &rest[end + 3..];
                    continue;
                }
                None => out.push_str("\\["),
            },
            ']' if in_class && out.len() > class_start => {
                in_class = false;
                out.push(']');
            }
            ']' if in_class => out.push_str("\\]"),
            '&' | '~' if in_class && after.starts_with(c) => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && after.starts_with('-') => out.push_str("\\-"),
            '{' if !in_class && !is_repetition(after) => out.push_str("\\{"),
            c => out.push(c),
        }
        rest = after;
    }
    out
}

/// Whether `3}`, `3,}` or `3,5}` follows.
fn is_repetition(after: &str) -> bool {
    let Some((inside, _)) = after.split_once('}') else { return false };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        RegexPattern::between_slashes(pattern)
            .expect("the pattern must stand between slashes")
            .expect(pattern)
            .is_match(text)
    }

    #[test]
    fn matches_as_re2() {
        for (pattern, text, expected) in [
            ("/login/", "feature/login-2", true),
            ("/^LOGIN/", "login", false),
            ("/^LOGIN/i", "login", true),
            (r"/^v\d+\.\d+$/", "v1.20", true),
            (r"/^feature\/x/", "feature/x", true),
            ("/a.b/", "a\nb", false),
            ("/a.b/s", "a\nb", true),
            ("/^b$/", "a\nb", false),
            ("/^b$/m", "a\nb", true),
            ("/^x{2}$/", "xx", true),
            ("/x{y}/", "x{y}", true),
            ("/${/", "", false),
            ("/[[]/", "[", true),
            ("/[]a]/", "]", true),
            ("/[^]a]/", "]", false),
            ("/[[:digit:]]/", "7", true),
            ("/[a&&b]/", "&", true),
            ("/[+--]/", "-", true),
            ("/(?i)abc/", "ABC", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn refuses_patterns_that_re2_refuses() {
        assert!(RegexPattern::between_slashes("/(?=x)/").is_some_and(|result| result.is_err()));
        assert!(RegexPattern::between_slashes("/a(/").is_some_and(|result| result.is_err()));
        assert!(RegexPattern::between_slashes("/(x{900}){900}/").is_some_and(|result| result.is_err()));
        assert!(RegexPattern::between_slashes("text").is_none());
        assert!(RegexPattern::between_slashes("/text").is_none());
        assert!(RegexPattern::between_slashes("/a/g").is_none());
    }
}
