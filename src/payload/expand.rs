//! Expands `$NAME` and `${NAME}` in values exactly as gitlab-runner does: once; undefined variables become empty.

/// Replaces references to variables in `text`; `lookup` returns their values.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(first) = rest.chars().next() else {
            out.push('$');
            break;
        };
        match first {
            '{' => {
                let (name, after) = match rest[1..].split_once('}') {
                    Some((name, after)) => (name, after),
                    // As in gitlab-runner, an unclosed brace is dropped, and the rest is text.
                    None => ("", &rest[1..]),
                };
                if !name.is_empty() {
                    out.push_str(&value(name, lookup));
                }
                rest = after;
            }
            '*' | '#' | '$' | '@' | '!' | '?' | '-' | '0'..='9' => {
                out.push_str(&value(&rest[..1], lookup));
                rest = &rest[1..];
            }
            first if first.is_ascii_alphabetic() || first == '_' => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
                out.push_str(&value(&rest[..end], lookup));
                rest = &rest[end..];
            }
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

fn value(name: &str, lookup: &dyn Fn(&str) -> String) -> String {
    match name {
        "$" => "$".to_owned(),
        "*" | "#" | "@" | "!" | "?" | "-" => String::new(),
        name if name.len() == 1 && name.as_bytes()[0].is_ascii_digit() => String::new(),
        name => lookup(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expanded(text: &str) -> String {
        expand(text, &|name| match name {
            "A" => "1".to_owned(),
            "A_b2" => "2".to_owned(),
            "B" => "$A".to_owned(),
            _ => String::new(),
        })
    }

    #[test]
    fn expands_as_gitlab_runner_does() {
        for (text, expected) in [
            ("$A-${A}-$A_b2", "1-1-2"),
            ("x$UNDEFINED.y${UNDEFINED}z", "x.yz"),
            ("$$A", "$A"),
            ("$1x$#$@", "x"),
            ("${A:-x}", ""),
            ("a${}b", "ab"),
            ("${A", "A"),
            ("50% of $ and $", "50% of $ and $"),
            ("$B", "$A"),
            ("%A%", "%A%"),
            ("ü$Aü", "ü1ü"),
        ] {
            assert_eq!(expanded(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_a_dollar_is_unchanged(text in "[^$]*") {
            prop_assert_eq!(expanded(&text), text);
        }

        #[test]
        fn two_dollars_become_one(text in "[^$]{0,20}") {
            prop_assert_eq!(expanded(&format!("$${text}")), format!("${text}"));
        }
    }
}
