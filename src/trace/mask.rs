//! Masks secrets in a stream, regardless of how the text is split into writes.
//!
//! Each byte is either shown or hidden. A byte is hidden if it belongs to any occurrence of a value, or to the text
//! that follows a token prefix; overlapping secrets are hidden completely. Text that may still become the start of a
//! secret is not emitted: the filter holds back exactly the tail that is a proper prefix of a pattern, until more text
//! arrives or the stream ends.

use super::patterns::{Masks, PatternMatches, TokenRun};

/// The replacement of a secret.
const MASK: &[u8] = b"[MASKED]";

/// Masks one stream.
pub struct Masker<'a> {
    masks: &'a Masks,
    /// The tail that may be the start of a secret.
    held: Vec<u8>,
    /// The number of following bytes that belong to a value.
    value_left: usize,
    /// Token prefixes in progress: the bytes to their end, and the kind of text that follows.
    prefixes: Vec<(usize, TokenRun)>,
    /// Whether the next byte may belong to a token whose prefix was shown.
    in_token: bool,
    /// Whether the next byte may belong to the value of a URL parameter.
    in_parameter: bool,
    last: LastByte,
}

/// How the last byte was treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastByte {
    Shown,
    Hidden,
    /// Hidden, and the last byte of a value: if another value follows directly, it gets its own mask.
    ValueEnded,
}

/// Whether more text can follow in the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Open,
    /// No longer pattern can match any more, so all text is decided.
    Ended,
}

impl<'a> Masker<'a> {
    pub fn new(masks: &'a Masks) -> Self {
        Self {
            masks,
            held: Vec::new(),
            value_left: 0,
            prefixes: Vec::new(),
            in_token: false,
            in_parameter: false,
            last: LastByte::Shown,
        }
    }

    /// Processes `text`, and appends to `out` everything that is certainly not the start of a secret.
    pub fn push(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.held.is_empty() {
            let done = self.scan(text, out, StreamState::Open);
            self.held.extend_from_slice(&text[done..]);
            return;
        }
        let mut joined = std::mem::take(&mut self.held);
        joined.extend_from_slice(text);
        let done = self.scan(&joined, out, StreamState::Open);
        joined.drain(..done);
        self.held = joined;
    }

    /// Ends the stream: masks or shows the held text, because no more text can complete a longer pattern.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        self.scan(&held, out, StreamState::Ended);
        *self = Self::new(self.masks);
    }

    /// Processes `text` and returns the length of the part that is decided.
    fn scan(&mut self, text: &[u8], out: &mut Vec<u8>, stream: StreamState) -> usize {
        let mut position = 0;
        while position < text.len() {
            let passed = if self.is_in_value() { self.pass_value(text, position) } else { 0 };
            if passed > 0 {
                position += passed;
                continue;
            }
            let found = if self.is_idle() {
                let (at, found) = self.next_match(text, position, stream);
                if at > position {
                    out.extend_from_slice(&text[position..at]);
                    self.last = LastByte::Shown;
                    position = at;
                }
                found
            } else {
                Some(self.masks.find(&text[position..]))
            };
            let Some(found) = found.filter(|found| found.is_decided(stream)) else { break };
            self.step(text[position], &found, out);
            position += 1;
        }
        position
    }

    /// The first position, at or after `from`, where a pattern begins, or may begin if more text follows; else the end.
    fn next_match(&self, text: &[u8], from: usize, stream: StreamState) -> (usize, Option<PatternMatches>) {
        let mut at = self.masks.next_candidate(text, from);
        while at < text.len() {
            let found = self.masks.find(&text[at..]);
            if found.value_length > 0 || found.prefix.is_some() || !found.is_decided(stream) {
                return (at, Some(found));
            }
            at = self.masks.next_candidate(text, at + 1);
        }
        (at, None)
    }

    /// Whether the next byte belongs to a value, and no other match that began earlier covers it.
    fn is_in_value(&self) -> bool {
        self.value_left > 0 && self.prefixes.is_empty() && !self.in_token && !self.in_parameter
    }

    /// Hides the bytes of a value up to the first position where another pattern may begin; returns their number.
    fn pass_value(&mut self, text: &[u8], from: usize) -> usize {
        let end = text.len().min(from + self.value_left + 1);
        let passed = self.masks.next_candidate(&text[..end], from).min(from + self.value_left) - from;
        if passed > 0 {
            self.value_left -= passed;
            self.last = if self.value_left == 0 { LastByte::ValueEnded } else { LastByte::Hidden };
        }
        passed
    }

    /// Whether no match that began earlier covers the next byte.
    fn is_idle(&self) -> bool {
        self.value_left == 0 && self.prefixes.is_empty() && !self.in_token && !self.in_parameter
    }

    /// Shows or hides one byte, at which `found` begins.
    fn step(&mut self, byte: u8, found: &PatternMatches, out: &mut Vec<u8>) {
        let adjacent = self.last == LastByte::ValueEnded && found.value_length > 0 && !found.continues;
        self.value_left = self.value_left.max(found.value_length);
        self.advance_runs(byte);
        self.prefixes.extend(found.prefix.map(|(length, run)| (length - 1, run)));
        let runs = self.in_token || self.in_parameter;
        if self.value_left == 0 && !runs {
            out.push(byte);
            self.last = LastByte::Shown;
            return;
        }
        if self.last == LastByte::Shown || adjacent {
            out.extend_from_slice(MASK);
        }
        self.last = if self.value_left == 1 && !runs { LastByte::ValueEnded } else { LastByte::Hidden };
        self.value_left = self.value_left.saturating_sub(1);
    }

    /// Starts the runs whose prefix has ended, and ends those that do not accept `byte`; a value does not interrupt a
    /// run.
    fn advance_runs(&mut self, byte: u8) {
        self.prefixes.retain_mut(|(left, run)| {
            let begins = *left == 0;
            self.in_token |= begins && *run == TokenRun::Token;
            self.in_parameter |= begins && *run == TokenRun::Parameter;
            *left = left.saturating_sub(1);
            !begins
        });
        self.in_token &= self.value_left > 0 || TokenRun::Token.accepts(byte);
        self.in_parameter &= self.value_left > 0 || TokenRun::Parameter.accepts(byte);
    }
}

impl PatternMatches {
    /// Whether more text cannot change the result.
    fn is_decided(&self, stream: StreamState) -> bool {
        stream == StreamState::Ended || !self.needs_more_text
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
        String::from_utf8(out).expect("the text must be UTF-8")
    }

    #[test]
    fn masks_values_tokens_and_url_parameters() {
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
    }

    #[test]
    fn masks_the_union_of_values_and_what_follows_a_prefix() {
        for (value, text, expected) in [
            ("glpat-abc", "glpat-abcdef!", "[MASKED]!"),
            ("glpat-a b c", "glpat-a b c d", "[MASKED] d"),
            ("tom-12 34", "custom-12 34 5", "cus[MASKED] 5"),
            ("tom-12 34", "custom-12 35 5", "custom-[MASKED] 35 5"),
            ("custom", "custom-ab", "[MASKED]-[MASKED]"),
            ("b c", "?rss_token=ab cd&x", "?rss_token=[MASKED]&x"),
        ] {
            assert_eq!(masked(&[value], &[text.as_bytes()]), expected, "{value} in {text}");
        }
    }

    #[test]
    fn masks_each_long_line_of_a_value_of_several_lines() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nab\n-----END KEY-----";
        assert_eq!(masked(&[key], &[key.as_bytes()]), "[MASKED]");
        assert_eq!(masked(&[key], &[b"> MIIEvQIBADANBg <"]), "> [MASKED] <");
        assert_eq!(masked(&[key], &[b"ab"]), "ab");
    }

    #[test]
    fn masks_a_value_in_base64() {
        let text = b"Authorization: Basic dXNlcjpzM2NyM3QtdmFsdWU=\n";
        assert_eq!(masked(&["s3cr3t-value"], &[text]), "Authorization: Basic dXNlcjp[MASKED]U=\n");
    }

    #[test]
    fn holds_back_only_possible_starts_of_secrets() {
        let masks = Masks::new(&["secret".to_owned()], &[]);
        let mut masker = Masker::new(&masks);
        let mut out = Vec::new();
        masker.push(b"prompt> sec", &mut out);
        assert_eq!(out, b"prompt> ");
        masker.push(b"ond", &mut out);
        assert_eq!(out, b"prompt> second");
    }

    #[test]
    fn masks_with_ten_thousand_values_and_a_long_one() {
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
        assert_eq!(String::from_utf8(out).expect("the text must be UTF-8"), "a [MASKED] b [MASKED]");
    }

    /// The rule for each byte of the whole text: which bytes are hidden.
    fn hidden(values: &[&str], text: &[u8]) -> Vec<bool> {
        let mut hidden = vec![false; text.len()];
        for at in 0..text.len() {
            for value in values.iter().filter(|value| text[at..].starts_with(value.as_bytes())) {
                hidden[at..at + value.len()].fill(true);
            }
        }
        let of_values = hidden.clone();
        let prefixes = ["custom-", "b-"].map(|prefix| (prefix, TokenRun::Token));
        for at in 0..text.len() {
            for (prefix, run) in prefixes.into_iter().chain([("&rss_token=", TokenRun::Parameter)]) {
                let begins =
                    text[at..].get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(prefix.as_bytes()));
                if begins {
                    let from = at + prefix.len();
                    let length = (from..text.len()).take_while(|at| of_values[*at] || run.accepts(text[*at])).count();
                    hidden[from..from + length].fill(true);
                }
            }
        }
        hidden
    }

    proptest! {
        #[test]
        fn the_result_is_the_same_for_every_split_and_hides_all_secrets(
            pieces in proptest::collection::vec("[ab-]{1,3}|&?rss_token=|custom-| ", 0..20),
            values in proptest::collection::vec("[ab]{2,5}|stom|b-a b|n=b", 0..4),
            cuts in proptest::collection::vec(0..200_usize, 0..6),
        ) {
            let text = pieces.concat();
            let values: Vec<String> = values;
            let owned = values.clone();
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let masks = Masks::new(&owned, &["custom-".to_owned(), "b-".to_owned()]);
            let run = |parts: &[&[u8]]| {
                let mut masker = Masker::new(&masks);
                let mut out = Vec::new();
                parts.iter().for_each(|part| masker.push(part, &mut out));
                masker.finish(&mut out);
                String::from_utf8(out).expect("the text must be UTF-8")
            };
            let whole = run(&[text.as_bytes()]);
            let hidden = hidden(&values, text.as_bytes());
            let shown: String = text.chars().zip(&hidden).filter(|(_, hidden)| !**hidden).map(|(letter, _)| letter).collect();
            prop_assert_eq!(whole.replace("[MASKED]", ""), shown);
            // One mask replaces each hidden run.
            let runs = hidden.chunk_by(|a, b| a == b).filter(|run| run[0]).count();
            prop_assert!(whole.matches("[MASKED]").count() >= runs);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                parts.push(&text.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!(run(&parts), whole);
        }

        #[test]
        fn bytes_that_are_not_utf8_are_unchanged(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let masks = Masks::new(&["größe".to_owned()], &[]);
            let mut masker = Masker::new(&masks);
            let mut out = Vec::new();
            text.chunks(3).for_each(|part| masker.push(part, &mut out));
            masker.finish(&mut out);
            prop_assert_eq!(out, text);
        }
    }
}
