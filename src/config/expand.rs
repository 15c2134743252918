//! Replaces `$NAME` and `${NAME}` in `url` and `token` by variables of the agent's environment, so that a configuration
//! in an image need not contain a secret.

use std::env;

/// Replaces variables; unset ones become empty.
pub fn expand(text: &str) -> String {
    let mut expanded = String::new();
    for part in parts(text) {
        match part {
            Part::Text(text) => expanded.push_str(text),
            Part::Name(name) => expanded.push_str(&env::var(name).unwrap_or_default()),
        }
    }
    expanded
}

/// The unset variables in a text.
pub fn unset_variables(text: &str) -> Vec<&str> {
    let name = |part| match part {
        Part::Name(name) if env::var_os(name).is_none() => Some(name),
        _ => None,
    };
    parts(text).into_iter().filter_map(name).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Name(&'a str),
}

fn parts(mut text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    while let Some(at) = text.find('$') {
        let after = &text[at + 1..];
        let braced = after.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (name, rest) = braced.unwrap_or_else(|| {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        });
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let (part, rest) = if is_name { (Part::Name(name), rest) } else { (Part::Text("$"), after) };
        parts.extend([Part::Text(&text[..at]), part]);
        text = rest;
    }
    parts.push(Part::Text(text));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_variables_anywhere_in_a_text() {
        let home = env::var("PATH").expect("a path");
        assert_eq!(expand("a-$PATH-${PATH}b"), format!("a-{home}-{home}b"));
        for text in ["", "plain", "100$", "$-", "${", "${}", "${a b}"] {
            assert_eq!(expand(text), text);
        }
        assert_eq!(expand("x${NO_SUCH_NAME_HERE}y"), "xy");
        assert_eq!(unset_variables("$PATH ${NO_SUCH_NAME_HERE}"), ["NO_SUCH_NAME_HERE"]);
    }
}
