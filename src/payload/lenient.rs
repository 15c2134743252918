//! Lenient decoding of the server's JSON: null counts as absent, a number may be sent as text and text as a number.

use std::fmt;

use serde::de::{Error, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};

use crate::job_id::JobId;

/// Decodes null as the default value.
pub fn value<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Decodes a list; null is an empty list, and a null element is dropped.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list: Option<Vec<Option<T>>> = Option::deserialize(deserializer)?;
    Ok(list.into_iter().flatten().flatten().collect())
}

/// Decodes text; a number or boolean becomes its text.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Scalar::deserialize(deserializer).map(Scalar::into_text)
}

/// Decodes a list of texts; null elements are dropped.
pub fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let list: Vec<Scalar> = value(deserializer)?;
    Ok(list.into_iter().filter(|scalar| !matches!(scalar, Scalar::Null)).map(Scalar::into_text).collect())
}

/// Decodes an integer, or text that contains one.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Null => Ok(0),
        Scalar::Number(number) => Ok(number),
        // Drops the fractional part of a number of seconds or commits.
        Scalar::Fraction(number) => Ok(number as i64),
        Scalar::Text(text) if text.trim().is_empty() => Ok(0),
        Scalar::Text(text) => text.trim().parse().map_err(|_| D::Error::custom("text that is not a number")),
        Scalar::Switch(_) => Err(D::Error::custom("a boolean instead of a number")),
    }
}

/// Decodes an integer exactly; a fraction or a rounded number is an error.
pub fn exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Null => Ok(0),
        Scalar::Number(number) => Ok(number),
        Scalar::Fraction(number) => {
            exact_integer(number).ok_or_else(|| D::Error::custom("a number that is not an integer"))
        }
        Scalar::Text(text) => text.trim().parse().map_err(|_| D::Error::custom("text that is not a number")),
        Scalar::Switch(_) => Err(D::Error::custom("a boolean instead of a number")),
    }
}

/// Decodes the id in a payload: a positive integer, or text that contains one. Anything else that is an integer gives
/// an empty id.
pub fn job_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobId, D::Error> {
    let number = exact(deserializer)?;
    Ok(if number > 0 { number.into() } else { JobId::default() })
}

/// Converts a float to an integer if it represents that integer exactly.
pub fn exact_integer(number: f64) -> Option<i64> {
    /// 2^53: above it, not every integer has a float representation.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() < MAX_EXACT).then_some(number as i64)
}

/// Decodes a non-negative number; anything else gives `None`.
pub fn fraction<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let number = serde_json::Value::deserialize(deserializer)?.as_f64();
    Ok(number.filter(|number| number.is_finite() && *number >= 0.0))
}

/// Decodes a boolean, also as text or as 1 and 0.
pub fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Null => Ok(false),
        Scalar::Switch(switch) => Ok(switch),
        Scalar::Number(number) => Ok(number != 0),
        Scalar::Text(text) if text.is_empty() => Ok(false),
        Scalar::Text(text) => boolean(&text).ok_or_else(|| D::Error::custom("text that is not a boolean")),
        Scalar::Fraction(_) => Err(D::Error::custom("a fraction instead of a boolean")),
    }
}

/// Parses a boolean as Go's `strconv.ParseBool` does.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Decodes whether a value is present: null, false and empty values are not.
pub fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(match value {
        serde_json::Value::Null | serde_json::Value::Bool(false) => false,
        serde_json::Value::String(text) => !matches!(text.trim(), "" | "null"),
        serde_json::Value::Array(list) => !list.is_empty(),
        serde_json::Value::Object(map) => !map.is_empty(),
        serde_json::Value::Bool(true) | serde_json::Value::Number(_) => true,
    })
}

/// The keys of an object.
pub fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: std::collections::BTreeMap<String, IgnoredAny> = value(deserializer)?;
    Ok(map.into_keys().collect())
}

/// The remaining keys of a flattened object.
pub fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map = std::collections::BTreeMap::<String, IgnoredAny>::deserialize(deserializer)?;
    Ok(map.into_keys().collect())
}

/// Any value except lists and objects.
#[derive(Debug)]
enum Scalar {
    Null,
    Switch(bool),
    Number(i64),
    Fraction(f64),
    Text(String),
}

impl Scalar {
    fn into_text(self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Switch(switch) => switch.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, true, false or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, switch: bool) -> Result<Scalar, E> {
        Ok(Scalar::Switch(switch))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
        Ok(i64::try_from(number).map_or(Scalar::Fraction(number as f64), Scalar::Number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Scalar, E> {
        Ok(Scalar::Fraction(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Scalar, E> {
        Ok(Scalar::Text(text))
    }
}
