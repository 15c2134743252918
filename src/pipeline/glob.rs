//! Patterns of `changes` and `exists`. They match as Ruby's `File.fnmatch` does with the options for path names, dot
//! files and braces.
//!
//! `*` and `?` do not match a slash, and match dot files; `**/` matches any number of directories; any other `**` is
//! the same as `*`.

/// The number of alternatives that braces may expand to.
const MAX_ALTERNATIVES: usize = 1000;

/// The maximum size of a pattern with braces, in bytes. Each level of braces copies the pattern.
const MAX_BRACED_SIZE: usize = 4096;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Glob {
    alternatives: Vec<Vec<Segment>>,
}

#[derive(Clone, Debug)]
enum Segment {
    /// `**/`: any number of directories.
    AnyDepth,
    /// A path segment without wildcards.
    Literal(String),
    /// A path segment with wildcards.
    Wild(Vec<Token>),
}

#[derive(Clone, Debug)]
enum Token {
    Char(char),
    Any,
    Star,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// Compiles a pattern. `None`: its braces expand to too many alternatives.
    pub fn new(pattern: &str) -> Option<Self> {
        let mut texts = Vec::new();
        expand_braces(pattern, &mut texts)?;
        Some(Self { alternatives: texts.iter().map(|text| segments(text)).collect() })
    }

    /// Whether the whole path matches.
    pub fn matches(&self, path: &str) -> bool {
        self.alternatives.iter().any(|segments| matches_segments(segments, path))
    }

    /// The only path that can match, if the pattern has no wildcards.
    pub fn literal(&self) -> Option<String> {
        let [segments] = self.alternatives.as_slice() else { return None };
        let names: Option<Vec<&str>> = segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        names.map(|names| names.join("/"))
    }
}

/// Expands `a{b,c{d,e}}f` to `abf`, `acdf`, `acef`. An unbalanced brace matches itself.
fn expand_braces(pattern: &str, out: &mut Vec<String>) -> Option<()> {
    let Some((open, close)) = outer_braces(pattern) else {
        out.push(pattern.to_owned());
        return (out.len() <= MAX_ALTERNATIVES).then_some(());
    };
    let (before, after) = (&pattern[..open], &pattern[close + 1..]);
    for option in split_options(&pattern[open + 1..close]) {
        if pattern.len() > MAX_BRACED_SIZE {
            return None;
        }
        expand_braces(&format!("{before}{option}{after}"), out)?;
    }
    Some(())
}

fn outer_braces(pattern: &str) -> Option<(usize, usize)> {
    let (mut depth, mut open, mut escaped) = (0, 0, false);
    for (at, c) in pattern.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => {
                if depth == 0 {
                    open = at;
                }
                depth += 1;
            }
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return Some((open, at));
                }
            }
            _ => {}
        }
    }
    None
}

fn split_options(inside: &str) -> Vec<&str> {
    let (mut options, mut depth, mut start, mut escaped) = (Vec::new(), 0, 0, false);
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                options.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    options.push(&inside[start..]);
    options
}

fn segments(text: &str) -> Vec<Segment> {
    let names: Vec<&str> = text.split('/').collect();
    let last = names.len() - 1;
    let mut segments: Vec<Segment> = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        if name == "**" && number < last {
            if !matches!(segments.last(), Some(Segment::AnyDepth)) {
                segments.push(Segment::AnyDepth);
            }
        } else {
            segments.push(segment(name));
        }
    }
    segments
}

fn segment(name: &str) -> Segment {
    let mut tokens = Vec::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '*' => {
                if !matches!(tokens.last(), Some(Token::Star)) {
                    tokens.push(Token::Star);
                }
            }
            '?' => tokens.push(Token::Any),
            '[' => match class(rest) {
                Some((token, after)) => {
                    tokens.push(token);
                    rest = after;
                }
                // As in fnmatch, an unclosed class matches nothing: no path segment contains a slash.
                None => tokens.push(Token::Char('/')),
            },
            '\\' => {
                let literal = rest.chars().next().unwrap_or('\\');
                rest = rest.strip_prefix(literal).unwrap_or(rest);
                tokens.push(Token::Char(literal));
            }
            c => tokens.push(Token::Char(c)),
        }
    }
    let literal: Option<String> = tokens
        .iter()
        .map(|token| match token {
            Token::Char(c) => Some(*c),
            _ => None,
        })
        .collect();
    literal.map_or(Segment::Wild(tokens), Segment::Literal)
}

/// Parses a class after its opening bracket; returns the class and the rest of the text.
fn class(text: &str) -> Option<(Token, &str)> {
    let (negated, mut rest) = match text.strip_prefix(['!', '^']) {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        if c == ']' {
            return Some((Token::Class { negated, ranges }, rest));
        }
        let low = unescape(c, &mut rest)?;
        let high = match rest.strip_prefix('-').filter(|after| !after.starts_with(']')) {
            Some(after) => {
                let c = after.chars().next()?;
                rest = &after[c.len_utf8()..];
                unescape(c, &mut rest)?
            }
            None => low,
        };
        ranges.push((low, high));
    }
}

fn unescape(c: char, rest: &mut &str) -> Option<char> {
    if c != '\\' {
        return Some(c);
    }
    let c = rest.chars().next()?;
    *rest = &rest[c.len_utf8()..];
    Some(c)
}

/// Matches the segments by backtracking. For `**/` here, as for `*` within a segment, it is enough to backtrack to the
/// last one.
fn matches_segments(segments: &[Segment], path: &str) -> bool {
    let mut pattern = segments;
    let mut rest = Some(path);
    let mut back: Option<(&[Segment], &str)> = None;
    loop {
        let step = match (pattern.split_first(), rest) {
            (Some((Segment::AnyDepth, after)), Some(text)) => {
                back = Some((after, text));
                pattern = after;
                continue;
            }
            (Some((segment, after)), Some(text)) => {
                let (name, next) = text.split_once('/').map_or((text, None), |(name, next)| (name, Some(next)));
                segment.matches(name).then_some((after, next))
            }
            (None, None) => return true,
            _ => None,
        };
        if let Some((after, next)) = step {
            pattern = after;
            rest = next;
            continue;
        }
        // Let the last `**/` match one more directory.
        let Some((after, text)) = back else { return false };
        let Some((_, next)) = text.split_once('/') else { return false };
        back = Some((after, next));
        pattern = after;
        rest = Some(next);
    }
}

impl Segment {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::AnyDepth => false,
            Self::Literal(literal) => literal == name,
            Self::Wild(tokens) => matches_tokens(tokens, name),
        }
    }
}

fn matches_tokens(tokens: &[Token], name: &str) -> bool {
    let (mut pattern, mut text) = (tokens, name);
    let mut back: Option<(&[Token], &str)> = None;
    loop {
        match (pattern.split_first(), text.chars().next()) {
            (Some((Token::Star, after)), _) => {
                back = Some((after, text));
                pattern = after;
                continue;
            }
            (Some((token, after)), Some(c)) if token.matches(c) => {
                pattern = after;
                text = &text[c.len_utf8()..];
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        let Some((after, from)) = back else { return false };
        let Some(c) = from.chars().next() else { return false };
        let from = &from[c.len_utf8()..];
        back = Some((after, from));
        pattern = after;
        text = from;
    }
}

impl Token {
    fn matches(&self, c: char) -> bool {
        match self {
            Self::Char(wanted) => *wanted == c,
            Self::Any => true,
            Self::Star => false,
            Self::Class { negated, ranges } => ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Glob::new(pattern).expect("the pattern must be within the limits").matches(path)
    }

    #[test]
    fn matches_as_fnmatch() {
        for (pattern, path, expected) in [
            ("*.md", "README.md", true),
            ("*.md", "docs/a.md", false),
            ("**/*.md", "README.md", true),
            ("**/*.md", "docs/x/a.md", true),
            ("docs/**/*", "docs/a/b", true),
            ("docs/**/*", "docs", false),
            ("src/**", "src/a", true),
            ("src/**", "src/a/b", false),
            ("**", "a", true),
            ("**", "a/b", false),
            ("teams/**.yml", "teams/e.yml", true),
            ("teams/**.yml", "teams/x/e.yml", false),
            ("conf/*", "conf/.hidden", true),
            ("**/x/**/y", "x/a/x/b/y", true),
            ("**/x/**/y", "a/x/b", false),
            ("a/{b,c/d}/*.{rs,toml}", "a/c/d/x.toml", true),
            ("a/{b,c/d}/*.{rs,toml}", "a/c/x.toml", false),
            ("{a,b{c,d}}", "bd", true),
            ("fil?.c", "file.c", true),
            ("[a-d]eep", "deep", true),
            ("[!a-d]eep", "deep", false),
            ("[^a-d]eep", "keep", true),
            ("[a", "a", false),
            (r"\*.c", "*.c", true),
            (r"\*.c", "a.c", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("docs/", "docs/", true),
            ("docs/", "docs/a", false),
            ("{a", "{a", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn limits_braces_and_backtracking() {
        assert!(Glob::new(&"{a,b}".repeat(30)).is_none());
        assert!(!matches(&format!("{}x", "*a".repeat(2000)), &"a".repeat(20_000)));
        assert!(!matches(&format!("{}x", "**/a/".repeat(200)), &"a/".repeat(2000)));
    }
}
