//! Text in HTML and XML.

/// Escapes text for HTML and XML, also inside quoted attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            // XML does not allow these characters.
            other if other.is_control() || matches!(other, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_is_valid_in_an_attribute_and_reads_the_same() {
        let text = "a & b <c> \"d\" 'e'";
        let document = format!("<a b=\"{0}\">{0}</a>", escape(text));
        let document = roxmltree::Document::parse(&document).expect("must be XML");
        let root = document.root_element();
        assert_eq!((root.attribute("b"), root.text()), (Some(text), Some(text)));
        assert_eq!(escape("\u{1b}[0m\u{ffff}\n"), "\u{fffd}[0m\u{fffd}\n");
    }
}
