//! Variables that a job hands on by `artifacts:reports:dotenv`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// Bytes of a report that are read.
const LIMIT: u64 = 1 << 20;

/// The variables of a report as it was handed over. Errors: it cannot be read.
pub fn read(archive: &Path) -> io::Result<Vec<(String, String)>> {
    let mut text = Vec::new();
    MultiGzDecoder::new(File::open(archive)?).take(LIMIT).read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// `KEY=value` lines: quotes are part of the value, and the last of a name counts.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        variables.retain(|(known, _)| known != key);
        variables.push((key.to_owned(), value.trim_end_matches('\r').to_owned()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_name_counts_and_quotes_stay() {
        let variables = parse("A=1\n# comment\nB=\"two words\"\nno line\nA=3=x\r\n9-x=y\n");
        let expected = [("B", "\"two words\""), ("A", "3=x")];
        assert_eq!(variables, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
