//! The Base64 forms of a secret, as printed by `base64` or in an `Authorization` header.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The texts that every Base64 encoding of `value` contains, alone or amid other bytes: one for each alignment of the
/// value within groups of three bytes, without the characters that also encode neighbouring bytes; and their forms in
/// the URL-safe alphabet if they differ.
pub fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for before in 0..3 {
        let form = encode(value, before);
        let url_safe: Vec<u8> = form.iter().map(|letter| url_letter(*letter)).collect();
        if url_safe != form {
            forms.push(url_safe);
        }
        forms.push(form);
    }
    forms
}

fn url_letter(letter: u8) -> u8 {
    match letter {
        b'+' => b'-',
        b'/' => b'_',
        other => other,
    }
}

/// The characters that depend only on `value` if `before` bytes precede it.
fn encode(value: &[u8], before: usize) -> Vec<u8> {
    let bit = |at: usize| value[at / 8] >> (7 - at % 8) & 1;
    // The offset in bits from the start of the value to the first character that lies completely within it.
    let skipped = (6 - before * 8 % 6) % 6;
    let whole = (value.len() * 8 - skipped) / 6;
    let sextet = |index: usize| (0..6).fold(0, |sum, at| sum << 1 | bit(skipped + index * 6 + at));
    (0..whole).map(|index| ALPHABET[usize::from(sextet(index))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_within(text: &str, value: &str) -> bool {
        forms(value.as_bytes()).iter().any(|form| text.as_bytes().windows(form.len()).any(|part| part == form))
    }

    #[test]
    fn finds_a_value_at_any_alignment() {
        for (text, value) in [
            ("czNjcjN0LXZhbHVl", "s3cr3t-value"),
            // user:s3cr3t-value, me:s3cr3t-value, "a: s3cr3t-value\n"
            ("dXNlcjpzM2NyM3QtdmFsdWU=", "s3cr3t-value"),
            ("bWU6czNjcjN0LXZhbHVl", "s3cr3t-value"),
            ("YTogczNjcjN0LXZhbHVlCg==", "s3cr3t-value"),
            ("Pz8/Pz8/Pz8=", "????????"),
            ("Pz8_Pz8_Pz8=", "????????"),
        ] {
            assert!(is_within(text, value), "{value} in {text}");
        }
        assert!(!is_within("czNjcjN0LXZhbHVl", "another-value"));
    }

    #[test]
    fn omits_characters_that_depend_on_neighbouring_bytes() {
        let forms: Vec<String> = forms(b"s3cr3t-value")
            .into_iter()
            .map(|form| String::from_utf8(form).expect("the text must be UTF-8"))
            .collect();
        assert_eq!(forms, ["czNjcjN0LXZhbHVl", "MzY3IzdC12YWx1Z", "zM2NyM3QtdmFsdW"]);
    }
}
