//! Decodes JSON and TOML. All code uses these two functions.
//!
//! The compiler generates a type's decoder once for each kind of source and for each accepted shape. To keep the binary
//! small, JSON is decoded only from byte slices, and types with named fields only from objects: serde would also accept
//! a list of the fields, which no document contains.

mod named;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use named::Named;

/// Decodes a whole JSON text. The error names the position.
pub fn json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = T::deserialize(Named(&mut reader))?;
    reader.end()?;
    Ok(value)
}

/// Decodes a TOML document. The error has the position.
pub fn toml<T: DeserializeOwned>(text: &str) -> Result<T, toml::de::Error> {
    T::deserialize(Named(toml::Deserializer::parse(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Point {
        x: i32,
        #[serde(default)]
        note: Option<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Shape {
        Empty,
        Dot(Point),
        Line(Point, Point),
        Box { corner: Point, size: (u8, u8) },
    }

    fn point(x: i32) -> Point {
        Point { x, note: None }
    }

    #[test]
    fn decodes_what_was_encoded() {
        for (text, expected) in [
            (r#""Empty""#, Shape::Empty),
            (r#"{"Dot":{"x":1,"note":null,"more":[{}]}}"#, Shape::Dot(point(1))),
            (r#"{"Line":[{"x":1},{"x":2}]}"#, Shape::Line(point(1), point(2))),
            (r#"{"Box":{"size":[3,4],"corner":{"x":1}}}"#, Shape::Box { corner: point(1), size: (3, 4) }),
        ] {
            assert_eq!(json::<Shape>(text.as_bytes()).expect(text), expected);
        }
        let points: std::collections::BTreeMap<String, Vec<Point>> =
            toml("a = [{x = 1}]\n[[b]]\nx = 2\n").expect("must be TOML");
        assert_eq!((&points["a"], &points["b"]), (&vec![point(1)], &vec![point(2)]));
    }

    #[test]
    fn refuses_a_list_in_place_of_an_object() {
        for text in ["[1]", r#"{"Dot":[1]}"#, r#"{"Box":[{"x":1},[3,4]]}"#] {
            let (point, shape) = (json::<Point>(text.as_bytes()).is_err(), json::<Shape>(text.as_bytes()).is_err());
            assert!(point && shape, "{text}");
        }
        assert!(toml::<std::collections::BTreeMap<String, Point>>("a = [1]").is_err());
    }

    #[test]
    fn errors_name_the_position() {
        let error = json::<Point>(b"{\n \"x\": true}").expect_err("must be refused").to_string();
        assert_eq!(error, "invalid type: boolean `true`, expected i32 at line 2 column 10");
        assert!(json::<Point>(b"{\"x\":1} {").is_err(), "something behind it");
        let error = toml::<Point>("note = \"n\"\nx = true\n").expect_err("must be refused");
        assert_eq!(error.span(), Some(15..19));
    }
}
