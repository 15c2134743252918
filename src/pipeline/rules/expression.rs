//! `rules:if`: parses and evaluates the expression, and explains its value.

use std::fmt::Write as _;
use std::sync::Arc;

use super::lexer::{ExpressionToken, Sign, tokens};
use crate::pipeline::pattern::RegexPattern;
use crate::pipeline::variable_view::VariableView;

/// How deeply parentheses and negations may nest.
const MAX_DEPTH: usize = 50;

/// An expression that can be evaluated.
#[derive(Debug)]
pub struct Expression {
    root: Term,
    text: Arc<str>,
    /// The names of its variables, each once.
    names: Vec<Arc<str>>,
}

#[derive(Debug)]
enum Term {
    Variable(Arc<str>),
    Text(Arc<str>),
    Pattern(Arc<str>, RegexPattern),
    Null,
    Bool(bool),
    Not(Box<Term>),
    Binary(Box<Term>, Sign, Box<Term>),
}

/// The value of a term, which is an operand of a comparison; a pattern is also a value.
enum Operand<'a> {
    Null,
    Bool(bool),
    Text(&'a str),
    Pattern(&'a str, &'a RegexPattern),
}

impl Expression {
    /// Parses an expression. The error explains why it cannot be read.
    pub fn parse(text: &Arc<str>) -> Result<Self, String> {
        let tokens = tokens(text)?;
        let mut names: Vec<Arc<str>> = Vec::new();
        for token in &tokens {
            if let ExpressionToken::Variable(name) = token
                && !names.contains(name)
            {
                names.push(Arc::clone(name));
            }
        }
        let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
        let root = parser.or()?;
        match parser.peek() {
            None => Ok(Self { root, text: Arc::clone(text), names }),
            Some(ExpressionToken::Sign(Sign::Close)) => Err("a closing parenthesis has no opening one".to_owned()),
            Some(token) => Err(format!("{} is not allowed after a complete comparison", shown(token))),
        }
    }

    /// The upper bound of the memory of its patterns, in bytes.
    pub fn size(&self) -> usize {
        self.root.size()
    }

    /// Whether the expression is true.
    pub fn holds(&self, variables: &VariableView<'_>) -> bool {
        self.root.value(variables).is_present()
    }

    /// The expression, followed by the values of its variables.
    pub fn explain(&self, variables: &VariableView<'_>) -> String {
        let mut out = self.text.to_string();
        for (number, name) in self.names.iter().enumerate() {
            out.push_str(if number == 0 { " with " } else { ", " });
            let _ = match variables.get(name) {
                None => write!(out, "${name} undefined"),
                Some(_) if variables.is_masked(name) => write!(out, "${name}=[MASKED]"),
                Some(value) => write!(out, "${name}={value:?}"),
            };
        }
        out
    }
}

struct Parser<'a> {
    tokens: &'a [ExpressionToken],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&ExpressionToken> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, wanted: &[Sign]) -> Option<Sign> {
        let Some(ExpressionToken::Sign(sign)) = self.peek() else { return None };
        let sign = *sign;
        wanted.contains(&sign).then(|| {
            self.at += 1;
            sign
        })
    }

    fn or(&mut self) -> Result<Term, String> {
        let mut left = self.and()?;
        while let Some(sign) = self.take(&[Sign::Or]) {
            left = Term::Binary(Box::new(left), sign, Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Term, String> {
        let mut left = self.comparison()?;
        while let Some(sign) = self.take(&[Sign::And]) {
            left = Term::Binary(Box::new(left), sign, Box::new(self.comparison()?));
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Term, String> {
        let mut left = self.value()?;
        while let Some(sign) = self.take(&[Sign::Equal, Sign::NotEqual, Sign::Match, Sign::NotMatch]) {
            left = Term::Binary(Box::new(left), sign, Box::new(self.value()?));
        }
        Ok(left)
    }

    fn value(&mut self) -> Result<Term, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it nests deeper than {MAX_DEPTH} levels"));
        }
        let term = self.value_within();
        self.depth -= 1;
        term
    }

    fn value_within(&mut self) -> Result<Term, String> {
        let token = self.peek().cloned();
        self.at += 1;
        match token {
            Some(ExpressionToken::Variable(name)) => Ok(Term::Variable(name)),
            Some(ExpressionToken::Text(text)) => Ok(Term::Text(text)),
            Some(ExpressionToken::Null) => Ok(Term::Null),
            Some(ExpressionToken::Bool(value)) => Ok(Term::Bool(value)),
            Some(ExpressionToken::Pattern(text)) => match RegexPattern::between_slashes(&text) {
                Some(Ok(pattern)) => Ok(Term::Pattern(text, pattern)),
                Some(Err(why)) => Err(format!("the pattern {text} cannot be used: {why}")),
                None => Err(format!("{text} is not a pattern")),
            },
            Some(ExpressionToken::Sign(Sign::Not)) => Ok(Term::Not(Box::new(self.value()?))),
            Some(ExpressionToken::Sign(Sign::Open)) => {
                let term = self.or()?;
                self.take(&[Sign::Close]).map(|_| term).ok_or_else(|| "a parenthesis is not closed".to_owned())
            }
            Some(token) => Err(format!("found {} where a value is expected", shown(&token))),
            None if self.tokens.is_empty() => Err("it is empty".to_owned()),
            None => Err("it ends where a value is expected".to_owned()),
        }
    }
}

fn shown(token: &ExpressionToken) -> String {
    match token {
        ExpressionToken::Variable(name) => format!("`${name}`"),
        ExpressionToken::Text(text) => format!("\"{text}\""),
        ExpressionToken::Pattern(text) => format!("`{text}`"),
        ExpressionToken::Null => "`null`".to_owned(),
        ExpressionToken::Bool(value) => format!("`{value}`"),
        ExpressionToken::Sign(sign) => format!("`{}`", sign.text()),
    }
}

impl Term {
    fn size(&self) -> usize {
        match self {
            Self::Pattern(_, pattern) => pattern.size(),
            Self::Not(term) => term.size(),
            Self::Binary(left, _, right) => left.size() + right.size(),
            Self::Variable(_) | Self::Text(_) | Self::Null | Self::Bool(_) => 0,
        }
    }

    fn value<'a>(&'a self, variables: &VariableView<'a>) -> Operand<'a> {
        match self {
            Self::Null => Operand::Null,
            Self::Bool(value) => Operand::Bool(*value),
            Self::Text(text) => Operand::Text(text),
            Self::Pattern(text, pattern) => Operand::Pattern(text, pattern),
            Self::Variable(name) => variables.get(name).map_or(Operand::Null, Operand::Text),
            Self::Not(term) => Operand::Bool(!term.value(variables).is_present()),
            Self::Binary(left, sign, right) => {
                let value = left.value(variables);
                match sign {
                    // As in Ruby, `and` and `or` return an operand, and empty text is true.
                    Sign::And if value.is_true() => right.value(variables),
                    Sign::And => value,
                    Sign::Or if value.is_true() => value,
                    Sign::Or => right.value(variables),
                    Sign::NotEqual => Operand::Bool(!value.equals(&right.value(variables))),
                    Sign::Match => Operand::Bool(value.matches(&right.value(variables)).unwrap_or(false)),
                    Sign::NotMatch => Operand::Bool(!value.matches(&right.value(variables)).unwrap_or(false)),
                    _ => Operand::Bool(value.equals(&right.value(variables))),
                }
            }
        }
    }
}

impl Operand<'_> {
    fn is_true(&self) -> bool {
        !matches!(self, Self::Null | Self::Bool(false))
    }

    fn is_present(&self) -> bool {
        match self {
            Self::Text(text) => !text.trim().is_empty(),
            other => other.is_true(),
        }
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Bool(word), Self::Text(text)) | (Self::Text(text), Self::Bool(word)) => {
                *text == if *word { "true" } else { "false" }
            }
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Pattern(a, _), Self::Pattern(b, _)) => a == b,
            _ => false,
        }
    }

    /// Whether a pattern matches; `None` if the right side is null.
    fn matches(&self, pattern: &Self) -> Option<bool> {
        let text = match self {
            Self::Text(text) | Self::Pattern(text, _) => text,
            Self::Bool(true) => "true",
            Self::Bool(false) => "false",
            Self::Null => "",
        };
        match pattern {
            Self::Null | Self::Bool(false) => None,
            Self::Bool(true) => Some(false),
            Self::Pattern(_, pattern) => Some(pattern.is_match(text)),
            Self::Text(value) => match RegexPattern::between_slashes(value) {
                Some(Ok(pattern)) => Some(pattern.is_match(text)),
                // If the right side is not a pattern, the server searches for the left side in it.
                _ => Some(value.contains(text)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::hash::Index;
    use crate::pipeline::request::GivenVariable;
    use crate::pipeline::variables::SharedVariables;

    fn shared_variables() -> SharedVariables {
        let given = |(key, value): (&str, &str)| GivenVariable {
            key: key.into(),
            value: value.into(),
            masked: key == "SECRET",
            ..Default::default()
        };
        let list = [
            ("V", "one"),
            ("EMPTY", ""),
            ("BLANK", "  "),
            ("RX", "/^o/i"),
            ("WORDS", "one two"),
            ("T", "yes"),
            ("ON", "true"),
        ];
        SharedVariables::new(Index::default(), vec![], list.into_iter().chain([("SECRET", "s")]).map(given).collect())
    }

    fn holds(text: &str) -> bool {
        let shared = shared_variables();
        let view = VariableView::of_pipeline(&shared, &[]);
        Expression::parse(&text.into()).expect(text).holds(&view)
    }

    #[test]
    fn evaluates_as_gitlab_does() {
        for (text, expected) in [
            ("$V", true),
            ("$EMPTY", false),
            ("$BLANK", false),
            ("$NO", false),
            ("$V == 'one'", true),
            ("$V != $EMPTY", true),
            ("$NO == null", true),
            ("$EMPTY == null", false),
            ("$NO == ''", false),
            ("null == $NO", true),
            ("$V =~ /^on/", true),
            ("$V !~ /^on/", false),
            ("$NO =~ /^$|x/", true),
            ("$NO !~ /abc/", true),
            ("$V =~ $RX", true),
            ("$V =~ $NO", false),
            ("$V !~ $NO", true),
            ("$V =~ $WORDS", true),
            ("$T || $NO && $NO", true),
            ("($T || $NO) && $NO", false),
            ("$EMPTY || $T", false),
            ("$NO || $T", true),
            ("$EMPTY && $T", true),
            ("!$NO", true),
            ("!($V == 'one') || $NO", false),
            ("$V=='one'&&$T", true),
            ("\"a\" == 'a'", true),
            ("$ON == true", true),
            ("false != $ON", true),
            ("$NO == false", false),
            ("!($ON == false) && true", true),
            ("false || null", false),
            ("$V == 'one' == true", true),
            ("$V == 'two' == $ON", false),
            ("!$V == 'one'", false),
            ("!'false' || !'0'", false),
            ("!'' && !null", true),
            ("('x' || 'y') == 'x' && 'y' == ('x' && 'y')", true),
        ] {
            assert_eq!(holds(text), expected, "{text}");
        }
    }

    #[test]
    fn refuses_expressions_that_gitlab_refuses() {
        for (text, part) in [
            ("$V = 'one'", "`=`"),
            ("$V == one", "`one`"),
            ("$V == trueish", "`trueish`"),
            ("$V == True", "`True`"),
            ("${V} == 'one'", "braces"),
            ("($V", "not closed"),
            ("$V)", "no opening"),
            ("", "empty"),
            ("$V ==", "ends"),
            ("$V $T", "not allowed"),
            ("$V == 'a' $T", "not allowed"),
            ("$V =~ /a/", "two characters"),
            ("$V =~ //", "two characters"),
            ("$V =~ /a(/", "cannot be used"),
            ("$V == 'one", "not closed"),
            ("== $V", "value is expected"),
            ("$V && || $T", "value is expected"),
        ] {
            let error = Expression::parse(&text.into()).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let long = vec!["$V"; 51].join(" || ");
        assert!(Expression::parse(&long.as_str().into()).expect_err("must be refused").contains("100 parts"));
        assert!(Expression::parse(&"(".repeat(90).as_str().into()).is_err());
    }

    #[test]
    fn explains_with_values_except_masked_ones() {
        let shared = shared_variables();
        let view = VariableView::of_pipeline(&shared, &[]);
        let expression = Expression::parse(&"$V == 'one' && $SECRET && !$NO".into()).expect("must parse");
        assert_eq!(
            expression.explain(&view),
            r#"$V == 'one' && $SECRET && !$NO with $V="one", $SECRET=[MASKED], $NO undefined"#
        );
    }
}
