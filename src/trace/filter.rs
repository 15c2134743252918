//! Turns raw output into log text: masked, valid UTF-8, with time stamps. There is one filter per stream.

use super::FilterSpec;
use super::mask::Masker;
use super::patterns::Masks;
use super::stamp::{Output, Stamper};

/// The filter of one stream.
pub struct Filter<'a> {
    masker: Masker<'a>,
    text: Utf8,
    stamper: Option<Stamper>,
    masked: Vec<u8>,
}

impl<'a> Filter<'a> {
    /// See [`Stamper::new`] for `stream`.
    pub fn new(masks: &'a Masks, spec: &FilterSpec, stream: u8, output: Output) -> Self {
        Self {
            masker: Masker::new(masks),
            text: Utf8::default(),
            stamper: spec.timestamps.then(|| Stamper::new(stream, output)),
            masked: Vec::new(),
        }
    }

    /// Processes output, and appends the finished part to `out`.
    pub fn push(&mut self, output: &[u8], out: &mut Vec<u8>) {
        self.masked.clear();
        self.masker.push(output, &mut self.masked);
        stamp(&mut self.stamper, self.text.push(&self.masked), out);
    }

    /// Writes the incomplete line of a stream that is silent, but no text that could be the start of a secret.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(stamper) = &mut self.stamper {
            stamper.flush(out);
        }
    }

    /// Ends the stream: writes the text that was held back.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.masked.clear();
        self.masker.finish(&mut self.masked);
        stamp(&mut self.stamper, self.text.push(&self.masked), out);
        stamp(&mut self.stamper, self.text.finish(), out);
        self.flush(out);
    }
}

fn stamp(stamper: &mut Option<Stamper>, text: &str, out: &mut Vec<u8>) {
    match stamper {
        Some(stamper) => stamper.push(text, out),
        None => out.extend_from_slice(text.as_bytes()),
    }
}

/// Replaces invalid UTF-8 by U+FFFD; a character that is split over several writes is kept.
#[derive(Default)]
struct Utf8 {
    /// The start of an incomplete character: at most three bytes.
    begun: Vec<u8>,
    mended: String,
}

impl Utf8 {
    /// The valid text so far; usually `bytes` itself.
    fn push<'t>(&'t mut self, bytes: &'t [u8]) -> &'t str {
        if self.begun.is_empty() {
            if let Ok(text) = std::str::from_utf8(bytes) {
                return text;
            }
            self.mend(bytes);
        } else {
            let mut joined = std::mem::take(&mut self.begun);
            joined.extend_from_slice(bytes);
            self.mend(&joined);
        }
        &self.mended
    }

    fn mend(&mut self, bytes: &[u8]) {
        self.mended.clear();
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.mended.push_str(chunk.valid());
            let bad = chunk.invalid();
            let incomplete =
                chunks.peek().is_none() && std::str::from_utf8(bad).is_err_and(|error| error.error_len().is_none());
            if incomplete {
                self.begun.extend_from_slice(bad);
            } else if !bad.is_empty() {
                self.mended.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// Ends the stream: replaces an incomplete character.
    fn finish(&mut self) -> &'static str {
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() { "" } else { "\u{fffd}" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(parts: &[&[u8]]) -> String {
        let masks = Masks::new(&[], &[]);
        let mut filter = Filter::new(&masks, &FilterSpec::default(), 1, Output::Out);
        let mut out = Vec::new();
        for part in parts {
            filter.push(part, &mut out);
        }
        filter.finish(&mut out);
        String::from_utf8(out).expect("valid UTF-8")
    }

    #[test]
    fn keeps_a_character_split_over_several_writes() {
        let text = "größe ✓ 🦋".as_bytes();
        for cut in 0..=text.len() {
            assert_eq!(plain(&[&text[..cut], &text[cut..]]), "größe ✓ 🦋");
        }
    }

    #[test]
    fn replaces_invalid_utf8() {
        assert_eq!(plain(&[b"a\xffb\xc3"]), "a\u{fffd}b\u{fffd}");
    }
}
