//! Secrets never reach the log: one streaming filter that holds however the text is cut into writes.
//!
//! It looks at every position of the text once. A table of first bytes passes over most of them; at the others the
//! patterns that begin with that byte are compared. Nothing is emitted that could still become the start of a secret:
//! exactly the tail that is a proper prefix of one is held back until more text comes or the stream ends.

/// What stands in for a secret.
pub const MASK: &[u8] = b"[MASKED]";

/// Prefixes of GitLab's own tokens: the prefix stays, what follows is masked.
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

/// Parameters of URLs whose values are secrets; matched after `?` or `&`, in any case.
const URL_PARAMETERS: [&str; 6] = [
    "private_token=",
    "authenticity_token=",
    "rss_token=",
    "x-amz-signature=",
    "x-amz-credential=",
    "x-amz-security-token=",
];

/// The lines of a secret of several lines are masked one by one from this length (bytes).
const LINE_MIN: usize = 8;

/// A longer value is looked for in pieces of this many bytes, which bounds what is held back and compared.
const PIECE: usize = 128;

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The text itself is the secret.
    Value,
    /// The text goes on a secret; right behind another piece it needs no mask of its own.
    Continuation,
    /// The text stays; the run of token characters behind it is masked.
    Token,
    /// The text stays; the value of the URL parameter behind it is masked. Case does not matter.
    Parameter,
}

struct Pattern {
    bytes: Vec<u8>,
    kind: Kind,
}

/// What runs on behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Token,
    Parameter,
}

impl Run {
    fn takes(self, byte: u8) -> bool {
        match self {
            Self::Token => byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'=' | b'-'),
            Self::Parameter => !(byte.is_ascii_whitespace() || byte.is_ascii_control() || matches!(byte, b'?' | b'&')),
        }
    }
}

/// The patterns of a job, ready to search.
pub struct Masks {
    /// Sorted, so that those with a common first byte stand together.
    patterns: Vec<Pattern>,
    /// For each first byte the range of its patterns; empty for most.
    buckets: [(u32, u32); 256],
    /// A bit for each pair of bytes with which a pattern begins: most positions of a text are passed over by it.
    pairs: Box<[u64; 1024]>,
}

/// Adds a value, a long one in pieces; the last piece overlaps the one before, so that none is too short to tell.
fn add_value(patterns: &mut Vec<Pattern>, value: &[u8]) {
    if value.len() <= PIECE {
        patterns.push(Pattern { bytes: value.to_vec(), kind: Kind::Value });
        return;
    }
    for (index, piece) in value.chunks_exact(PIECE).enumerate() {
        let kind = if index == 0 { Kind::Value } else { Kind::Continuation };
        patterns.push(Pattern { bytes: piece.to_vec(), kind });
    }
    patterns.push(Pattern { bytes: value[value.len() - PIECE..].to_vec(), kind: Kind::Continuation });
}

/// What begins at a position of the text.
#[derive(Default)]
struct Found {
    /// Bytes of the longest value, 0 for none.
    value: usize,
    /// The longest value goes on one that ended right before.
    continues: bool,
    /// Bytes of the longest prefix, and what runs on behind it.
    prefix: Option<(usize, Run)>,
    /// The text ends before it is clear whether a (longer) pattern is there.
    open: bool,
}

impl Masks {
    /// Patterns for these secret values and token prefixes (beside the built-in ones). Blank values are dropped;
    /// each long line of a value of several lines counts as a value too.
    pub fn new(values: &[String], prefixes: &[String]) -> Self {
        let mut patterns = Vec::new();
        for value in values {
            let value = value.trim();
            let lines = value.lines().map(str::trim).filter(|line| line.len() >= LINE_MIN && line.len() < value.len());
            for text in std::iter::once(value).chain(lines).filter(|text| !text.is_empty()) {
                add_value(&mut patterns, text.as_bytes());
            }
        }
        let tokens = TOKEN_PREFIXES.iter().copied().chain(prefixes.iter().map(String::as_str));
        let tokens = tokens.filter(|prefix| !prefix.trim().is_empty());
        patterns.extend(tokens.map(|text| Pattern { bytes: text.trim().as_bytes().to_vec(), kind: Kind::Token }));
        for name in URL_PARAMETERS {
            for opener in ["?", "&"] {
                patterns.push(Pattern { bytes: format!("{opener}{name}").into_bytes(), kind: Kind::Parameter });
            }
        }
        // A text that is both a value and a piece of another counts as the value.
        patterns.sort_by(|a, b| a.bytes.cmp(&b.bytes).then((a.kind as u8).cmp(&(b.kind as u8))));
        patterns.dedup_by(|a, b| a.bytes == b.bytes);
        let mut buckets = [(0, 0); 256];
        for (index, pattern) in patterns.iter().enumerate() {
            let bucket = &mut buckets[usize::from(pattern.bytes[0])];
            if bucket.1 == 0 {
                bucket.0 = index as u32;
            }
            bucket.1 = index as u32 + 1;
        }
        let mut pairs = Box::new([0; 1024]);
        for pattern in &patterns {
            let seconds = match pattern.bytes.get(1) {
                Some(second) => [second.to_ascii_lowercase(), second.to_ascii_uppercase(), *second].to_vec(),
                None => (0..=255).collect(),
            };
            for second in seconds {
                let pair = usize::from(pattern.bytes[0]) << 8 | usize::from(second);
                pairs[pair / 64] |= 1 << (pair % 64);
            }
        }
        Self { patterns, buckets, pairs }
    }

    /// The first position from `from` on at which a pattern may begin.
    fn next_candidate(&self, text: &[u8], from: usize) -> usize {
        let mut position = from;
        while let [first, second, ..] = text[position..] {
            let pair = usize::from(first) << 8 | usize::from(second);
            if self.pairs[pair / 64] >> (pair % 64) & 1 == 1 {
                return position;
            }
            position += 1;
        }
        // The last byte has no pair yet.
        match text.get(position) {
            Some(last) if self.buckets[usize::from(*last)].1 == 0 => position + 1,
            _ => position,
        }
    }

    /// What begins at the start of `text`.
    fn find(&self, text: &[u8]) -> Found {
        let mut found = Found::default();
        let Some(first) = text.first() else { return found };
        let (mut low, mut high) = self.buckets[usize::from(*first)];
        for pattern in &self.patterns[low as usize..high as usize] {
            if pattern.kind == Kind::Parameter {
                found.parameter(text, &pattern.bytes);
            }
        }
        // Patterns are sorted: each further byte of the text narrows the range of those that still fit.
        let mut depth = 1;
        while low < high {
            if self.patterns[low as usize].bytes.len() == depth {
                found.whole(&self.patterns[low as usize]);
                low += 1;
                continue;
            }
            let Some(byte) = text.get(depth) else {
                found.open = true;
                break;
            };
            let range = &self.patterns[low as usize..high as usize];
            let begin = range.partition_point(|pattern| pattern.bytes[depth] < *byte);
            let end = range.partition_point(|pattern| pattern.bytes[depth] <= *byte);
            (low, high) = (low + begin as u32, low + end as u32);
            depth += 1;
        }
        found
    }
}

impl Found {
    fn parameter(&mut self, text: &[u8], name: &[u8]) {
        let common = text.len().min(name.len());
        if !text[..common].eq_ignore_ascii_case(&name[..common]) {
            return;
        }
        if common < name.len() {
            self.open = true;
        } else {
            self.prefix = Some((name.len(), Run::Parameter));
        }
    }

    fn whole(&mut self, pattern: &Pattern) {
        match pattern.kind {
            // Patterns come in growing length.
            Kind::Value | Kind::Continuation => {
                self.value = pattern.bytes.len();
                self.continues = pattern.kind == Kind::Continuation;
            }
            Kind::Token => self.prefix = Some((pattern.bytes.len(), Run::Token)),
            Kind::Parameter => {}
        }
    }
}

/// One stream's way through the masks.
pub struct Masker<'a> {
    masks: &'a Masks,
    /// The tail that may become the start of a secret.
    held: Vec<u8>,
    hiding: Option<Hiding>,
    /// A secret ended right before the current position.
    just_hidden: bool,
}

/// A secret is going by.
#[derive(Clone, Copy)]
struct Hiding {
    /// Bytes that belong to it for certain.
    certain: usize,
    /// What goes on for as long as the bytes fit.
    run: Option<Run>,
    /// The mask stands in the output already.
    written: bool,
}

impl<'a> Masker<'a> {
    /// A stream at its beginning.
    pub fn new(masks: &'a Masks) -> Self {
        Self { masks, held: Vec::new(), hiding: None, just_hidden: false }
    }

    /// Takes `text` and appends to `out` what is certain not to be (the start of) a secret.
    pub fn push(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.held.is_empty() {
            let done = self.scan(text, out, false);
            self.held.extend_from_slice(&text[done..]);
            return;
        }
        let mut joined = std::mem::take(&mut self.held);
        joined.extend_from_slice(text);
        let done = self.scan(&joined, out, false);
        joined.drain(..done);
        self.held = joined;
    }

    /// The stream is over: what was held back is no secret.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        self.scan(&held, out, true);
        self.hiding = None;
    }

    /// Goes over `text` and returns how much of it is settled; `last` settles all of it.
    fn scan(&mut self, text: &[u8], out: &mut Vec<u8>, last: bool) -> usize {
        let mut position = 0;
        while position < text.len() {
            if self.hiding.is_none() {
                let candidate = self.masks.next_candidate(text, position);
                out.extend_from_slice(&text[position..candidate]);
                self.just_hidden &= candidate == position;
                position = candidate;
                if position == text.len() {
                    break;
                }
            }
            let found = self.masks.find(&text[position..]);
            if found.open && !last {
                break;
            }
            position += self.step(text, position, &found, out);
        }
        position
    }

    /// Deals with the byte at `position`, or with the prefix that begins there; returns how many bytes that were.
    fn step(&mut self, text: &[u8], position: usize, found: &Found, out: &mut Vec<u8>) -> usize {
        if let Some(hiding) = &mut self.hiding {
            hiding.certain = hiding.certain.max(found.value);
            if let Some((length, run)) = found.prefix.filter(|_| hiding.certain > 0) {
                hiding.certain = hiding.certain.max(length);
                hiding.run = Some(run);
            }
            let inside = hiding.certain > 0 || hiding.run.is_some_and(|run| run.takes(text[position]));
            if inside {
                if !hiding.written {
                    out.extend_from_slice(MASK);
                    hiding.written = true;
                }
                hiding.certain = hiding.certain.saturating_sub(1);
                if hiding.certain == 0 && hiding.run.is_none() {
                    self.hiding = None;
                    self.just_hidden = true;
                }
                return 1;
            }
            self.hiding = None;
        }
        if let Some((length, run)) = found.prefix {
            self.just_hidden = false;
            out.extend_from_slice(&text[position..position + length]);
            let certain = found.value.saturating_sub(length);
            self.hiding = Some(Hiding { certain, run: Some(run), written: false });
            return length;
        }
        if found.value > 0 {
            if !(found.continues && self.just_hidden) {
                out.extend_from_slice(MASK);
            }
            self.hiding = (found.value > 1).then(|| Hiding { certain: found.value - 1, run: None, written: true });
            self.just_hidden = self.hiding.is_none();
            return 1;
        }
        self.just_hidden = false;
        out.push(text[position]);
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(values: &[&str], parts: &[&[u8]]) -> String {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let masks = Masks::new(&values, &["custom-".to_owned()]);
        let mut masker = Masker::new(&masks);
        let mut out = Vec::new();
        for part in parts {
            masker.push(part, &mut out);
        }
        masker.finish(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn replaces_values_prefix_tails_and_parameters() {
        for (text, expected) in [
            ("a s3cr3t b", "a [MASKED] b"),
            ("s3cr3ts3cr3t", "[MASKED][MASKED]"),
            ("glpat-AbC_1.2=x y", "glpat-[MASKED] y"),
            ("glpat- y", "glpat- y"),
            ("custom-zz!", "custom-[MASKED]!"),
            ("https://h/?Private_Token=abc&x=1", "https://h/?Private_Token=[MASKED]&x=1"),
            ("u?a=1&X-Amz-Signature=ff\n", "u?a=1&X-Amz-Signature=[MASKED]\n"),
            ("private_token=abc", "private_token=abc"),
        ] {
            assert_eq!(masked(&["s3cr3t"], &[text.as_bytes()]), expected);
        }
    }

    #[test]
    fn masks_a_value_split_over_any_writes() {
        let text = b"x aab aaab glpat-zz aabb".as_slice();
        let whole = masked(&["aab"], &[text]);
        assert_eq!(whole, "x [MASKED] a[MASKED] glpat-[MASKED] [MASKED]b");
        for cut in 0..=text.len() {
            assert_eq!(masked(&["aab"], &[&text[..cut], &text[cut..]]), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(masked(&["aab"], &bytes), whole);
    }

    #[test]
    fn masks_the_union_of_overlapping_values() {
        assert_eq!(masked(&["abcd", "cdef"], &[b"abcdef"]), "[MASKED]");
        assert_eq!(masked(&["abcd", "cdef"], &[b"abc", b"de", b"f!"]), "[MASKED]!");
        assert_eq!(masked(&["abc", "abcdef"], &[b"abcde abcdef"]), "[MASKED]de [MASKED]");
        assert_eq!(masked(&["glpat-abc"], &[b"glpat-abcdef!"]), "glpat-[MASKED]!");
        assert_eq!(masked(&["glpat-a b c"], &[b"glpat-a b c d"]), "glpat-[MASKED] d");
    }

    #[test]
    fn masks_each_long_line_of_a_value_of_several_lines() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nab\n-----END KEY-----";
        assert_eq!(masked(&[key], &[key.as_bytes()]), "[MASKED]");
        assert_eq!(masked(&[key], &[b"> MIIEvQIBADANBg <"]), "> [MASKED] <");
        assert_eq!(masked(&[key], &[b"ab"]), "ab");
    }

    #[test]
    fn holds_back_only_what_may_become_a_secret() {
        let masks = Masks::new(&["secret".to_owned()], &[]);
        let mut masker = Masker::new(&masks);
        let mut out = Vec::new();
        masker.push(b"prompt> sec", &mut out);
        assert_eq!(out, b"prompt> ");
        masker.push(b"ond", &mut out);
        assert_eq!(out, b"prompt> second");
    }

    #[test]
    fn ten_thousand_values_and_a_long_one() {
        let mut values: Vec<String> = (0..10_000).map(|number| format!("value-{number:05}-end")).collect();
        let long: String =
            (0..1_u64 << 17).map(|number| format!("{:08x}", number.wrapping_mul(2_654_435_761) as u32)).collect();
        values.push(long.clone());
        let masks = Masks::new(&values, &[]);
        let mut masker = Masker::new(&masks);
        let mut out = Vec::new();
        masker.push(b"a value-01234-end b ", &mut out);
        masker.push(long.as_bytes(), &mut out);
        masker.finish(&mut out);
        assert_eq!(String::from_utf8(out).expect("text"), "a [MASKED] b [MASKED]");
    }

    proptest! {
        #[test]
        fn no_split_changes_the_outcome_and_no_value_survives(
            text in "[abc? ]{0,60}",
            values in proptest::collection::vec("[abc]{2,5}", 1..4),
            cuts in proptest::collection::vec(0..61_usize, 0..6),
        ) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let whole = masked(&values, &[text.as_bytes()]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                parts.push(&text.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!(&masked(&values, &parts), &whole);
            for value in values {
                prop_assert!(!whole.contains(value), "{} in {}", value, whole);
            }
        }
    }
}
