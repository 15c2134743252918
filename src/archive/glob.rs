//! Patterns of `artifacts:paths`: `*` and `?` within a name, `**` across directories, `[classes]`, `{alternatives}`
//! (also with slashes inside), `\` before a literal character.
//!
//! Names are bytes; a character is a UTF-8 character if the bytes are valid, otherwise one byte. Dot files are ordinary
//! files. A directory that matches includes everything below it; the walk implements that, not the pattern.

mod parse;

use std::fmt;

use self::parse::{expand_braces, parse_segment, split_segments};

/// A pattern; it matches if one of its alternatives matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobPattern {
    alternatives: Vec<Vec<Segment>>,
}

/// The part of a pattern between two slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// `**`: any number of directories, including none.
    AnyDepth,
    /// A name without wildcards.
    Literal(Vec<u8>),
    /// A name with wildcards.
    Wild(Vec<GlobToken>),
}

/// A part of a [`Segment::Wild`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GlobToken {
    /// A literal character.
    Char(u32),
    /// `?`
    Any,
    /// `*`
    Star,
    /// `[...]`: a character within one of these inclusive ranges, or, if negated, outside all of them.
    Class { negated: bool, ranges: Vec<(u32, u32)> },
}

/// The reason why a pattern is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPattern(&'static str);

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadPattern {}

impl GlobPattern {
    /// Parses a pattern. Leading and trailing slashes and empty or `.` segments are ignored.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let mut alternatives = Vec::new();
        for text in expand_braces(text.as_bytes())? {
            let segments = split_segments(&text);
            let mut segments = segments.into_iter().map(|s| parse_segment(&s)).collect::<Result<Vec<_>, _>>()?;
            // Consecutive `**` are equivalent to one.
            segments.dedup_by(|one, other| *one == Segment::AnyDepth && one == other);
            alternatives.push(segments);
        }
        Ok(Self { alternatives })
    }

    /// The total size of its alternatives, in bytes.
    pub fn size(&self) -> usize {
        let segment = |segment: &Segment| match segment {
            Segment::AnyDepth => 1,
            Segment::Literal(name) => name.len(),
            Segment::Wild(tokens) => tokens.len() * size_of::<GlobToken>(),
        };
        self.alternatives.iter().flatten().map(segment).sum()
    }

    /// Each alternative as segments, for a walk of the tree.
    pub fn alternatives(&self) -> &[Vec<Segment>] {
        &self.alternatives
    }

    /// Whether the whole relative path matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        let names: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|name| !name.is_empty()).collect();
        self.alternatives.iter().any(|segments| matches_segments(segments, &names))
    }
}

impl Segment {
    /// Whether this segment, unless it is `**`, matches a name.
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::AnyDepth => false,
            Self::Literal(literal) => literal == name,
            Self::Wild(tokens) => matches_tokens(tokens, name),
        }
    }
}

/// Matches with one backtracking position per wildcard: after a later `**` has matched, no earlier one needs a retry.
/// So the cost is at most the number of names times the number of segments.
fn matches_segments(segments: &[Segment], names: &[&[u8]]) -> bool {
    let (mut s, mut n) = (0, 0);
    let mut retry = None;
    loop {
        match segments.get(s) {
            Some(Segment::AnyDepth) => {
                retry = Some((s + 1, n));
                s += 1;
                continue;
            }
            Some(segment) if n < names.len() && segment.matches(names[n]) => {
                s += 1;
                n += 1;
                continue;
            }
            None if n == names.len() => return true,
            _ => {}
        }
        match retry {
            Some((after, from)) if from < names.len() => {
                retry = Some((after, from + 1));
                s = after;
                n = from + 1;
            }
            _ => return false,
        }
    }
}

fn matches_tokens(tokens: &[GlobToken], name: &[u8]) -> bool {
    let (mut t, mut at) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match tokens.get(t) {
            Some(GlobToken::Star) => {
                retry = Some((t + 1, at));
                t += 1;
                continue;
            }
            Some(token) if at < name.len() => {
                let (c, width) = next_char(&name[at..]);
                if token.matches(c) {
                    t += 1;
                    at += width;
                    continue;
                }
            }
            None if at == name.len() => return true,
            _ => {}
        }
        match retry {
            Some((after, from)) if from < name.len() => {
                let next = from + next_char(&name[from..]).1;
                retry = Some((after, next));
                t = after;
                at = next;
            }
            _ => return false,
        }
    }
}

impl GlobToken {
    fn matches(&self, c: u32) -> bool {
        match self {
            Self::Char(this) => *this == c,
            Self::Any => true,
            Self::Star => false,
            Self::Class { negated, ranges } => ranges.iter().any(|&(low, high)| low <= c && c <= high) != *negated,
        }
    }
}

/// The first character and its length in bytes; an invalid UTF-8 byte is a character outside Unicode.
fn next_char(bytes: &[u8]) -> (u32, usize) {
    const NOT_UNICODE: u32 = 0x0100_0000;
    let longest = bytes.len().min(4);
    for width in 1..=longest {
        if let Ok(text) = std::str::from_utf8(&bytes[..width]) {
            return (text.chars().next().map_or(0, u32::from), width);
        }
    }
    (NOT_UNICODE + u32::from(bytes[0]), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        GlobPattern::parse(pattern).unwrap().matches(path.as_bytes())
    }

    /// A pattern, paths that match, paths that do not match.
    const TABLE: &[(&str, &[&str], &[&str])] = &[
        ("abc", &["abc"], &["ab", "abcd", "a/abc", ""]),
        ("*", &["abc", ".hidden", "a.b"], &["a/b", ""]),
        ("*c", &["abc", "c", "xcc"], &["abcd", "a/c"]),
        ("a*", &["a", "abc"], &["ab/c", "ba"]),
        ("a*/b", &["a/b", "abc/b"], &["a/c/b", "b"]),
        ("a*b*c*d*e*", &["axbxcxdxe", "axbxcxdxexxx"], &["axbxcxdx", "axbxcxdxe/xxx"]),
        ("a*b*c*d*e*/f", &["axbxcxdxe/f", "axbxcxdxexxx/f"], &["axbxcxdxe/xxx/f", "axbxcxdxexxx/fff"]),
        ("a*b?c*x", &["abxbbxdbxebxczzx"], &["abxbbxdbxebxczzy"]),
        ("a?c", &["abc", "aéc", "a☺c"], &["ac", "abbc", "a/c"]),
        ("a?b", &["a☺b"], &["a☺☺b"]),
        ("a???b", &["aäöüb"], &["a☺b"]),
        ("ab[c]", &["abc"], &["abd", "ab"]),
        ("ab[b-d]", &["abc"], &["aba", "abe"]),
        ("ab[e-g]", &[], &["abc"]),
        ("ab[^c]", &["abd"], &["abc"]),
        ("ab[!c]", &["abd"], &["abc"]),
        ("ab[^b-d]", &["aba"], &["abc"]),
        ("a[^a]b", &["a☺b"], &["aab", "a/b"]),
        ("a[^a][^a][^a]b", &[], &["a☺b"]),
        ("[a-ζ]*", &["α"], &[]),
        ("*[a-ζ]", &[], &["A"]),
        ("a[\\]]b", &["a]b"], &["ab"]),
        ("a[\\-]b", &["a-b"], &["axb"]),
        ("[x\\-]", &["x", "-"], &["z"]),
        ("[\\-x]", &["x", "-"], &["a"]),
        ("[x-]", &["x", "-"], &["z"]),
        ("[a-b-d]", &["a", "b", "-", "d"], &["c"]),
        ("a\\*b", &["a*b"], &["axb"]),
        ("\\[a]", &["[a]"], &["a"]),
        ("a]", &["a]"], &["a"]),
        ("a}", &["a}"], &["a"]),
        ("a,b", &["a,b"], &["a", "b"]),
        ("**", &["", "a", "a/b", "a/b/c", ".a/.b"], &[]),
        ("**/", &["a", "a/b"], &[]),
        ("a/**", &["a", "a/b", "a/b/c"], &["b/a", "ab"]),
        ("**/c", &["c", "b/c", "a/b/c"], &["c/d", "bc"]),
        ("a/**/d", &["a/d", "a/b/d", "a/b/c/d"], &["a/b/c/d/e", "ad", "b/a/d"]),
        ("a/**/b/**/c", &["a/b/c", "a/x/b/y/z/c", "a/b/b/c/c"], &["a/c/b", "a/b"]),
        ("**/**/a", &["a", "b/a", "b/c/a"], &["a/b"]),
        ("a**", &["a", "abc"], &["a/b", "ba"]),
        ("**c", &["c", "abc"], &["a/c"]),
        ("a/**/*", &["a/b", "a/b/c"], &["a", "b"]),
        ("**/*.txt", &["a.txt", "d/a.txt", "d/.e/.txt"], &["a.txt/b", "a.tx"]),
        ("{a,b}", &["a", "b"], &["c", "ab", "a,b"]),
        ("{a,b}c", &["ac", "bc"], &["a", "c"]),
        ("{a,}", &["a"], &["b"]),
        ("a{,b}", &["a", "ab"], &["b"]),
        ("a{b,{c,d}}e", &["abe", "ace", "ade"], &["ae", "abce"]),
        ("{a/b,c}/d", &["a/b/d", "c/d"], &["a/d", "b/d"]),
        ("{**/a,b}/c", &["x/y/a/c", "a/c", "b/c"], &["x/b/c"]),
        ("a/{**,x}", &["a", "a/q/r", "a/x"], &["b"]),
        ("{a*,b?}", &["a", "axx", "bz"], &["b", "bzz"]),
        ("a{b}c", &["abc"], &["a{b}c"]),
        ("a\\{b,c\\}", &["a{b,c}"], &["ab"]),
        ("[{a,b}]", &["{", "a", ",", "b", "}"], &["c"]),
        ("{[,],x}", &["x", ","], &["a"]),
        ("./a/./b/", &["a/b"], &["a", "a/b/c"]),
        ("/a//b", &["a/b"], &["a"]),
        ("日本/*.語", &["日本/x.語"], &["日/x.語"]),
        ("x y/*", &["x y/z w"], &["x/y"]),
    ];

    #[test]
    fn matches_as_in_the_table() {
        for (pattern, yes, no) in TABLE {
            for path in *yes {
                assert!(matches(pattern, path), "{pattern:?} should match {path:?}");
            }
            for path in *no {
                assert!(!matches(pattern, path), "{pattern:?} should not match {path:?}");
            }
        }
    }

    #[test]
    fn refuses_invalid_patterns() {
        for pattern in ["[", "[^", "[a", "a[", "[]", "[^]", "a\\", "{a", "{a,{b}", "x/[a-/y"] {
            assert!(GlobPattern::parse(pattern).is_err(), "{pattern:?} should not parse");
        }
        assert!(GlobPattern::parse(&"{a,b}".repeat(20)).is_err());
        assert!(GlobPattern::parse(&format!("{{{}}}{}", ["a"; 4000].join(","), "x".repeat(1 << 20))).is_err());
        assert!(GlobPattern::parse(&format!("{{{}}}{}", ["a"; 4000].join(","), "x".repeat(1000))).is_err());
        assert!(GlobPattern::parse(&"{".repeat(300_000)).is_err());
    }

    #[test]
    fn matches_names_that_are_not_utf8() {
        let pattern = GlobPattern::parse("a?b*").unwrap();
        assert!(pattern.matches(b"a\xffb\xfe"));
        assert!(!GlobPattern::parse("a[\u{80}-\u{ff}]").unwrap().matches(b"a\xff"));
    }

    #[test]
    fn many_wildcards_have_linear_cost() {
        let pattern = "**/a*a*a*a*a*a*a*a*/".repeat(12) + "x";
        let path = vec!["a".repeat(60); 40].join("/");
        assert!(!matches(&pattern, &path));
    }
}
