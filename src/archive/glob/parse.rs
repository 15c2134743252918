//! Parses patterns: braces, segments, wildcards and classes.

use super::{BadPattern, GlobToken, Segment, next_char};

/// The number of alternatives that braces may expand to, so that a pattern cannot exhaust the memory.
const MAX_ALTERNATIVES: usize = 4096;
/// The total number of bytes of all alternatives of a pattern.
const MAX_EXPANDED: usize = 256 << 10;

/// Expands every combination of `{a,b}`.
pub(super) fn expand_braces(pattern: &[u8]) -> Result<Vec<Vec<u8>>, BadPattern> {
    let mut done = Vec::new();
    let mut waiting = vec![pattern.to_vec()];
    let mut size = pattern.len();
    while let Some(text) = waiting.pop() {
        if size > MAX_EXPANDED {
            return Err(BadPattern("it is too long, or its braces expand to more than 256 KiB"));
        }
        match first_brace(&text)? {
            None => done.push(text),
            Some(brace) => {
                size -= text.len();
                // Pushed in reverse, so that alternatives are popped in their order.
                for choice in brace.choices.iter().rev() {
                    let written = [&text[..brace.start], &text[choice.clone()], &text[brace.end..]].concat();
                    size += written.len();
                    if size > MAX_EXPANDED {
                        break;
                    }
                    waiting.push(written);
                }
            }
        }
        if done.len() + waiting.len() > MAX_ALTERNATIVES {
            return Err(BadPattern("braces expand to too many alternatives"));
        }
    }
    Ok(done)
}

struct Brace {
    start: usize,
    end: usize,
    choices: Vec<std::ops::Range<usize>>,
}

/// Finds the first `{...}` that is neither escaped nor inside a class.
fn first_brace(text: &[u8]) -> Result<Option<Brace>, BadPattern> {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'{' => return close_brace(text, at).map(Some),
            _ => at = skip_one(text, at),
        }
    }
    Ok(None)
}

fn close_brace(text: &[u8], start: usize) -> Result<Brace, BadPattern> {
    let mut choices = Vec::new();
    let (mut depth, mut from, mut at) = (0, start + 1, start + 1);
    while at < text.len() {
        match text[at] {
            b'{' => depth += 1,
            b',' if depth == 0 => {
                choices.push(from..at);
                from = at + 1;
            }
            b'}' if depth == 0 => {
                choices.push(from..at);
                return Ok(Brace { start, end: at + 1, choices });
            }
            b'}' => depth -= 1,
            _ => {
                at = skip_one(text, at);
                continue;
            }
        }
        at += 1;
    }
    Err(BadPattern("a { without its }"))
}

/// Skips one byte, one escaped byte, or a whole class.
fn skip_one(text: &[u8], at: usize) -> usize {
    match text[at] {
        b'\\' => at + 2,
        b'[' => class_end(text, at).map_or(at + 1, |end| end + 1),
        _ => at + 1,
    }
}

/// The position of the `]` that ends a class. A `]` as the first character of a class must be escaped.
fn class_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    if matches!(text.get(at), Some(b'^' | b'!')) {
        at += 1;
    }
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b']' => return Some(at),
            _ => at += 1,
        }
    }
    None
}

/// Splits an alternative at its slashes; drops empty and `.` segments.
pub(super) fn split_segments(text: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = vec![Vec::new()];
    let mut at = 0;
    while at < text.len() {
        let next = skip_one(text, at).min(text.len());
        let last = segments.len() - 1;
        if text[at] == b'/' {
            segments.push(Vec::new());
        } else {
            segments[last].extend_from_slice(&text[at..next]);
        }
        at = next;
    }
    segments.retain(|segment| !segment.is_empty() && segment != b".");
    segments
}

pub(super) fn parse_segment(text: &[u8]) -> Result<Segment, BadPattern> {
    if text == b"**" {
        return Ok(Segment::AnyDepth);
    }
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'*' => {
                if tokens.last() != Some(&GlobToken::Star) {
                    tokens.push(GlobToken::Star);
                }
                at += 1;
            }
            b'?' => {
                tokens.push(GlobToken::Any);
                at += 1;
            }
            b'[' => {
                let end = class_end(text, at).ok_or(BadPattern("a [ without its ]"))?;
                tokens.push(parse_class(&text[at + 1..end])?);
                at = end + 1;
            }
            _ => {
                let (c, width) = literal_char(&text[at..])?;
                tokens.push(GlobToken::Char(c));
                at += width;
            }
        }
    }
    Ok(literal_of(text, &tokens).map_or(Segment::Wild(tokens), Segment::Literal))
}

/// The literal name of a segment without wildcards.
fn literal_of(text: &[u8], tokens: &[GlobToken]) -> Option<Vec<u8>> {
    if !tokens.iter().all(|token| matches!(token, GlobToken::Char(_))) {
        return None;
    }
    let mut name = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        name.push(if byte == b'\\' { *bytes.next()? } else { byte });
    }
    Some(name)
}

/// One character, possibly escaped.
fn literal_char(text: &[u8]) -> Result<(u32, usize), BadPattern> {
    match text {
        [b'\\'] => Err(BadPattern("a \\ at the end")),
        [b'\\', rest @ ..] => {
            let (c, width) = next_char(rest);
            Ok((c, width + 1))
        }
        _ => Ok(next_char(text)),
    }
}

fn parse_class(text: &[u8]) -> Result<GlobToken, BadPattern> {
    let (negated, mut rest) = match text {
        [b'^' | b'!', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    if rest.is_empty() {
        return Err(BadPattern("an empty class []"));
    }
    let mut ranges = Vec::new();
    while !rest.is_empty() {
        let (low, width) = literal_char(rest)?;
        rest = &rest[width..];
        match rest {
            [b'-', more @ ..] if !more.is_empty() => {
                let (high, width) = literal_char(more)?;
                rest = &more[width..];
                ranges.push((low, high));
            }
            _ => ranges.push((low, low)),
        }
    }
    Ok(GlobToken::Class { negated, ranges })
}
