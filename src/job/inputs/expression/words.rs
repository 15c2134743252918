//! The tokens of an expression: operators and punctuation, names, numbers and strings.

use serde_json::Value;

use super::super::operators;
use super::{Evaluated, ExpressionParser, OPENING};

/// Reserved words of the language.
pub(super) const RESERVED: [&str; 34] = [
    "array",
    "as",
    "break",
    "case",
    "const",
    "continue",
    "default",
    "else",
    "fallthrough",
    "float",
    "for",
    "func",
    "function",
    "goto",
    "if",
    "import",
    "in",
    "int",
    "let",
    "loop",
    "map",
    "namespace",
    "number",
    "object",
    "package",
    "range",
    "return",
    "string",
    "struct",
    "switch",
    "type",
    "var",
    "void",
    "while",
];

impl<'a> ExpressionParser<'a> {
    /// Parses a string in double quotes, which may contain expressions.
    pub(super) fn text(&mut self) -> Evaluated {
        let mut text = String::new();
        self.expect("\"")?;
        loop {
            if let Some(behind) = self.rest.strip_prefix(OPENING) {
                self.rest = behind;
                let value = self.deeper(Self::template)?;
                text.push_str(&operators::text_of(&value));
                continue;
            }
            match self.next_char()? {
                '"' => return Ok(Value::String(text)),
                '\\' => self.escaped(&mut text)?,
                other => text.push(other),
            }
        }
    }

    fn escaped(&mut self, text: &mut String) -> Result<(), String> {
        if let Some(behind) = self.rest.strip_prefix(OPENING) {
            self.rest = behind;
            text.push_str(OPENING);
            return Ok(());
        }
        text.push(match self.next_char()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            same @ ('\\' | '"' | '/') => same,
            'u' => {
                let digits = self.rest.get(..4).ok_or("`\\u` must be followed by four digits")?;
                self.rest = &self.rest[4..];
                let code = u32::from_str_radix(digits, 16).ok();
                code.and_then(char::from_u32).ok_or_else(|| format!("`\\u{digits}` is not a character"))?
            }
            other => return Err(format!("`\\{other}` is an unknown escape")),
        });
        Ok(())
    }

    /// Parses a string in single quotes.
    pub(super) fn raw_text(&mut self) -> Evaluated {
        let mut text = String::new();
        self.expect("'")?;
        loop {
            match self.next_char()? {
                '\'' => return Ok(Value::String(text)),
                '\\' if self.rest.starts_with(['\\', '\'']) => text.push(self.next_char()?),
                other => text.push(other),
            }
        }
    }

    pub(super) fn number(&mut self) -> Evaluated {
        let mut before = ' ';
        let end = self.rest.find(|next: char| {
            let is_part = next.is_ascii_digit() || matches!(next, '.' | 'e' | 'E') || is_sign_of_exponent(before, next);
            before = next;
            !is_part
        });
        let (digits, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        operators::number_of(digits).ok_or_else(|| format!("`{digits}` is not a number"))
    }

    /// Parses the next name, if there is one.
    pub(super) fn name(&mut self) -> Option<&'a str> {
        self.skip_blanks();
        let begins = self.rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        let is_part = |next: char| next.is_ascii_alphanumeric() || next == '_';
        let end = self.rest.find(|next| !is_part(next)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        begins.then(|| self.rest = rest).map(|()| name)
    }

    /// Consumes the operator or punctuation `sign` if it comes next and is not the beginning of a longer one.
    pub(super) fn takes(&mut self, sign: &str) -> bool {
        self.skip_blanks();
        let Some(rest) = self.rest.strip_prefix(sign) else { return false };
        if matches!(sign, "!" | "<" | ">") && rest.starts_with('=') {
            return false;
        }
        self.rest = rest;
        true
    }

    pub(super) fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { Err(format!("a `{sign}` is missing")) }
    }

    fn next_char(&mut self) -> Result<char, String> {
        let mut chars = self.rest.chars();
        let next = chars.next().ok_or("a quote is not closed")?;
        self.rest = chars.as_str();
        Ok(next)
    }

    pub(super) fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

fn is_sign_of_exponent(before: char, sign: char) -> bool {
    matches!(before, 'e' | 'E') && matches!(sign, '+' | '-')
}
