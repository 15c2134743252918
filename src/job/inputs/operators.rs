//! The operators and functions of expressions, and the conversion of values to text.

use std::cmp::Ordering;

use serde_json::Value;

/// Up to this number, floats represent integers exactly.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// Arithmetic operators; `+` also concatenates strings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Arithmetic {
    /// The sign of the operator.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
        }
    }

    /// Applies the operator. Fails if the types of the operands do not suit the operator, or for a division by zero.
    pub fn apply(self, left: &Value, right: &Value) -> Result<Value, String> {
        if let (Self::Add, Value::String(left), Value::String(right)) = (self, left, right) {
            return Ok(Value::String(format!("{left}{right}")));
        }
        let (Some(a), Some(b)) = (left.as_f64(), right.as_f64()) else {
            return Err(format!("`{}` is not defined for {} and {}", self.sign(), kind_of(left), kind_of(right)));
        };
        if b == 0.0 && matches!(self, Self::Divide | Self::Remainder) {
            return Err("division by zero".to_owned());
        }
        let result = match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a / b,
            Self::Remainder => a % b,
        };
        number_value(result).ok_or_else(|| "the number is too large".to_owned())
    }
}

/// Comparison operators.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    Different,
    AtMost,
    AtLeast,
    Less,
    More,
}

impl Comparison {
    pub const ALL: [Self; 6] = [Self::Equal, Self::Different, Self::AtMost, Self::AtLeast, Self::Less, Self::More];

    /// The sign of the operator.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::Different => "!=",
            Self::AtMost => "<=",
            Self::AtLeast => ">=",
            Self::Less => "<",
            Self::More => ">",
        }
    }

    pub fn holds(self, left: &Value, right: &Value) -> bool {
        let order = compare(left, right);
        match self {
            Self::Equal => order.is_eq(),
            Self::Different => order.is_ne(),
            Self::AtMost => order.is_le(),
            Self::AtLeast => order.is_ge(),
            Self::Less => order.is_lt(),
            Self::More => order.is_gt(),
        }
    }
}

/// Compares two values of the same type by value, otherwise by type.
fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Number(left), Value::Number(right)) => {
            let (left, right) = (left.as_f64(), right.as_f64());
            left.partial_cmp(&right).unwrap_or(Ordering::Equal)
        }
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Array(left), Value::Array(right)) => {
            let parts = left.iter().zip(right).map(|(left, right)| compare(left, right));
            parts.fold(Ordering::Equal, Ordering::then).then(left.len().cmp(&right.len()))
        }
        (Value::Object(left), Value::Object(right)) => {
            let values = left.values().zip(right.values()).map(|(left, right)| compare(left, right));
            let keys = left.keys().cmp(right.keys());
            left.len().cmp(&right.len()).then(keys).then(values.fold(Ordering::Equal, Ordering::then))
        }
        _ => rank(left).cmp(&rank(right)),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

/// Whether a value counts as true: empty values, zero and null do not.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

/// Calls a function. Fails if it does not exist or does not accept the value.
pub fn call(name: &str, argument: &Value) -> Result<Value, String> {
    match (name, argument) {
        ("str", value) => Ok(Value::String(text_of(value))),
        ("bool", value) => Ok(Value::Bool(is_true(value))),
        ("num", Value::Number(_)) => Ok(argument.clone()),
        ("num", Value::String(text)) => number_of(text).ok_or_else(|| format!("`{text}` is not a number")),
        ("num", other) => Err(format!("{} is not a number", kind_of(other))),
        _ => Err(format!("unknown function `{name}`")),
    }
}

/// Parses a number.
pub fn number_of(text: &str) -> Option<Value> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    text.parse().ok().filter(|_| is_plain).and_then(number_value)
}

/// A JSON number; integers have no decimal point. `None` for infinity and NaN.
fn number_value(number: f64) -> Option<Value> {
    if number.fract() == 0.0 && number.abs() < MAX_EXACT_INTEGER {
        return Some(Value::from(number as i64));
    }
    serde_json::Number::from_f64(number).map(Value::Number)
}

/// A value as text.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "<null>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            number.as_f64().and_then(number_value).map_or_else(|| number.to_string(), |value| value.to_string())
        }
        other => other.to_string(),
    }
}

/// The type of a value, for messages.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
