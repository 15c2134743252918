//! References to variables in text: `$NAME`, `${NAME}` and `%NAME%`.

/// The maximum size of an expanded value, in bytes.
pub const MAX_VALUE_SIZE: usize = 1 << 18;

/// The maximum length of a chain of variables that refer to each other.
pub const MAX_REFERENCE_DEPTH: usize = 200;

/// Shortens a value to the limit, at the boundary of a character.
pub fn truncate(value: &mut String, limit: usize) {
    if value.len() > limit {
        let end = (0..=limit).rev().find(|end| value.is_char_boundary(*end)).unwrap_or(0);
        value.truncate(end);
    }
}

/// Whether a text may contain a reference to a variable.
pub fn has_reference(text: &str) -> bool {
    text.contains(['$', '%'])
}

/// Replaces each `$NAME`, `${NAME}` and `%NAME%` by the result of `value`, which gets the name and the whole reference.
/// `$$` and `%%` are kept.
pub fn replace_references(text: &str, mut value: impl FnMut(&str, &str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '%']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match parse_reference(rest) {
            Some((name, length)) => {
                out.push_str(&value(name, &rest[..length]));
                rest = &rest[length..];
            }
            None => {
                let doubled = rest.starts_with("$$") || rest.starts_with("%%");
                let (literal, after) = rest.split_at(1 + usize::from(doubled));
                out.push_str(literal);
                rest = after;
            }
        }
        if out.len() > MAX_VALUE_SIZE {
            truncate(&mut out, MAX_VALUE_SIZE);
            return out;
        }
    }
    out.push_str(rest);
    out
}

/// Parses a reference at the start of `text`: the name, and the length of the reference.
fn parse_reference(text: &str) -> Option<(&str, usize)> {
    let name_in = |text: &str| {
        let valid = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
        if valid { end } else { 0 }
    };
    let after = &text[1..];
    if text.starts_with('%') {
        let end = name_in(after);
        return (end > 0 && after[end..].starts_with('%')).then(|| (&after[..end], end + 2));
    }
    if let Some(inside) = after.strip_prefix('{') {
        let end = name_in(inside);
        return (end > 0 && inside[end..].starts_with('}')).then(|| (&inside[..end], end + 3));
    }
    let end = name_in(after);
    (end > 0).then(|| (&after[..end], end + 1))
}

/// The names that a value refers to.
pub fn collect_names<'a>(value: &'a str, names: &mut Vec<&'a str>) {
    let mut rest = value;
    while let Some(at) = rest.find(['$', '%']) {
        rest = &rest[at..];
        let length = match parse_reference(rest) {
            Some((name, length)) => {
                names.push(name);
                length
            }
            None => 1 + usize::from(rest.starts_with("$$") || rest.starts_with("%%")),
        };
        rest = &rest[length..];
    }
}
