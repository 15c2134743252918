//! From raw output to log: masked, valid UTF-8, stamped. One filter a stream.

use super::FilterSpec;
use super::mask::Masker;
use super::patterns::Masks;
use super::stamp::{Output, Stamper};

/// One stream's way into the log.
pub struct Filter<'a> {
    masker: Masker<'a>,
    text: Utf8,
    stamper: Option<Stamper>,
    masked: Vec<u8>,
    valid: Vec<u8>,
}

impl<'a> Filter<'a> {
    /// A stream at its beginning; see [`Stamper::new`] for `stream`.
    pub fn new(masks: &'a Masks, spec: &FilterSpec, stream: u8, output: Output) -> Self {
        Self {
            masker: Masker::new(masks),
            text: Utf8::default(),
            stamper: spec.timestamps.then(|| Stamper::new(stream, output)),
            masked: Vec::new(),
            valid: Vec::new(),
        }
    }

    /// Takes output and appends what is ready for the log to `out`.
    pub fn push(&mut self, output: &[u8], out: &mut Vec<u8>) {
        self.masked.clear();
        self.masker.push(output, &mut self.masked);
        self.pass(out);
    }

    /// The stream is silent: shows a line that has no end yet, but never what may be the start of a secret.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(stamper) = &mut self.stamper {
            stamper.flush(out);
        }
    }

    /// The stream is over.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.masked.clear();
        self.masker.finish(&mut self.masked);
        self.pass(out);
        self.valid.clear();
        self.text.finish(&mut self.valid);
        self.stamp(out);
        self.flush(out);
    }

    fn pass(&mut self, out: &mut Vec<u8>) {
        self.valid.clear();
        self.text.push(&self.masked, &mut self.valid);
        self.stamp(out);
    }

    fn stamp(&mut self, out: &mut Vec<u8>) {
        match &mut self.stamper {
            Some(stamper) => stamper.push(&self.valid, out),
            None => out.extend_from_slice(&self.valid),
        }
    }
}

/// Replaces what is not UTF-8 by U+FFFD; a character split over writes stays whole.
#[derive(Default)]
struct Utf8 {
    /// The beginning of a character, at most three bytes.
    begun: Vec<u8>,
}

impl Utf8 {
    fn push(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.begun.is_empty() {
            self.convert(text, out);
            return;
        }
        let mut joined = std::mem::take(&mut self.begun);
        joined.extend_from_slice(text);
        self.convert(&joined, out);
    }

    fn convert(&mut self, mut text: &[u8], out: &mut Vec<u8>) {
        loop {
            let error = match std::str::from_utf8(text) {
                Ok(_) => return out.extend_from_slice(text),
                Err(error) => error,
            };
            let (valid, rest) = text.split_at(error.valid_up_to());
            out.extend_from_slice(valid);
            let Some(bad) = error.error_len() else {
                self.begun.extend_from_slice(rest);
                return;
            };
            out.extend_from_slice("\u{fffd}".as_bytes());
            text = &rest[bad..];
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            self.begun.clear();
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
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
    fn a_character_split_over_writes_stays_whole() {
        let text = "größe ✓ 🦋".as_bytes();
        for cut in 0..=text.len() {
            assert_eq!(plain(&[&text[..cut], &text[cut..]]), "größe ✓ 🦋");
        }
    }

    #[test]
    fn what_is_no_utf8_is_replaced() {
        assert_eq!(plain(&[b"a\xffb\xc3"]), "a\u{fffd}b\u{fffd}");
    }
}
