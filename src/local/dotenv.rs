//! Variables that a job passes to later jobs through `artifacts:reports:dotenv`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// The largest report, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Reads the variables of a report from its archive. An error of the kind `InvalidData` names the part of the report
/// that GitLab refuses.
pub fn read(archive: &Path) -> io::Result<Vec<(String, String)>> {
    let mut text = Vec::new();
    MultiGzDecoder::new(File::open(archive)?).take(MAX_SIZE).read_to_end(&mut text)?;
    parse(&String::from_utf8_lossy(&text)).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Parses `KEY=value` lines. Spaces around keys and values are removed, quotes are part of the value, and the last
/// value of a name wins. The error names the first other line.
fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let pair = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let is_name =
            |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let Some((key, value)) = pair.filter(|(key, _)| is_name(key)) else {
            let shown: String = line.chars().take(40).collect();
            return Err(format!(
                "line {number} of the dotenv report is not KEY=value: `{shown}`; remove the line; GitLab allows no \
                 blank lines and no comments"
            ));
        };
        variables.retain(|(known, _)| known != key);
        variables.push((key.to_owned(), value.to_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_wins_and_quotes_are_kept() {
        let variables = parse("\u{feff}A=1\nB=\"two words\"\nC =' x ' \nA=3=x\r\nD=a # b\nE=\n9=ü$A\n").expect("valid");
        let expected = [("B", "\"two words\""), ("C", "' x '"), ("A", "3=x"), ("D", "a # b"), ("E", ""), ("9", "ü$A")];
        assert_eq!(variables, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn the_error_names_the_first_invalid_line() {
        for (text, line) in
            [("A=1\n\nB=2\n", 2), ("# comment\n", 1), ("A=1\nexport B=2\n", 2), ("=x", 1), ("{'A': 1}", 1), ("ü=1", 1)]
        {
            let why = parse(text).expect_err(text);
            assert!(why.starts_with(&format!("line {line} of the dotenv report")), "{text}: {why}");
        }
    }
}
