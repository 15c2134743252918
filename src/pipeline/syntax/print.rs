//! Prints a tree as YAML, for previews. Parsing the output gives the same tree.

use super::{Mapping, Node, YamlValue, scalar, written_size};

/// The size limit of the output, in bytes.
const MAX_SIZE: usize = 64 << 20;

/// Prints block-style YAML. If the tree is too large, which only shared parts can cause, prints only a comment.
pub fn print(node: &Node) -> String {
    if written_size(node) > MAX_SIZE {
        return format!(
            "# This value is larger than {} MiB after references and templates are expanded.\n",
            MAX_SIZE >> 20
        );
    }
    let mut out = String::new();
    match &node.value {
        YamlValue::Mapping(mapping) if !mapping.is_empty() => block_mapping(mapping, 0, &mut out),
        YamlValue::List(items) if !items.is_empty() => block_list(items, 0, &mut out),
        _ => {
            inline(node, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

fn block_mapping(mapping: &Mapping, indent: usize, out: &mut String) {
    for (key, entry) in mapping {
        out.extend(std::iter::repeat_n(' ', indent));
        text(key, None, out);
        out.push(':');
        after_key(&entry.node, indent, out);
    }
}

fn after_key(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        YamlValue::Mapping(mapping) if !mapping.is_empty() => {
            out.push('\n');
            block_mapping(mapping, indent + 2, out);
        }
        YamlValue::List(items) if !items.is_empty() => {
            out.push('\n');
            block_list(items, indent, out);
        }
        _ => {
            out.push(' ');
            inline(node, indent, out);
            out.push('\n');
        }
    }
}

fn block_list(items: &[Node], indent: usize, out: &mut String) {
    for item in items {
        out.extend(std::iter::repeat_n(' ', indent));
        out.push('-');
        match &item.value {
            YamlValue::Mapping(mapping) if !mapping.is_empty() => {
                // The first key is on the line of the dash.
                let mut inner = String::new();
                block_mapping(mapping, indent + 2, &mut inner);
                out.push(' ');
                out.push_str(&inner[indent + 2..]);
            }
            YamlValue::List(items) if !items.is_empty() => {
                out.push('\n');
                block_list(items, indent + 2, out);
            }
            _ => {
                out.push(' ');
                inline(item, indent, out);
                out.push('\n');
            }
        }
    }
}

fn inline(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        YamlValue::Null => out.push_str("null"),
        YamlValue::Text(value) => text(value, Some(indent), out),
        YamlValue::List(items) if items.is_empty() => out.push_str("[]"),
        YamlValue::Mapping(mapping) if mapping.is_empty() => out.push_str("{}"),
        YamlValue::List(items) => flow_list(items, out),
        YamlValue::Reference(items) => {
            out.push_str("!reference ");
            flow_list(items, out);
        }
        YamlValue::Mapping(_) => out.push_str(&node.to_json().to_string()),
        YamlValue::Float(value) if !value.is_finite() => {
            out.push_str(if value.is_nan() {
                ".nan"
            } else if *value > 0.0 {
                ".inf"
            } else {
                "-.inf"
            });
        }
        YamlValue::Bool(_) | YamlValue::Integer(_) | YamlValue::Float(_) => {
            out.push_str(&node.printed().unwrap_or_default())
        }
    }
}

fn flow_list(items: &[Node], out: &mut String) {
    out.push('[');
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            out.push_str(", ");
        }
        match &item.value {
            YamlValue::Text(value) => text(value, None, out),
            _ => inline(item, 0, out),
        }
    }
    out.push(']');
}

/// Prints text unquoted if that is safe, as a literal block if it has several lines (and `indent` is given), else in
/// double quotes.
fn text(value: &str, indent: Option<usize>, out: &mut String) {
    if is_plain(value) {
        return out.push_str(value);
    }
    if let Some(indent) = indent.filter(|_| is_block(value)) {
        out.push_str(if value.ends_with('\n') { "|" } else { "|-" });
        for line in value.strip_suffix('\n').unwrap_or(value).split('\n') {
            out.push('\n');
            if !line.is_empty() {
                out.extend(std::iter::repeat_n(' ', indent + 2));
                out.push_str(line);
            }
        }
        return;
    }
    // JSON escapes are valid in YAML.
    out.push_str(&serde_json::Value::from(value).to_string());
}

fn is_plain(value: &str) -> bool {
    let safe = |c: char| c.is_alphanumeric() || " _-./$@+,=()~^;<>".contains(c);
    let start = |c: char| c.is_alphabetic() || "_./$".contains(c);
    value.starts_with(start)
        && !value.ends_with(' ')
        && value.chars().all(safe)
        && value != "<<"
        && !value.contains(',')
        && matches!(scalar::typed(value), YamlValue::Text(_))
}

fn is_block(value: &str) -> bool {
    value.contains('\n')
        && !value.starts_with([' ', '\n', '\t'])
        && !value.ends_with("\n\n")
        && value
            .chars()
            .all(|c| c == '\n' || c == '\t' || (c >= ' ' && c != '\u{7f}' && c != '\u{feff}' && c < '\u{80}'))
        && value.split('\n').all(|line| !line.ends_with([' ', '\t']) && !line.starts_with('\t'))
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, parse};
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Node {
        parse(text, 0, &|line| line, &mut Budget::default()).expect(text).root
    }

    #[test]
    fn prints_readable_yaml() {
        let text = "a: 1\nlist:\n- x\n- k: v\n  l: \"w: z\"\n- []\nscript: |\n  one\n    two\nempty: {}\n";
        assert_eq!(print(&read(text)), text);
    }

    fn any_node() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[ -~\n\t]{0,12}".prop_map(Into::into),
            "(yes|no|0755|1_0|<<|a: b|# c|~|null|-|é|\u{1}|x\n\ny)".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::vec(("[ -~]{1,8}", inner), 0..5).prop_map(|entries| {
                    entries.into_iter().filter(|(key, _)| key != "<<").collect::<serde_json::Map<_, _>>().into()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn parsing_the_output_gives_the_same_tree(json in any_node()) {
            // JSON is valid YAML, except for escaped slashes, which serde_json does not write.
            let node = read(&json.to_string());
            let printed = print(&node);
            prop_assert_eq!(read(&printed).to_json(), node.to_json(), "{}", printed);
        }
    }
}
