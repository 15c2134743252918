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
        let ignores_case = has('i') || body.contains("(?i");
        let mut builder = RegexBuilder::new(&translate(body, ignores_case)?);
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
        compiled.map(|regex| Self { regex, size }).map_err(|error| match error.to_string() {
            text if text.contains("Unicode character classes") => {
                "Unicode character classes such as `\\p{L}` are not supported; list the characters, such as `[A-Za-z]`"
                    .to_owned()
            }
            text => text,
        })
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

/// The highest number of repetitions, as in RE2.
const REPETITIONS_LIMIT: u32 = 1000;

/// Converts a pattern of RE2 to the syntax of `regex-lite`. In RE2, `{` without a following repetition is literal, and
/// `[`, `&&`, `--`, `~~` are literal in a class; `\Q…\E` and octal escapes exist, and repetitions of repetitions do not.
fn translate(body: &str, ignores_case: bool) -> Result<String, String> {
    let mut out = String::with_capacity(body.len() + 8);
    let mut rest = body;
    let mut in_class = false;
    let mut class_start = 0;
    // The number of repetition operators, `?` for lazy ones included, that end here.
    let mut operators = 0;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let is_operator = !in_class && (matches!(c, '*' | '+' | '?') || c == '{' && is_repetition(after)?);
        operators = if is_operator { operators + 1 } else { 0 };
        if operators > 2 || operators == 2 && c != '?' {
            return Err(format!("the repetition operator `{c}` cannot follow another repetition operator"));
        }
        match c {
            '\\' => {
                rest = escape(after, &mut out);
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
            '{' if is_operator => {
                let end = after.find('}').map_or(after.len(), |at| at + 1);
                out.push('{');
                out.push_str(&after[..end]);
                rest = &after[end..];
                continue;
            }
            '{' if !in_class => out.push_str("\\{"),
            // `regex-lite` ignores the case of ASCII letters only.
            c if ignores_case && !c.is_ascii() => match (other_case(c), in_class) {
                (Some(other), true) => out.extend([c, other]),
                (Some(other), false) => out.extend(['[', c, other, ']']),
                (None, _) => out.push(c),
            },
            c => out.push(c),
        }
        rest = after;
    }
    Ok(out)
}

/// Converts what follows a backslash, and returns the rest.
fn escape<'b>(after: &'b str, out: &mut String) -> &'b str {
    if let Some(quoted) = after.strip_prefix('Q') {
        let (literal, rest) = quoted.split_once("\\E").unwrap_or((quoted, ""));
        out.push_str(&regex_lite::escape(literal));
        return rest;
    }
    let digits = after.bytes().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    if digits > 1 || after.starts_with('0') {
        let code = u32::from_str_radix(&after[..digits], 8).unwrap_or(0);
        out.push_str(&format!("\\x{{{code:x}}}"));
        return &after[digits..];
    }
    let Some(c) = after.chars().next() else {
        out.push('\\');
        return after;
    };
    let rest = &after[c.len_utf8()..];
    match c {
        // In `regex-lite` these are word boundaries.
        '<' | '>' => out.push(c),
        'x' | 'p' | 'P' if rest.starts_with('{') => {
            let end = rest.find('}').map_or(rest.len(), |at| at + 1);
            out.extend(['\\', c]);
            out.push_str(&rest[..end]);
            return &rest[end..];
        }
        c => out.extend(['\\', c]),
    }
    rest
}

/// The same letter in the other case, if that is one letter.
fn other_case(c: char) -> Option<char> {
    let one = |mut letters: Box<dyn Iterator<Item = char>>| letters.next().filter(|_| letters.next().is_none());
    let (lower, upper) = (one(Box::new(c.to_lowercase())), one(Box::new(c.to_uppercase())));
    lower.filter(|other| *other != c).or(upper.filter(|other| *other != c))
}

/// Whether `3}`, `3,}` or `3,5}` follows.
fn is_repetition(after: &str) -> Result<bool, String> {
    let Some((inside, _)) = after.split_once('}') else { return Ok(false) };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    if low.is_empty() || !digits(low) || !digits(high) {
        return Ok(false);
    }
    let too_many = |text: &str| text.parse().is_ok_and(|number: u32| number > REPETITIONS_LIMIT) || text.len() > 9;
    match too_many(low) || too_many(high) {
        true => Err(format!("`{{{inside}}}` is more than {REPETITIONS_LIMIT} repetitions")),
        false => Ok(true),
    }
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
            ("/über/i", "ÜBER", true),
            ("/[ü]ber/i", "Über", true),
            ("/über/", "Über", false),
            (r"/^\Qa+b\E$/", "a+b", true),
            (r"/^\x{6f}\x6e\145$/", "one", true),
            (r"/^\<a\_b\-c\ d\/\@\>$/", "<a_b-c d/@>", true),
            ("/^a+?b??c{2}?$/", "abcc", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn refuses_patterns_that_re2_refuses() {
        assert!(RegexPattern::between_slashes("/(?=x)/").is_some_and(|result| result.is_err()));
        assert!(RegexPattern::between_slashes("/a(/").is_some_and(|result| result.is_err()));
        assert!(RegexPattern::between_slashes("/(x{900}){900}/").is_some_and(|result| result.is_err()));
        for pattern in ["/a++/", "/a**/", "/a{2}{3}/", "/a{1,1001}/", r"/\Z/", r"/(a)\1/", r"/\p{L}/"] {
            assert!(RegexPattern::between_slashes(pattern).is_some_and(|result| result.is_err()), "{pattern}");
        }
        assert!(RegexPattern::between_slashes("text").is_none());
        assert!(RegexPattern::between_slashes("/text").is_none());
        assert!(RegexPattern::between_slashes("/a/g").is_none());
    }
}
