//! Types plain scalars by the rules of Ruby's YAML parser, which is close to YAML 1.1.

use super::YamlValue;

/// The value of a plain (unquoted) scalar.
pub fn typed(text: &str) -> YamlValue {
    special(text).unwrap_or_else(|| YamlValue::Text(text.into()))
}

/// The value of a plain scalar that is not text.
pub fn special(text: &str) -> Option<YamlValue> {
    match text.as_bytes().first() {
        None => Some(YamlValue::Null),
        Some(b'0'..=b'9' | b'-' | b'+' | b'.') => special_float(text).or_else(|| integer(text)).or_else(|| float(text)),
        Some(_) => word(text),
    }
}

fn word(text: &str) -> Option<YamlValue> {
    let is = |words: &[&str]| text.len() <= 5 && words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if text == "~" || is(&["null"]) {
        Some(YamlValue::Null)
    } else if is(&["yes", "true", "on"]) {
        Some(YamlValue::Bool(true))
    } else if is(&["no", "false", "off"]) {
        Some(YamlValue::Bool(false))
    } else {
        None
    }
}

fn special_float(text: &str) -> Option<YamlValue> {
    let is = |word: &str| word.eq_ignore_ascii_case(text);
    let value = if is(".inf") || is("+.inf") {
        f64::INFINITY
    } else if is("-.inf") {
        f64::NEG_INFINITY
    } else if is(".nan") {
        f64::NAN
    } else {
        return None;
    };
    Some(YamlValue::Float(value))
}

/// Decimal, `0x1f`, `0b101`, octal `017`, sexagesimal `1:30`, with `_` and `,` between digits.
fn integer(text: &str) -> Option<YamlValue> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    if digits.contains(':') {
        return sexagesimal(digits).map(|number| YamlValue::Integer(if negative { -number } else { number }));
    }
    let (radix, rest) = if let Some(rest) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        (16, rest)
    } else if let Some(rest) = digits.strip_prefix("0b") {
        (2, rest)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, &digits[1..])
    } else {
        (10, digits)
    };
    let separator = |c: char| c == '_' || c == ',';
    let valid = rest.starts_with(|first: char| first.is_digit(radix) || (radix != 10 && separator(first)))
        && rest.chars().all(|c| c.is_digit(radix) || separator(c))
        && rest.contains(|c: char| c.is_digit(radix))
        && (radix != 10 || !rest.ends_with(separator));
    if !valid {
        return None;
    }
    let digits: String = rest.chars().filter(|c| !separator(*c)).collect();
    Some(match i64::from_str_radix(&digits, radix) {
        Ok(number) => YamlValue::Integer(if negative { -number } else { number }),
        // Ruby has integers of any size; a larger one stays text, without separators.
        Err(_) => YamlValue::Text(text.replace(separator, "").into()),
    })
}

fn sexagesimal(digits: &str) -> Option<i64> {
    let mut parts = digits.split(':');
    let first = parts.next()?;
    if !first.chars().all(|c| c.is_ascii_digit() || c == '_') {
        return None;
    }
    let mut number: i64 = first.replace('_', "").parse().ok()?;
    let mut count = 0;
    for part in parts {
        let valid = matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
        count += 1;
        if !valid || count > 2 {
            return None;
        }
        number = number.checked_mul(60)?.checked_add(part.parse().ok()?)?;
    }
    Some(number)
}

/// A number with a decimal point; `1e3` without one is text.
fn float(text: &str) -> Option<YamlValue> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, rest) = unsigned.split_once('.')?;
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let valid_whole = whole.is_empty()
        || (whole.starts_with(|c: char| c.is_ascii_digit())
            && whole.chars().all(|c| c.is_ascii_digit() || c == '_' || c == ','));
    let valid_exponent =
        exponent.is_none_or(|text| text.strip_prefix(['-', '+']).is_some_and(|n| !n.is_empty() && digits(n)));
    if !valid_whole || !digits(fraction) || !valid_exponent || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    text.replace(['_', ','], "").parse().ok().map(YamlValue::Float)
}

/// A float as Ruby prints it.
pub fn print_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let digits = if digits.contains('.') { digits.to_owned() } else { format!("{digits}.0") };
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = value.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::syntax::{Node, Origin};

    fn printed(text: &str) -> (String, &'static str) {
        let node = Node { value: typed(text), at: Origin::default() };
        (node.printed().expect("a scalar").to_string(), node.kind())
    }

    #[test]
    fn reads_plain_scalars_as_ruby_does() {
        for (text, expected, kind) in [
            ("", "", "null"),
            ("~", "", "null"),
            ("NULL", "", "null"),
            ("yes", "true", "a boolean"),
            ("Off", "false", "a boolean"),
            ("y", "y", "text"),
            ("010", "8", "a number"),
            ("0755", "493", "a number"),
            ("08", "08", "text"),
            ("0o17", "0o17", "text"),
            ("0x1f", "31", "a number"),
            ("0b101", "5", "a number"),
            ("1_000", "1000", "a number"),
            ("-7", "-7", "a number"),
            ("12:30", "750", "a number"),
            ("12:99", "12:99", "text"),
            ("8080:80", "8080:80", "text"),
            ("1.10", "1.1", "a number"),
            ("1.0", "1.0", "a number"),
            ("1e3", "1e3", "text"),
            ("1.5e+3", "1500.0", "a number"),
            ("1.2.3", "1.2.3", "text"),
            (".", ".", "text"),
            ("-", "-", "text"),
            (".inf", "Infinity", "a number"),
            ("12345678901234567890", "12345678901234567890", "text"),
            ("2024-01-02", "2024-01-02", "text"),
            ("nullable", "nullable", "text"),
        ] {
            assert_eq!(printed(text), (expected.to_owned(), kind), "{text}");
        }
    }

    #[test]
    fn prints_floats_as_ruby_does() {
        for (value, expected) in [(1e20, "1.0e+20"), (1.5e-7, "1.5e-07"), (0.0, "0.0"), (123456.5, "123456.5")] {
            assert_eq!(print_float(value), expected);
        }
    }
}
