//! Text with expressions between `${{` and `}}`; `\${{` is not an expression.

use super::Scope;
use super::expression::{CLOSING, ExpressionParser, OPENING};
use super::operators::text_of;

/// The length of the part of an invalid expression that is shown, in bytes.
const MAX_SHOWN_LENGTH: usize = 60;

/// Replaces expressions by their values. Fails if an expression cannot be evaluated.
pub fn fill_in(text: &str, scope: &Scope) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(OPENING) {
        let (before, behind) = (&rest[..at], &rest[at + OPENING.len()..]);
        if let Some(escaped) = before.strip_suffix('\\') {
            filled.push_str(escaped);
            filled.push_str(OPENING);
            rest = behind;
            continue;
        }
        filled.push_str(before);
        let mut reader = ExpressionParser::new(behind, scope);
        let value = reader.template().map_err(|why| format!("`{}`: {why}", shown(&rest[at..])))?;
        filled.push_str(&text_of(&value));
        rest = reader.rest();
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The beginning of the expression, for messages.
fn shown(text: &str) -> String {
    let end = text.find(CLOSING).map_or(text.len(), |at| at + CLOSING.len());
    let line = text[..end].lines().next().unwrap_or_default();
    if line.len() <= MAX_SHOWN_LENGTH {
        return line.to_owned();
    }
    let cut = (0..=MAX_SHOWN_LENGTH).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &line[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(text: &str) -> Result<String, String> {
        let root = json!({"job": {"inputs": {"name": "it's", "count": 3, "list": ["a", 1.5], "on": true}}});
        fill_in(text, &Scope { root, sensitive: Vec::new() })
    }

    #[test]
    fn replaces_expressions_by_values() {
        for (text, expected) in [
            ("", ""),
            ("$ ${ {{ }} $x", "$ ${ {{ }} $x"),
            ("${{ job.inputs.name }}, ${{job.inputs.count}}!", "it's, 3!"),
            ("${{ job.inputs.list }} ${{ job.inputs.on }} ${{ null }}", r#"["a",1.5] true <null>"#),
            (r"\${{ job.inputs.name }} ${{ job.inputs.name }}", "${{ job.inputs.name }} it's"),
            (r"\\${{ 1 }}", r"\${{ 1 }}"),
            ("${{ {a: {b: 1}} }}}", r#"{"a":{"b":1}}}"#),
            ("${{\n  1 +\n  2\n}}\n", "3\n"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn shows_the_invalid_expression() {
        for (text, expected) in [
            ("a ${{ job.inputs.none }} b", "`${{ job.inputs.none }}`: `none` does not exist"),
            ("${{ 1", "`${{ 1`: the expression is not closed"),
            ("${{ }}", "`${{ }}`: a value is missing"),
            ("${{ 1 2 }}", "`${{ 1 2 }}`: unexpected `2 }}` at the end of the expression"),
        ] {
            assert_eq!(filled(text), Err(expected.to_owned()));
        }
        let long = format!("${{{{ {} }}}}", "é".repeat(50));
        assert!(filled(&long).expect_err("must be refused").starts_with("`${{ ééé"));
    }
}
