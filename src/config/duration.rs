//! Durations in Go's syntax: `90s`, `1h30m`, `1.5h`, `100ms`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Parses a duration; `None` for a negative one or a bare number.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[letters..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// Decodes a duration from a configuration; an empty text counts as not set. gitlab-runner reads a number as
/// nanoseconds. A number is almost always a mistake, so this function accepts only 0.
pub fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a duration; write for example \"90s\" or \"1h30m\"")]
    enum Written {
        Text(String),
        Number(i64),
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Text(text) if text.is_empty() => return Ok(None),
        Written::Text(text) => text,
        Written::Number(number) => number.to_string(),
    };
    let wrong =
        || serde::de::Error::custom(format!("`{text}` is not a duration; write for example \"90s\" or \"1h30m\""));
    parse(&text).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_durations_in_the_syntax_of_go() {
        for (text, millis) in [("90s", 90_000), ("1h30m", 5_400_000), ("1.5h", 5_400_000), ("100ms", 100), ("0", 0)] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "-1s", "1x", "h", "1h5"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_a_duration_only_if_it_is_0() {
        #[derive(Debug, Deserialize)]
        struct Table {
            #[serde(deserialize_with = "read")]
            time: Option<Duration>,
        }
        let read =
            |text: &str| toml::from_str::<Table>(text).map(|table| table.time).map_err(|error| error.to_string());
        assert_eq!(read("time = 0"), Ok(Some(Duration::ZERO)));
        assert_eq!(read("time = \"\""), Ok(None));
        for wrong in ["time = 600", "time = -1", "time = true"] {
            assert!(read(wrong).is_err_and(|why| why.contains("write for example \"90s\"")), "{wrong}");
        }
    }
}
