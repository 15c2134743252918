//! Fits text into the columns of a terminal.

/// Ranges of characters that take two columns: East Asian wide characters and emoji (UAX #11).
const WIDE: [(u32, u32); 12] = [
    (0x1100, 0x115f),
    (0x231a, 0x231b),
    (0x23e9, 0x23f3),
    (0x2e80, 0x303e),
    (0x3041, 0xa4cf),
    (0xa960, 0xa97f),
    (0xac00, 0xd7a3),
    (0xf900, 0xfaff),
    (0xfe30, 0xfe6f),
    (0xff00, 0xff60),
    (0x1f300, 0x1faff),
    (0x20000, 0x3fffd),
];
/// Ranges of characters that take no column: combining marks, joiners, variation selectors.
const ZERO_WIDTH: [(u32, u32); 6] =
    [(0x300, 0x36f), (0x200b, 0x200f), (0x20d0, 0x20ff), (0xfe00, 0xfe0f), (0xfe20, 0xfe2f), (0xe0100, 0xe01ef)];

fn width_of(character: char) -> usize {
    let is_in =
        |ranges: &[(u32, u32)]| ranges.iter().any(|(first, last)| (*first..=*last).contains(&u32::from(character)));
    if is_in(&ZERO_WIDTH) {
        0
    } else if is_in(&WIDE) {
        2
    } else {
        1
    }
}

/// The number of columns that a text takes.
pub fn width(text: &str) -> usize {
    text.chars().map(width_of).sum()
}

/// Adds spaces up to a width in columns.
pub fn pad(text: &str, width_with_spaces: usize) -> String {
    format!("{text}{}", " ".repeat(width_with_spaces.saturating_sub(width(text))))
}

/// The first characters of a sequence that fit into `max_width` columns.
fn fitting(characters: impl Iterator<Item = char>, max_width: usize) -> Vec<char> {
    let mut used = 0;
    characters
        .take_while(|character| {
            used += width_of(*character);
            used <= max_width
        })
        .collect()
}

/// Shortens a text to `max_width` columns; `~` marks the cut.
pub fn cut(text: &str, max_width: usize) -> String {
    if width(text) <= max_width {
        return text.to_owned();
    }
    fitting(text.chars(), max_width.saturating_sub(1)).into_iter().chain(['~']).collect()
}

/// Shortens a name to `max_width` columns by a cut in its middle, because the names of a matrix differ at their ends.
pub fn shorten(name: &str, max_width: usize) -> String {
    if width(name) <= max_width {
        return name.to_owned();
    }
    let tail = max_width.saturating_sub(1) * 2 / 5;
    let head = fitting(name.chars(), max_width.saturating_sub(1 + tail));
    let mut tail = fitting(name.chars().rev(), tail);
    tail.reverse();
    head.into_iter().chain(['~']).chain(tail).collect()
}

/// The largest number of jobs whose short names are compared, because the comparison takes time.
const MAX_COMPARED: usize = 1000;

/// A short name that differs from the short names of other jobs (`others`: name and short name). If both ends of the
/// names are equal, the short name shows the part in which the name differs from another; if that does not suffice, a
/// number.
pub fn distinct_short_name(name: &str, max_width: usize, others: &[(String, String)]) -> String {
    let is_taken = |short: &str| others.iter().any(|(other, taken)| taken == short && other != name);
    let usual = shorten(name, max_width);
    if others.len() > MAX_COMPARED || !is_taken(&usual) {
        return usual;
    }
    let head = fitting(name.chars(), max_width / 4);
    let room = max_width.saturating_sub(max_width / 4 + 2).max(1);
    let differs_at = |other: &str| name.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let mut places: Vec<usize> =
        others.iter().map(|(other, _)| differs_at(other)).filter(|at| *at > head.len()).collect();
    places.sort_unstable();
    places.dedup();
    let window = |at: usize| {
        let part = fitting(name.chars().skip(at), room);
        let end = if name.chars().count() > at + part.len() { "~" } else { "" };
        head.iter().copied().chain(['~']).chain(part).chain(end.chars()).collect::<String>()
    };
    let numbered = (2..=others.len() + 2).map(|number| {
        let number = format!("~{number}");
        fitting(name.chars(), max_width.saturating_sub(number.len()))
            .into_iter()
            .chain(number.chars())
            .collect::<String>()
    });
    places.into_iter().map(window).chain(numbered).find(|short| !is_taken(short)).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn long_names_keep_both_ends() {
        for (name, max_width, expected) in [
            ("short", 6, "short"),
            ("matrix: [one, two]", 11, "matrix~two]"),
            ("é".repeat(20).as_str(), 6, "ééé~éé"),
            ("abc", 1, "~"),
        ] {
            assert_eq!(shorten(name, max_width), expected);
        }
    }

    #[test]
    fn wide_characters_take_two_columns() {
        for (text, expected) in [("abc", 3), ("日本語", 6), ("🚀 deploy", 9), ("e\u{301}", 1), ("", 0)] {
            assert_eq!(width(text), expected, "{text}");
        }
        assert_eq!(cut("日本語のジョブ", 6), "日本~");
        assert_eq!(shorten("日本語のジョブ名", 9), "日本~名");
        assert_eq!(width(&pad("日本", 7)), 7);
    }

    #[test]
    fn short_names_of_a_matrix_differ() {
        let systems = ["linux", "macos", "windows"].into_iter().flat_map(|system| (0..40).map(move |n| (system, n)));
        let names =
            systems.map(|(system, n)| format!("integration-test: [{system}, x86_64-{n:02}, release, with-everything]"));
        for max_width in [6, 12, 20, 30] {
            let mut shown: Vec<(String, String)> = Vec::new();
            for name in names.clone() {
                let short = distinct_short_name(&name, max_width, &shown);
                assert!(width(&short) <= max_width, "{short}");
                shown.push((name, short));
            }
            let different: HashSet<&String> = shown.iter().map(|(_, short)| short).collect();
            assert_eq!(different.len(), shown.len(), "{shown:?}");
        }
        let shown = [("test: [linux, x86_64, everything]".to_owned(), "test: [~ing]".to_owned())];
        assert_eq!(distinct_short_name("test: [windows, x86_64, everything]", 12, &shown), "tes~windows~");
        assert_eq!(
            distinct_short_name("test: [linux, x86_64, everything]", 12, &shown),
            "test: [~ing]",
            "the same job"
        );
    }
}
