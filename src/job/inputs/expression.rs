//! Moa expressions, evaluated while they are parsed. If the left operand decides the result of `&&` or `||`, the right
//! operand is parsed but not evaluated.

mod words;

use serde_json::{Map, Value};

use self::words::RESERVED;
use super::Scope;
use super::operators::{self, Arithmetic, Comparison, is_true};

/// The start of an expression.
pub const OPENING: &str = "${{";
/// The end of an expression.
pub const CLOSING: &str = "}}";

/// The nesting limit, which protects the thread's stack.
const MAX_DEPTH: usize = 50;

/// The result of evaluating a part of an expression.
type Evaluated = Result<Value, String>;

/// Parses and evaluates one expression.
pub struct ExpressionParser<'a> {
    rest: &'a str,
    scope: &'a Scope,
    depth: usize,
    /// Whether the current part is evaluated or only parsed.
    is_evaluated: bool,
}

impl<'a> ExpressionParser<'a> {
    pub fn new(text: &'a str, scope: &'a Scope) -> Self {
        Self { rest: text, scope, depth: 0, is_evaluated: true }
    }

    /// The unparsed text.
    pub fn rest(&self) -> &'a str {
        self.rest
    }

    /// Parses an expression and its closing braces. The error describes the problem.
    pub fn template(&mut self) -> Evaluated {
        let value = self.expression()?;
        if self.takes(CLOSING) {
            return Ok(value);
        }
        Err(match self.rest.lines().next() {
            None => "the expression is not closed".to_owned(),
            Some(line) => {
                format!("unexpected `{}` at the end of the expression", line.chars().take(20).collect::<String>())
            }
        })
    }

    fn expression(&mut self) -> Evaluated {
        self.deeper(Self::or)
    }

    /// Parses a part that is one level deeper.
    fn deeper(&mut self, parse: fn(&mut Self) -> Evaluated) -> Evaluated {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("the expression nests more than {MAX_DEPTH} levels"));
        }
        let outcome = parse(self);
        self.depth -= 1;
        outcome
    }

    fn or(&mut self) -> Evaluated {
        let mut left = self.and()?;
        while self.takes("||") {
            match is_true(&left) {
                true => self.skip(Self::and)?,
                false => left = self.and()?,
            }
        }
        Ok(left)
    }

    fn and(&mut self) -> Evaluated {
        let mut left = self.comparison()?;
        while self.takes("&&") {
            match is_true(&left) {
                true => left = self.comparison()?,
                false => self.skip(Self::comparison)?,
            }
        }
        Ok(left)
    }

    /// Parses the next part without evaluating it.
    fn skip(&mut self, parse: fn(&mut Self) -> Evaluated) -> Result<(), String> {
        let before = std::mem::replace(&mut self.is_evaluated, false);
        let parsed = parse(self);
        self.is_evaluated = before;
        parsed.map(drop)
    }

    fn comparison(&mut self) -> Evaluated {
        let mut left = self.sum()?;
        while let Some(operator) = Comparison::ALL.into_iter().find(|operator| self.takes(operator.sign())) {
            let right = self.sum()?;
            left = Value::Bool(operator.holds(&left, &right));
        }
        Ok(left)
    }

    fn sum(&mut self) -> Evaluated {
        self.chain(&[Arithmetic::Add, Arithmetic::Subtract], Self::product)
    }

    fn product(&mut self) -> Evaluated {
        self.chain(&[Arithmetic::Multiply, Arithmetic::Divide, Arithmetic::Remainder], Self::unary)
    }

    fn chain(&mut self, operators: &[Arithmetic], operand: fn(&mut Self) -> Evaluated) -> Evaluated {
        let mut left = operand(self)?;
        while let Some(operator) = operators.iter().find(|operator| self.takes(operator.sign())) {
            let right = operand(self)?;
            left = self.if_evaluated(|| operator.apply(&left, &right))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Evaluated {
        if self.takes("!") {
            return self.deeper(Self::unary).map(|value| Value::Bool(!is_true(&value)));
        }
        let Some(operator) = [Arithmetic::Add, Arithmetic::Subtract].into_iter().find(|one| self.takes(one.sign()))
        else {
            return self.member();
        };
        let value = self.deeper(Self::unary)?;
        self.if_evaluated(|| {
            if value.is_number() {
                operator.apply(&Value::from(0), &value)
            } else {
                Err(format!("`{}` is allowed only before numbers", operator.sign()))
            }
        })
    }

    /// Parses a value, followed by any number of member accesses.
    fn member(&mut self) -> Evaluated {
        let mut value = self.value()?;
        loop {
            let key = if self.takes(".") {
                Value::String(self.name().ok_or("a `.` is not followed by a name")?.to_owned())
            } else if self.takes("[") {
                let key = self.expression()?;
                self.expect("]")?;
                key
            } else {
                return Ok(value);
            };
            value = self.if_evaluated(|| self.part(&value, &key))?;
        }
    }

    fn part(&self, value: &Value, key: &Value) -> Evaluated {
        match (value, key) {
            (Value::Object(object), Value::String(name)) => {
                object.get(name).cloned().ok_or_else(|| match self.scope.sensitive.contains(name) {
                    true => format!("`{name}` is sensitive and cannot be used in the text of a job"),
                    false => format!("`{name}` does not exist"),
                })
            }
            (Value::Array(list), Value::Number(index)) => {
                let place = index.as_u64().and_then(|index| usize::try_from(index).ok());
                let found = place.and_then(|place| list.get(place)).cloned();
                found.ok_or_else(|| format!("index {index} is out of range for a list of length {}", list.len()))
            }
            _ => Err(format!("{} cannot be indexed by {}", operators::kind_of(value), operators::kind_of(key))),
        }
    }

    fn value(&mut self) -> Evaluated {
        self.skip_blanks();
        match self.rest.chars().next() {
            Some('(') => {
                self.expect("(")?;
                let value = self.expression()?;
                self.expect(")")?;
                Ok(value)
            }
            Some('[') => self.list(),
            Some('{') => self.object(),
            Some('"') => self.text(),
            Some('\'') => self.raw_text(),
            Some(digit) if digit.is_ascii_digit() => self.number(),
            _ => {
                let name = self.name().ok_or("a value is missing")?;
                self.named(name)
            }
        }
    }

    fn named(&mut self, name: &str) -> Evaluated {
        match name {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            name if RESERVED.contains(&name) => Err(format!("the word `{name}` is reserved")),
            name if self.takes("(") => {
                let argument = self.expression()?;
                self.takes(",");
                self.expect(")")?;
                self.if_evaluated(|| operators::call(name, &argument))
            }
            name => self.if_evaluated(|| self.part(&self.scope.root, &Value::from(name))),
        }
    }

    fn list(&mut self) -> Evaluated {
        let mut list = Vec::new();
        self.expect("[")?;
        while !self.takes("]") {
            list.push(self.expression()?);
            self.separator("]")?;
        }
        Ok(Value::Array(list))
    }

    fn object(&mut self) -> Evaluated {
        let mut object = Map::new();
        self.expect("{")?;
        while !self.takes("}") {
            let key = match self.name() {
                Some(name) => Value::from(name),
                None => self.deeper(Self::value)?,
            };
            self.expect(":")?;
            let value = self.expression()?;
            match key {
                Value::String(key) => drop(object.insert(key, value)),
                _ if !self.is_evaluated => {}
                other => return Err(format!("{} cannot be a key", operators::kind_of(&other))),
            }
            self.separator("}")?;
        }
        Ok(Value::Object(object))
    }

    /// Parses a comma, or checks that `closing` follows, without consuming it.
    fn separator(&mut self, closing: &str) -> Result<(), String> {
        self.skip_blanks();
        if self.takes(",") || self.rest.starts_with(closing) { Ok(()) } else { self.expect(closing) }
    }

    fn if_evaluated(&self, evaluate: impl FnOnce() -> Evaluated) -> Evaluated {
        if self.is_evaluated { evaluate() } else { Ok(Value::Null) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn evaluate(text: &str) -> Evaluated {
        let inputs = json!({
            "env": "production", "count": 3, "empty": "", "list": [{"a-b": 7}, "x"], "off": false, "name": "run",
        });
        let scope = Scope { root: json!({"job": {"inputs": inputs}}), sensitive: vec!["secret".to_owned()] };
        let text = format!("{text} }}}}");
        ExpressionParser::new(&text, &scope).template()
    }

    #[test]
    fn evaluates_as_the_language_defines() {
        for (text, expected) in [
            ("42", json!(42)),
            ("1.5e3", json!(1500)),
            ("2E-4", json!(0.0002)),
            (r#""a\n\"\u00e9\/ ${{ 1 + 1 }} \${{""#, json!("a\n\"é/ 2 ${{")),
            (r"'It\'s \\ \n ${{ 1 }}'", json!(r"It's \ \n ${{ 1 }}")),
            ("2 + 3 * 4", json!(14)),
            ("(2 + 3) * 4", json!(20)),
            ("10 / 4 - -1", json!(3.5)),
            ("-7 % 3", json!(-1)),
            ("10 - 4 - 3", json!(3)),
            (r#""a" + 'b'"#, json!("ab")),
            ("1 == \"1\"", json!(false)),
            ("1 < 2 == true", json!(true)),
            ("[1, 2] < [1, 3, 0]", json!(true)),
            ("{b: 1, a: 2} == {\"a\": 2, b: 1}", json!(true)),
            ("null == null && !null", json!(true)),
            ("job.inputs.env == \"production\" && \"stable\" || \"latest\"", json!("stable")),
            ("job.inputs.off && \"-v\" || \"\"", json!("")),
            ("job.inputs.empty || \"default\"", json!("default")),
            ("true || job.inputs.none + 1", json!(true)),
            ("false && job.inputs.none", json!(false)),
            ("job.inputs.list[0][\"a-b\"] + job.inputs.count", json!(10)),
            ("job[\"inputs\"].list[4 - 3]", json!("x")),
            ("[1, \"a\", null,]", json!([1, "a", null])),
            ("{(job.inputs.name): 1, name: {}, }", json!({"run": 1, "name": {}})),
            ("str(42) + str(true) + str(null)", json!("42true<null>")),
            ("num(\"3.14\") + num('1')", json!(4.140000000000001)),
            ("[bool(\"\"), bool(\"x\"), bool(0), bool([])]", json!([false, true, false, false])),
        ] {
            let value = evaluate(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(operators::text_of(&value), operators::text_of(&expected), "{text}");
        }
    }

    #[test]
    fn invalid_expressions_are_errors() {
        for (text, why) in [
            ("1 + \"a\"", "a number and a text"),
            ("1 / 0", "by zero"),
            ("5 % 0", "by zero"),
            ("-\"a\"", "only before numbers"),
            ("job.inputs.none", "`none` does not exist"),
            ("jobs", "`jobs` does not exist"),
            ("job.inputs.secret", "sensitive"),
            ("job.inputs.list[2]", "length 2"),
            ("job.inputs.list[-1]", "length 2"),
            ("job.inputs.count.x", "cannot be indexed"),
            ("if", "reserved"),
            ("nope(1)", "unknown function `nope`"),
            ("num(\"x\")", "not a number"),
            ("str()", "a value is missing"),
            ("{1: 2}", "cannot be a key"),
            ("'open", "not closed"),
            (r#""\q""#, "unknown escape"),
            ("1.2.3", "not a number"),
            ("1 =", "unexpected"),
            ("[1 2]", "a `]` is missing"),
        ] {
            let error = evaluate(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn limits_depth_but_not_length() {
        for text in ["(".repeat(100_000), "!".repeat(100_000), "[".repeat(100_000), "\"${{".repeat(100_000)] {
            assert!(evaluate(&text).expect_err("must be refused").contains("levels"));
        }
        assert_eq!(evaluate(&format!("0{}", " + 1".repeat(10_000))), Ok(json!(10_000)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn never_panics(text in "[-+*/%!<>=&|().,:{}\\[\\]\"'\\\\$0-9eau job.inputs]{0,40}") {
            let _ = evaluate(&text);
        }

        #[test]
        fn quoting_and_parsing_gives_the_same_text(text in "[^\\x00]{0,40}") {
            let raw = format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
            prop_assert_eq!(evaluate(&raw), Ok(json!(text.clone())));
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${{", "\\${{");
            prop_assert_eq!(evaluate(&format!("\"{quoted}\"")), Ok(json!(text)));
        }
    }
}
