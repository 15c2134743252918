//! Number and token of a job whose payload is broken or cut off: enough to fail it at the server, which would wait for
//! an hour otherwise.

use crate::coordinator::JobHandle;
use crate::decode;
use crate::token::Token;

/// Looks at the top level only: a job that this one depends on has a number and a token too, and must not be failed.
pub fn salvage(body: &[u8]) -> Option<JobHandle> {
    let (mut id, mut token) = (None, None);
    let mut scan = Scan { text: body, at: 0, depth: 0 };
    while let Some(key) = scan.next_key() {
        match key {
            br#""id""# => id = scan.number().or(id),
            br#""token""# => token = scan.string().or(token),
            _ => {}
        }
    }
    Some(JobHandle { id: id?, token: Token::new(token?) })
}

/// Goes through text that began as JSON, as far as it goes.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Scan<'a> {
    /// The next key of the outermost object, with its quotes; what follows is its value.
    fn next_key(&mut self) -> Option<&'a [u8]> {
        loop {
            match self.text.get(self.at)? {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b'"' => {
                    let word = self.word()?;
                    self.skip_blanks();
                    if self.depth == 1 && self.text.get(self.at) == Some(&b':') {
                        self.at += 1;
                        self.skip_blanks();
                        return Some(word);
                    }
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// A string with its quotes, from the quote we stand on; `None` when it has no end.
    fn word(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.text.get(self.at)? {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        self.text.get(start..self.at)
    }

    fn string(&mut self) -> Option<String> {
        let text: String = match self.text.get(self.at)? {
            b'"' => decode::json(self.word()?).ok()?,
            _ => return None,
        };
        (!text.is_empty()).then_some(text)
    }

    /// A number, also one between quotes. One that ends with the text may have been longer.
    fn number(&mut self) -> Option<i64> {
        let digits = match self.text.get(self.at)? {
            b'"' => self.word()?.strip_prefix(b"\"")?.strip_suffix(b"\"")?,
            _ => {
                let rest = self.text.get(self.at..)?;
                &rest[..rest.iter().position(|byte| !byte.is_ascii_digit())?]
            }
        };
        std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id > 0)
    }

    fn skip_blanks(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Option<(i64, String)> {
        salvage(text.as_bytes()).map(|job| (job.id, job.token.reveal().to_owned()))
    }

    #[test]
    fn finds_a_job_wherever_its_payload_ends() {
        for text in [
            r#"{"id": 7, "token": "glcbt-x", "steps": [{"na"#,
            r#"{"id":7,"token":"glcbt-x""#,
            r#"{"job_info": {"id": 1}, "token": "glcbt\u002dx", "id": "7", "steps": 5}"#,
            r#"{"id": "7", "token": "glcbt-x", "variables": {}}"#,
            r#"{"dependencies": [{"id": 3, "token": "of another"}], "id": 7, "x": "\"id\": 9", "token": "glcbt-x", "#,
        ] {
            assert_eq!(found(text), Some((7, "glcbt-x".to_owned())), "{text}");
        }
    }

    #[test]
    fn never_takes_a_part_for_the_whole() {
        for text in [
            "<html>",
            "",
            r#"{"id": 7, "token": "glcbt-"#,
            r#"{"token": "glcbt-x", "id": 7"#,
            r#"{"id": null, "token": "glcbt-x"}"#,
            r#"{"dependencies": [{"id": 3, "token": "of another"}]"#,
            r#"[{"id": 7, "token": "glcbt-x"}]"#,
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn survives_any_bytes(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = salvage(&body);
        }

        #[test]
        fn a_cut_payload_is_this_job_or_none(cut in 0_usize..120) {
            let text = r#"{"job_info":{"id":1,"token":"no"},"id":4711,"token":"glcbt-abc","dependencies":[{"id":2,"token":"no"}]}"#;
            if let Some(job) = found(&text[..cut.min(text.len())]) {
                prop_assert_eq!(job, (4711, "glcbt-abc".to_owned()));
            }
        }
    }
}
