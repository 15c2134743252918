//! Variables that a job passes to later jobs through `artifacts:reports:dotenv`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// The size limit of a report, in bytes.
const LIMIT: u64 = 1 << 20;

/// Reads the variables of a report from its archive.
pub fn read(archive: &Path) -> io::Result<Vec<(String, String)>> {
    let mut text = Vec::new();
    MultiGzDecoder::new(File::open(archive)?).take(LIMIT).read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Parses `KEY=value` lines. Quotes are part of the value; the last value of a name wins.
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
    fn the_last_value_wins_and_quotes_are_kept() {
        let variables = parse("A=1\n# comment\nB=\"two words\"\nno line\nA=3=x\r\n9-x=y\n");
        let expected = [("B", "\"two words\""), ("A", "3=x")];
        assert_eq!(variables, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
