//! Expands variables in names and paths as a shell does.

/// Expands names and paths of artifacts as a shell does between double quotes: `$NAME`, `${NAME}`, `${NAME:-word}`,
/// `${NAME-word}`, `${NAME:+word}`, `${NAME+word}`, `\$`. Other text is kept.
pub fn expand_like_shell(text: &str, value: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("\\$") {
            out.push('$');
            rest = after;
            continue;
        }
        let taken = match rest.strip_prefix("${") {
            Some(inside) => closing_brace(inside).and_then(|end| {
                let replaced = parameter(&inside[..end], value)?;
                Some((replaced, &inside[end + 1..]))
            }),
            None => rest.strip_prefix('$').and_then(|after| {
                let end = name_length(after);
                (end > 0).then(|| (value(&after[..end]).unwrap_or_default(), &after[end..]))
            }),
        };
        match taken {
            Some((replaced, after)) => {
                out.push_str(&replaced);
                rest = after;
            }
            None => {
                out.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn name_length(text: &str) -> usize {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    if starts { end } else { 0 }
}

fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Expands the text between the braces of `${...}`.
fn parameter(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let end = name_length(text);
    if end == 0 {
        return None;
    }
    let (name, operation) = text.split_at(end);
    let set = value(name);
    let filled = set.clone().filter(|value| !value.is_empty());
    let word = |word: &str| expand_like_shell(word, value);
    if operation.is_empty() {
        Some(set.unwrap_or_default())
    } else if let Some(default) = operation.strip_prefix(":-") {
        Some(filled.unwrap_or_else(|| word(default)))
    } else if let Some(default) = operation.strip_prefix('-') {
        Some(set.unwrap_or_else(|| word(default)))
    } else if let Some(instead) = operation.strip_prefix(":+") {
        Some(filled.map(|_| word(instead)).unwrap_or_default())
    } else {
        operation.strip_prefix('+').map(|instead| set.map(|_| word(instead)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_between_double_quotes() {
        let value = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            "B_2" => Some("two".to_owned()),
            _ => None,
        };
        for (text, expected) in [
            ("$A-${A}", "1-1"),
            ("x$B_2.zip", "xtwo.zip"),
            ("${NONE:-d}${EMPTY:-e}${EMPTY-f}", "de"),
            ("${NONE:-$A}${NONE:-${B_2}}", "1two"),
            ("${A:+yes}${NONE:+no}${EMPTY+set}", "yesset"),
            ("$NONE|", "|"),
            ("$(id) $1 $", "$(id) $1 $"),
            ("\\$A \\x", "$A \\x"),
            ("${A", "${A"),
            ("a/**/*.{x,y}", "a/**/*.{x,y}"),
            ("ü$A", "ü1"),
        ] {
            assert_eq!(expand_like_shell(text, &value), expected, "{text}");
        }
    }
}
