//! Reading what a server sends without insisting: null is nothing, a number may come as text and text as a number.

use std::fmt;

use serde::de::{Error, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};

/// Null is the zero value.
pub fn value<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list; null is an empty one, and a null in it is not there.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list: Option<Vec<Option<T>>> = Option::deserialize(deserializer)?;
    Ok(list.into_iter().flatten().flatten().collect())
}

/// Text, or a number or truth value as it would be written.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Scalar::deserialize(deserializer).map(Scalar::into_text)
}

/// A list of texts.
pub fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let list: Vec<Scalar> = value(deserializer)?;
    Ok(list.into_iter().filter(|scalar| !matches!(scalar, Scalar::Null)).map(Scalar::into_text).collect())
}

/// A whole number, or text that is one.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Null => Ok(0),
        Scalar::Number(number) => Ok(number),
        // A fraction of a second or of a commit is none.
        Scalar::Fraction(number) => Ok(number as i64),
        Scalar::Text(text) if text.trim().is_empty() => Ok(0),
        Scalar::Text(text) => text.trim().parse().map_err(|_| D::Error::custom("text that is no number")),
        Scalar::Switch(_) => Err(D::Error::custom("a truth value that should be a number")),
    }
}

/// A whole number that is exactly what was written; anything else is an error.
pub fn exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Null => Ok(0),
        Scalar::Number(number) => Ok(number),
        Scalar::Fraction(number) => whole(number).ok_or_else(|| D::Error::custom("a number that is not whole")),
        Scalar::Text(text) => text.trim().parse().map_err(|_| D::Error::custom("text that is no number")),
        Scalar::Switch(_) => Err(D::Error::custom("a truth value that should be a number")),
    }
}

/// The integer that a number is, where it can be told from its neighbours.
pub fn whole(number: f64) -> Option<i64> {
    /// 2^53: above it not every integer is a number of this type.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

/// A number that is not negative; anything else is none.
pub fn fraction<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let number = serde_json::Value::deserialize(deserializer)?.as_f64();
    Ok(number.filter(|number| number.is_finite() && *number >= 0.0))
}

/// True or false, also as text or as 1 and 0.
pub fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Null => Ok(false),
        Scalar::Switch(switch) => Ok(switch),
        Scalar::Number(number) => Ok(number != 0),
        Scalar::Text(text) if text.is_empty() => Ok(false),
        Scalar::Text(text) => boolean(&text).ok_or_else(|| D::Error::custom("text that is neither true nor false")),
        Scalar::Fraction(_) => Err(D::Error::custom("a fraction that should be a truth value")),
    }
}

/// A boolean as Go reads it.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Whether there is anything: null, false and what is empty are nothing.
pub fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
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

/// The keys that are left over in a flattened object.
pub fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map = std::collections::BTreeMap::<String, IgnoredAny>::deserialize(deserializer)?;
    Ok(map.into_keys().collect())
}

/// Anything but lists and objects.
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
