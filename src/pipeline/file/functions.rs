//! Functions in interpolation blocks: `$[[ inputs.name | truncate(0,8) ]]`.

use crate::pipeline::syntax::Node;

/// A function call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// Replaces known variables once; their values are not expanded again.
    ExpandVars,
    /// Takes `length` characters from `offset`.
    Truncate { offset: usize, length: usize },
    /// Escapes characters that are special in a shell.
    PosixEscape,
    /// Splits text into a list.
    Split(String),
}

/// Returns the value of a variable. The error explains why the variable must not be used.
pub type VariableLookup<'a> = dyn Fn(&str) -> Option<Result<String, String>> + 'a;

impl Function {
    /// Parses a call. The error explains why the text is not a call.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, arguments) = match text.split_once('(') {
            Some((name, rest)) => {
                let inside = rest.trim_end().strip_suffix(')').ok_or_else(|| format!("`{text}` is not closed"))?;
                (name.trim(), Some(inside))
            }
            None => (text, None),
        };
        match (name, arguments) {
            ("expand_vars", None) => Ok(Self::ExpandVars),
            ("posix_escape", None) => Ok(Self::PosixEscape),
            ("truncate", Some(inside)) => {
                let numbers = inside.split_once(',').map(|(a, b)| (a.trim().parse().ok(), b.trim().parse().ok()));
                match numbers {
                    Some((Some(offset), Some(length))) => Ok(Self::Truncate { offset, length }),
                    _ => Err(format!("`{text}`: write truncate(offset,length)")),
                }
            }
            ("split", Some(inside)) => {
                let inside = inside.trim();
                let quoted = ['\'', '"']
                    .into_iter()
                    .find_map(|quote| inside.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)));
                match quoted.filter(|separator| !separator.is_empty()) {
                    Some(separator) => Ok(Self::Split(separator.to_owned())),
                    None => Err(format!("`{text}`: write split('separator')")),
                }
            }
            ("expand_vars" | "posix_escape" | "truncate" | "split", _) => {
                Err(format!("`{text}`: the arguments do not fit the function"))
            }
            _ => Err(format!(
                "unknown function `{name}`; the functions are expand_vars, truncate, posix_escape and split"
            )),
        }
    }

    /// Applies the function to a value, which must be text.
    pub fn apply(&self, value: &Node, lookup: &VariableLookup<'_>) -> Result<Node, String> {
        let Some(text) = value.text() else { return Err("a function takes text only".to_owned()) };
        let result = match self {
            Self::ExpandVars => expand_variables(text, lookup)?,
            Self::Truncate { offset, length } => text.chars().skip(*offset).take(*length).collect(),
            Self::PosixEscape => posix_escape(text),
            Self::Split(separator) => {
                let parts = text.split(separator.as_str()).map(str::trim).filter(|part| !part.is_empty());
                return Ok(Node::list_at(parts.map(|part| Node::text_at(part, value.at)).collect(), value.at));
            }
        };
        Ok(Node::text_at(result, value.at))
    }
}

fn expand_variables(text: &str, lookup: &VariableLookup<'_>) -> Result<String, String> {
    let mut refused = None;
    let out = crate::pipeline::variable_references::replace_references(text, |name, reference| match lookup(name) {
        None => reference.to_owned(),
        Some(Ok(value)) => value,
        Some(Err(why)) => {
            refused = Some(why);
            String::new()
        }
    });
    refused.map_or(Ok(out), Err)
}

/// Escapes as Ruby's `Shellwords.escape` does.
fn posix_escape(text: &str) -> String {
    if text.is_empty() {
        return "''".to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("'\n'"),
            c if c.is_ascii_alphanumeric() || "_-.,:+/@".contains(c) => out.push(c),
            c => out.extend(['\\', c]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::syntax::Origin;

    fn applied(call: &str, text: &str) -> Result<serde_json::Value, String> {
        let lookup = |name: &str| match name {
            "A" => Some(Ok("1".to_owned())),
            "SECRET" => Some(Err("`SECRET` is masked".to_owned())),
            _ => None,
        };
        let text = Node::text_at(text, Origin::default());
        Function::parse(call).and_then(|function| function.apply(&text, &lookup)).map(|value| value.to_json())
    }

    #[test]
    fn applies_each_function() {
        for (call, text, expected) in [
            ("expand_vars", "$A ${A} $NO", serde_json::json!("1 1 $NO")),
            ("truncate(8,5)", "0123456789", serde_json::json!("89")),
            ("truncate(1, 2)", "äöü", serde_json::json!("öü")),
            ("posix_escape", "a b's $HOME;c", serde_json::json!("a\\ b\\'s\\ \\$HOME\\;c")),
            ("posix_escape", "", serde_json::json!("''")),
            ("split(',')", "a, b,,c", serde_json::json!(["a", "b", "c"])),
            ("split('|')", "a|b", serde_json::json!(["a", "b"])),
        ] {
            assert_eq!(applied(call, text), Ok(expected), "{call}");
        }
        for call in ["nope", "truncate", "truncate(1)", "truncate(a,b)", "expand_vars(1)", "split()", "truncate(1,2"] {
            assert!(applied(call, "x").is_err(), "{call}");
        }
        assert!(applied("expand_vars", "$SECRET").is_err_and(|why| why.contains("masked")));
        assert!(Function::PosixEscape.apply(&Node::from(serde_json::json!(7)), &|_| None).is_err());
    }
}
