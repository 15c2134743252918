//! The patterns that are masked in a log (secret values, token prefixes, URL parameters), and a fast search for them.
//!
//! A table of the first two bytes of all patterns skips most of the text. Where a pattern may begin, a search in the
//! sorted patterns compares byte by byte. So ordinary text costs the same for any number and length of values.

use super::{base64, quoted};

/// The prefixes of GitLab's own tokens. The prefix is shown, the text after it is masked.
const TOKEN_PREFIXES: [&str; 14] = [
    "glpat-",
    "gloas-",
    "gldt-",
    "glrt-",
    "glcbt-",
    "glrtr-",
    "glptt-",
    "glft-",
    "glimt-",
    "glagent-",
    "glsoat-",
    "glffct-",
    "_gitlab_session=",
    "gltok-",
];

/// URL parameters whose values are secrets; case-insensitive.
const URL_PARAMETERS: [&[u8]; 6] = [
    b"private_token=",
    b"authenticity_token=",
    b"rss_token=",
    b"x-amz-signature=",
    b"x-amz-credential=",
    b"x-amz-security-token=",
];

/// The characters before the name of a URL parameter.
const URL_OPENERS: [u8; 2] = [b'?', b'&'];

/// The shortest line, in bytes, of a multi-line secret that is masked as a line.
const MIN_LINE_LENGTH: usize = 8;

/// The shortest value, in bytes, that is masked in Base64; a shorter one would hide unrelated text.
const MIN_BASE64_LENGTH: usize = 8;
/// The longest value that is masked in Base64: longer Base64 usually contains line breaks, and the patterns would cost
/// memory.
const MAX_BASE64_LENGTH: usize = 1024;

/// A longer value is searched for in pieces of this many bytes, which limits the text held back and compared.
const MAX_PATTERN_LENGTH: usize = 128;

/// The kind of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PatternKind {
    /// The text itself is secret.
    Value,
    /// The next piece of a secret; directly after the previous piece it gets no separate mask.
    Continuation,
    /// The text is shown, and the token characters after it are masked.
    Token,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pattern {
    bytes: Vec<u8>,
    kind: PatternKind,
}

/// The kind of text that follows a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenRun {
    /// The characters of a token.
    Token,
    /// The value of a URL parameter.
    Parameter,
}

impl TokenRun {
    /// Whether `byte` continues the run.
    pub(super) fn accepts(self, byte: u8) -> bool {
        match self {
            Self::Token => byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'=' | b'-'),
            Self::Parameter => !(byte.is_ascii_whitespace() || byte.is_ascii_control() || matches!(byte, b'?' | b'&')),
        }
    }
}

/// The patterns that begin at a position of the text.
#[derive(Debug, Default)]
pub(super) struct PatternMatches {
    /// The length of the longest value; 0 if no value matches.
    pub(super) value_length: usize,
    /// Whether the longest value continues one that ended directly before.
    pub(super) continues: bool,
    /// The length of the longest prefix, and the kind of text that follows.
    pub(super) prefix: Option<(usize, TokenRun)>,
    /// Whether more text is needed to decide if a (longer) pattern matches.
    pub(super) needs_more_text: bool,
}

impl PatternMatches {
    /// Adds a pattern that the text contains completely.
    fn add_match(&mut self, pattern: &Pattern) {
        // Patterns are passed in order of increasing length.
        match pattern.kind {
            PatternKind::Value | PatternKind::Continuation => {
                self.value_length = pattern.bytes.len();
                self.continues = pattern.kind == PatternKind::Continuation;
            }
            PatternKind::Token => self.prefix = Some((pattern.bytes.len(), TokenRun::Token)),
        }
    }

    /// Compares `text` with `pattern`, the only remaining candidate.
    fn compare_candidate(&mut self, pattern: &Pattern, text: &[u8]) {
        let common = text.len().min(pattern.bytes.len());
        if text[..common] == pattern.bytes[..common] {
            if common < pattern.bytes.len() {
                self.needs_more_text = true;
            } else {
                self.add_match(pattern);
            }
        }
    }

    /// Compares `text`, which begins after a `?` or `&`, with the names of secret URL parameters.
    fn compare_parameters(&mut self, text: &[u8]) {
        for name in URL_PARAMETERS {
            let common = text.len().min(name.len());
            if text[..common].eq_ignore_ascii_case(&name[..common]) {
                if common < name.len() {
                    self.needs_more_text = true;
                } else {
                    self.prefix = Some((1 + name.len(), TokenRun::Parameter));
                }
            }
        }
    }
}

/// The patterns of a job, ready for searching.
pub struct Masks {
    /// Sorted, so that patterns with a common beginning are adjacent.
    patterns: Vec<Pattern>,
    /// For each first byte, the range of its patterns; most are empty.
    buckets: [(u32, u32); 256],
    pairs: Pairs,
}

impl Masks {
    /// Patterns for secret values and token prefixes (in addition to the built-in ones). Blank values are ignored. Each
    /// long line of a multi-line value is a value too, as are the Base64 and shell-quoted forms of a value.
    pub fn new(values: &[String], prefixes: &[String]) -> Self {
        let mut patterns = Vec::new();
        for value in values {
            let value = value.trim();
            let lines =
                value.lines().map(str::trim).filter(|line| line.len() >= MIN_LINE_LENGTH && line.len() < value.len());
            for text in std::iter::once(value).chain(lines).filter(|text| !text.is_empty()) {
                add_value(&mut patterns, text.as_bytes());
                quoted::forms(text).iter().for_each(|form| add_value(&mut patterns, form));
            }
            if (MIN_BASE64_LENGTH..=MAX_BASE64_LENGTH).contains(&value.len()) {
                base64::forms(value.as_bytes()).iter().for_each(|form| add_value(&mut patterns, form));
            }
        }
        let tokens = TOKEN_PREFIXES.iter().copied().chain(prefixes.iter().map(|prefix| prefix.trim()));
        let tokens = tokens.filter(|prefix| !prefix.is_empty());
        patterns.extend(tokens.map(|text| Pattern { bytes: text.as_bytes().to_vec(), kind: PatternKind::Token }));
        // For equal texts, the value sorts first; a prefix that is also a value stays both.
        patterns.sort_unstable();
        patterns.dedup_by(|a, b| a.bytes == b.bytes && (a.kind == b.kind || a.kind != PatternKind::Token));
        let mut masks = Self { patterns, buckets: [(0, 0); 256], pairs: Pairs::default() };
        masks.index();
        masks
    }

    fn index(&mut self) {
        for (index, pattern) in self.patterns.iter().enumerate() {
            let first = usize::from(pattern.bytes[0]);
            let bucket = &mut self.buckets[first];
            if bucket.1 == 0 {
                bucket.0 = index as u32;
            }
            bucket.1 = index as u32 + 1;
            match pattern.bytes.get(1) {
                Some(second) => self.pairs.add(pattern.bytes[0], *second),
                None => (0..=u8::MAX).for_each(|second| self.pairs.add(pattern.bytes[0], second)),
            }
        }
        for opener in URL_OPENERS {
            for name in URL_PARAMETERS {
                self.pairs.add(opener, name[0]);
                self.pairs.add(opener, name[0].to_ascii_uppercase());
            }
        }
    }

    /// The first position, at or after `from`, at which a pattern may begin.
    pub(super) fn next_candidate(&self, text: &[u8], from: usize) -> usize {
        self.pairs.next(text, from)
    }

    /// The patterns that begin at the start of `text`.
    pub(super) fn find(&self, text: &[u8]) -> PatternMatches {
        let mut found = PatternMatches::default();
        let Some(first) = text.first() else { return found };
        if URL_OPENERS.contains(first) {
            found.compare_parameters(&text[1..]);
        }
        if text.get(1).is_some_and(|second| !self.pairs.has(*first, *second)) {
            return found;
        }
        let (low, high) = self.buckets[usize::from(*first)];
        let mut candidates = &self.patterns[low as usize..high as usize];
        // Patterns are sorted: all between the first and the last remaining one share the common prefix of these two.
        let mut depth = 1;
        while let [shortest, .., last] = candidates {
            let common = common_length(&shortest.bytes[depth..], &last.bytes[depth..]);
            let available = common.min(text.len() - depth);
            if text[depth..depth + available] != shortest.bytes[depth..depth + available] {
                return found;
            }
            depth += available;
            if available < common {
                found.needs_more_text = true;
                return found;
            }
            if shortest.bytes.len() == depth {
                found.add_match(shortest);
                candidates = &candidates[1..];
                continue;
            }
            let Some(byte) = text.get(depth) else {
                found.needs_more_text = true;
                return found;
            };
            let begin = candidates.partition_point(|pattern| pattern.bytes[depth] < *byte);
            candidates = &candidates[begin..];
            candidates = &candidates[..candidates.partition_point(|pattern| pattern.bytes[depth] == *byte)];
            depth += 1;
        }
        if let [only] = candidates {
            found.compare_candidate(only, text);
        }
        found
    }
}

/// A bit for each pair of bytes with which a pattern begins.
struct Pairs {
    bits: Box<[u64; 1024]>,
    /// Whether there is a pair with this first byte.
    firsts: [bool; 256],
}

impl Default for Pairs {
    fn default() -> Self {
        Self { bits: Box::new([0; 1024]), firsts: [false; 256] }
    }
}

impl Pairs {
    fn add(&mut self, first: u8, second: u8) {
        let pair = u16::from_le_bytes([first, second]);
        self.bits[usize::from(pair >> 6)] |= 1 << (pair & 63);
        self.firsts[usize::from(first)] = true;
    }

    fn has(&self, first: u8, second: u8) -> bool {
        let pair = u16::from_le_bytes([first, second]);
        self.bits[usize::from(pair >> 6)] >> (pair & 63) & 1 == 1
    }

    /// The first position, at or after `from`, with such a pair, or with a possible first byte at the end of the text.
    fn next(&self, text: &[u8], from: usize) -> usize {
        let mut at = from;
        // Most text contains no such pair: check four positions at a time.
        while let Some(&[a, b, c, d, e]) = text[at..].first_chunk() {
            if self.has(a, b) | self.has(b, c) | self.has(c, d) | self.has(d, e) {
                break;
            }
            at += 4;
        }
        while let Some(&[first, second]) = text[at..].first_chunk() {
            if self.has(first, second) {
                return at;
            }
            at += 1;
        }
        // The last byte is not yet part of a pair.
        let may_begin = text.get(at).is_some_and(|last| self.firsts[usize::from(*last)]);
        if may_begin { at } else { text.len() }
    }
}

/// The length of the common prefix of two texts.
fn common_length(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Adds a value; a long one in pieces. The last piece overlaps the one before, so that no piece is too short.
fn add_value(patterns: &mut Vec<Pattern>, value: &[u8]) {
    if value.len() <= MAX_PATTERN_LENGTH {
        patterns.push(Pattern { bytes: value.to_vec(), kind: PatternKind::Value });
        return;
    }
    for (index, piece) in value.chunks_exact(MAX_PATTERN_LENGTH).enumerate() {
        let kind = if index == 0 { PatternKind::Value } else { PatternKind::Continuation };
        patterns.push(Pattern { bytes: piece.to_vec(), kind });
    }
    patterns
        .push(Pattern { bytes: value[value.len() - MAX_PATTERN_LENGTH..].to_vec(), kind: PatternKind::Continuation });
}
