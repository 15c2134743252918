//! A secret in Base64, as scripts print it by `base64` or in an `Authorization` header.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What must stand in any Base64 text that encodes `value`, alone or amid other bytes: one form for each way in which
/// it can lie across groups of three bytes, without the characters that its neighbours have a part in, and those forms
/// once more in the alphabet for URLs where they differ.
pub fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for before in 0..3 {
        let form = encode(value, before);
        let of_urls: Vec<u8> = form.iter().map(|letter| url_letter(*letter)).collect();
        if of_urls != form {
            forms.push(of_urls);
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

/// The characters that depend on `value` alone when it stands behind `before` bytes.
fn encode(value: &[u8], before: usize) -> Vec<u8> {
    let bit = |at: usize| value[at / 8] >> (7 - at % 8) & 1;
    // The first character that begins within the value begins this many bits after its first.
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
    fn finds_a_value_wherever_it_lies() {
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
    fn says_what_the_neighbours_have_no_part_in() {
        let forms: Vec<String> =
            forms(b"s3cr3t-value").into_iter().map(|form| String::from_utf8(form).expect("text")).collect();
        assert_eq!(forms, ["czNjcjN0LXZhbHVl", "MzY3IzdC12YWx1Z", "zM2NyM3QtdmFsdW"]);
    }
}
