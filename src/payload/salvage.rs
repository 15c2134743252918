//! Extracts id and token from a broken or incomplete payload: enough to report the job as failed. Otherwise the job
//! would hang for an hour.

use super::lenient;
use crate::decode;
use crate::job_id::{JobHandle, JobId};
use crate::token::Token;

/// Reads only the top level: a dependency also has an id and a token, and must not be failed.
pub fn salvage(body: &[u8]) -> Option<JobHandle> {
    let (mut id, mut token) = (None, None);
    let mut scan = Scan { text: body, at: 0, depth: 0 };
    while let Some(key) = scan.next_key() {
        match key.as_str() {
            "id" => id = scan.id().or(id),
            "token" => token = scan.string().or(token),
            _ => {}
        }
    }
    Some(JobHandle { id: id?, token: Token::new(token?) })
}

/// Scans text that began as JSON, up to its end.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Scan<'a> {
    /// The next key of the outermost object; its value follows.
    fn next_key(&mut self) -> Option<String> {
        loop {
            match self.text.get(self.at)? {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b'"' => {
                    let quoted = self.quoted()?;
                    self.skip_blanks();
                    if self.depth == 1 && self.text.get(self.at) == Some(&b':') {
                        self.at += 1;
                        self.skip_blanks();
                        // An unreadable key is not one of the searched keys.
                        return Some(decode::json(quoted).unwrap_or_default());
                    }
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// A quoted string at the current position; `None` if it has no end.
    fn quoted(&mut self) -> Option<&'a [u8]> {
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
            b'"' => decode::json(self.quoted()?).ok()?,
            _ => return None,
        };
        (!text.is_empty()).then_some(text)
    }

    /// An id: a number, or text that is safe in a path. A number at the end of the text may be truncated and does not
    /// count.
    fn id(&mut self) -> Option<JobId> {
        if self.text.get(self.at) == Some(&b'"') {
            return JobId::parse(self.string()?.trim());
        }
        let rest = self.text.get(self.at..)?;
        let is_part_of_number = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
        let text = std::str::from_utf8(&rest[..rest.iter().position(|byte| !is_part_of_number(byte))?]).ok()?;
        match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => JobId::parse(text.trim_start_matches('0')),
            false => lenient::exact_integer(text.parse().ok()?).filter(|id| *id > 0).map(JobId::from),
        }
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

    fn found(text: &str) -> Option<(String, String)> {
        salvage(text.as_bytes()).map(|job| (job.id.to_string(), job.token.reveal().to_owned()))
    }

    #[test]
    fn finds_the_job_for_any_end_of_the_payload() {
        for text in [
            r#"{"id": 7, "token": "glcbt-x", "steps": [{"na"#,
            r#"{"id":7,"token":"glcbt-x""#,
            r#"{"job_info": {"id": 1}, "token": "glcbt\u002dx", "id": "7", "steps": 5}"#,
            r#"{"id": "7", "token": "glcbt-x", "variables": {}}"#,
            r#"{"\u0069d": 7, "t\u006fken": "glcbt-x", "variables": {}}"#,
            r#"{"id": 5, "id": 7, "token": "old", "token": "glcbt-x", "id": null, "token": 5, "variables": {}}"#,
            "\u{feff}{\"id\": 7.0, \"token\": \"glcbt-x\"}",
            r#"{"dependencies": [{"id": 3, "token": "of another"}], "id": 7, "x": "\"id\": 9", "token": "glcbt-x", "#,
        ] {
            assert_eq!(found(text), Some(("7".to_owned(), "glcbt-x".to_owned())), "{text}");
        }
    }

    #[test]
    fn never_takes_a_truncated_id_for_the_whole() {
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
        fn a_truncated_payload_gives_this_job_or_none(cut in 0_usize..120) {
            let text = r#"{"job_info":{"id":1,"token":"no"},"id":4711,"token":"glcbt-abc","dependencies":[{"id":2,"token":"no"}]}"#;
            if let Some(job) = found(&text[..cut.min(text.len())]) {
                prop_assert_eq!(job, ("4711".to_owned(), "glcbt-abc".to_owned()));
            }
        }
    }
}
