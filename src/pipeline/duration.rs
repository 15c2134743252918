//! Parses durations as written in `.gitlab-ci.yml`: `90 minutes`, `1h 30m`, `3 hours 20 minutes`, `3600`.

use std::time::Duration;

/// Parses a duration; a number without a unit is in seconds. `None` for zero and for any other text.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.contains(':') {
        return clock(rest);
    }
    let mut seconds = 0_f64;
    while !rest.is_empty() {
        let number: f64;
        (number, rest) = match leading_word(rest) {
            Some(spelled) => spelled,
            None => {
                let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
                (rest[..digits].parse().ok()?, rest[digits..].trim_start())
            }
        };
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        seconds += number * seconds_in(&rest[..letters].to_ascii_lowercase())?;
        rest = rest[letters..].trim_start_matches([' ', ',', '\t']);
        rest = rest.strip_prefix("and ").unwrap_or(rest);
    }
    (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

/// English words for numbers; the index of a word is its value.
const WORDS: [&str; 13] =
    ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// A number in words at the start, as in `one week`, and the rest.
fn leading_word(text: &str) -> Option<(f64, &str)> {
    let (word, rest) = text.split_once([' ', '\t'])?;
    let number = WORDS.iter().position(|known| !known.is_empty() && known.eq_ignore_ascii_case(word))?;
    Some((f64::from(u8::try_from(number).ok()?), rest.trim_start()))
}

/// `hours:minutes:seconds` or `minutes:seconds`.
fn clock(text: &str) -> Option<Duration> {
    let parts: Option<Vec<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
    let seconds = match parts?[..] {
        [minutes, seconds] => minutes.checked_mul(60)?.checked_add(seconds)?,
        [hours, minutes, seconds] => {
            hours.checked_mul(60)?.checked_add(minutes)?.checked_mul(60)?.checked_add(seconds)?
        }
        _ => return None,
    };
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn seconds_in(unit: &str) -> Option<f64> {
    Some(match unit {
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86_400.0,
        "w" | "wk" | "wks" | "week" | "weeks" => 604_800.0,
        "mo" | "mos" | "month" | "months" => 2_592_000.0,
        "y" | "yr" | "yrs" | "year" | "years" => 31_536_000.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_words_units_and_bare_seconds() {
        for (text, seconds) in [
            ("3600", 3600),
            ("90 minutes", 5400),
            ("1h 30m", 5400),
            ("1h30m", 5400),
            ("3 hours 20 minutes", 12_000),
            ("1 hour, 10 minutes and 5 seconds", 4205),
            ("1.5h", 5400),
            ("01:30:10", 5410),
            ("2:05", 125),
            ("1 week", 604_800),
            ("one week", 604_800),
            ("two hours and 5 minutes", 7500),
            ("3 mins 4 sec", 184),
            ("2 hrs 20 min", 8400),
            ("6 mos 1 day", 15_638_400),
            ("47 yrs 6 mos and 4d", 1_498_089_600),
        ] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn refuses_text_that_is_not_a_duration() {
        for text in
            ["", "soon", "one", "one fortnight", "1 fortnight", "-5m", "0", "1h x", "1.2.3h", "1:2:3:4", "1:x", "0:00"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
