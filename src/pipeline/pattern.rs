//! Regular expressions as GitLab accepts them: RE2 between slashes, with flags.
//!
//! They run on `regex-lite`. Its syntax differs from RE2's in a few cases, which are translated. Like RE2, it matches
//! in linear time, so no pattern can hang the planner.

use regex_lite::{Regex, RegexBuilder};

/// Memory limits for a compiled pattern, in bytes, tried in order. Nearly all patterns fit into the first.
const SIZE_LIMITS: [usize; 2] = [16 << 10, 1 << 20];

/// The number of levels to which groups may nest.
const MAX_NESTING: u32 = 100;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct RegexPattern {
    regex: Regex,
    size: usize,
}

impl RegexPattern {
    /// Compiles `/…/flags`. `None`: the text does not have this form. The error explains why the pattern cannot be
    /// used.
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
        let case = if has('i') || body.contains("(?i") { Case::Ignored } else { Case::Matters };
        let mut builder = RegexBuilder::new(&Translation::new(body, case).translated()?);
        builder
            .case_insensitive(has('i'))
            .dot_matches_new_line(has('s'))
            .multi_line(has('m'))
            .swap_greed(has('U'))
            .nest_limit(MAX_NESTING);
        let [small, large] = SIZE_LIMITS;
        let (compiled, size) = match builder.size_limit(small).build() {
            Ok(regex) => (Ok(regex), small),
            Err(_) => (builder.size_limit(large).build(), large),
        };
        compiled.map(|regex| Self { regex, size }).map_err(|error| match error.to_string() {
            text if text.contains("Unicode character classes") => {
                "Unicode character classes such as `\\p{L}` are not supported; list the characters, such as `[A-Za-z]`"
                    .to_owned()
            }
            text if text.contains("look-around") => {
                "lookarounds such as `(?=x)`, `(?!x)` and `(?<=x)` are not supported, as in RE2, which GitLab uses"
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
const MAX_REPETITIONS: u32 = 1000;

/// Whether upper and lower case differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Matters,
    Ignored,
}

/// Converts a pattern of RE2 to the syntax of `regex-lite`. In RE2, `{` without a following repetition is literal, and
/// `[`, `&&`, `--`, `~~` are literal in a class; `\Q…\E` and octal escapes exist, and repetitions of repetitions do
/// not.
struct Translation<'b> {
    rest: &'b str,
    case: Case,
    out: String,
    /// Within a class, the length of `out` after its opening bracket.
    class_start: Option<usize>,
    /// The number of repetition operators, `?` for lazy ones included, that end here.
    operators: usize,
}

impl<'b> Translation<'b> {
    fn new(body: &'b str, case: Case) -> Self {
        let out = String::with_capacity(body.len() + 8);
        Self { rest: body, case, out, class_start: None, operators: 0 }
    }

    fn translated(mut self) -> Result<String, String> {
        while let Some(c) = self.rest.chars().next() {
            let after = &self.rest[c.len_utf8()..];
            let is_repetition = self.counts_as_repetition(c, after)?;
            self.rest = match self.class_start {
                _ if c == '\\' => escape(after, &mut self.out),
                Some(start) => self.in_class(c, after, start),
                None if c == '{' && is_repetition => self.counted_repetition(after),
                None => self.outside_class(c, after),
            };
        }
        Ok(self.out)
    }

    /// Whether a character is a repetition operator; an error if it cannot follow the operators before it.
    fn counts_as_repetition(&mut self, c: char, after: &str) -> Result<bool, String> {
        let is_repetition =
            self.class_start.is_none() && (matches!(c, '*' | '+' | '?') || c == '{' && is_counted_repetition(after)?);
        self.operators = if is_repetition { self.operators + 1 } else { 0 };
        if self.operators > 2 || self.operators == 2 && c != '?' {
            return Err(format!("the repetition operator `{c}` cannot follow another repetition operator"));
        }
        Ok(is_repetition)
    }

    /// Converts a character of a class, and returns the rest.
    fn in_class(&mut self, c: char, after: &'b str, start: usize) -> &'b str {
        match c {
            '[' => match after.find(":]").filter(|_| after.starts_with(':')) {
                Some(end) => {
                    self.out.push('[');
                    self.out.push_str(&after[..end + 2]);
                    return &after[end + 2..];
                }
                None => self.out.push_str("\\["),
            },
            ']' if self.out.len() > start => {
                self.class_start = None;
                self.out.push(']');
            }
            ']' => self.out.push_str("\\]"),
            '&' | '~' | '-' if after.starts_with(c) => self.out.extend(['\\', c]),
            c => self.letter(c),
        }
        after
    }

    /// Converts a character outside of classes, and returns the rest.
    fn outside_class(&mut self, c: char, after: &'b str) -> &'b str {
        match c {
            '[' => {
                self.out.push('[');
                let negated = after.strip_prefix('^');
                self.out.push_str(if negated.is_some() { "^" } else { "" });
                self.class_start = Some(self.out.len());
                return negated.unwrap_or(after);
            }
            '{' => self.out.push_str("\\{"),
            c => self.letter(c),
        }
        after
    }

    /// Copies a repetition such as `{3,5}`, and returns the rest.
    fn counted_repetition(&mut self, after: &'b str) -> &'b str {
        let end = after.find('}').map_or(after.len(), |at| at + 1);
        self.out.push('{');
        self.out.push_str(&after[..end]);
        &after[end..]
    }

    /// Copies a character. `regex-lite` ignores the case of ASCII letters only, so other letters are written twice.
    fn letter(&mut self, c: char) {
        let other = Some(c).filter(|c| self.case == Case::Ignored && !c.is_ascii()).and_then(other_case);
        match other {
            Some(other) if self.class_start.is_some() => self.out.extend([c, other]),
            Some(other) => self.out.extend(['[', c, other, ']']),
            None => self.out.push(c),
        }
    }
}

/// Converts the escape after a backslash, and returns the text after it.
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
fn is_counted_repetition(after: &str) -> Result<bool, String> {
    let Some((inside, _)) = after.split_once('}') else { return Ok(false) };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    if low.is_empty() || !digits(low) || !digits(high) {
        return Ok(false);
    }
    let too_many = |text: &str| text.parse().is_ok_and(|number: u32| number > MAX_REPETITIONS) || text.len() > 9;
    match too_many(low) || too_many(high) {
        true => Err(format!("`{{{inside}}}` is more than {MAX_REPETITIONS} repetitions")),
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
        for pattern in ["/a(?!b)/", "/(?<=a)b/", "/(?<!a)b/"] {
            let refusal = RegexPattern::between_slashes(pattern).expect("slashes").err();
            assert!(refusal.is_some_and(|why| why.contains("lookarounds")), "{pattern}");
        }
        assert!(RegexPattern::between_slashes("text").is_none());
        assert!(RegexPattern::between_slashes("/text").is_none());
        assert!(RegexPattern::between_slashes("/a/g").is_none());
    }
}
