//! Splits `rules:if` into tokens.

use std::sync::Arc;

/// The number of tokens in an expression, as on GitLab.
const MAX_TOKENS: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpressionToken {
    /// `$NAME`
    Variable(Arc<str>),
    /// Text in quotes.
    Text(Arc<str>),
    /// `/…/flags`, with its slashes.
    Pattern(Arc<str>),
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An operator or a parenthesis.
    Sign(Sign),
}

/// Operators and parentheses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// `(`
    Open,
    /// `)`
    Close,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Match,
    /// `!~`
    NotMatch,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `!`
    Not,
}

const SIGNS: [(&str, Sign); 9] = [
    ("(", Sign::Open),
    (")", Sign::Close),
    ("==", Sign::Equal),
    ("!=", Sign::NotEqual),
    ("=~", Sign::Match),
    ("!~", Sign::NotMatch),
    ("&&", Sign::And),
    ("||", Sign::Or),
    ("!", Sign::Not),
];

impl Sign {
    /// The operator as written.
    pub fn text(self) -> &'static str {
        SIGNS.iter().find(|(_, sign)| *sign == self).map_or("", |(text, _)| text)
    }
}

/// Splits an expression. The error names the part that is not a token.
pub fn tokens(text: &str) -> Result<Vec<ExpressionToken>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if tokens.len() == MAX_TOKENS {
            return Err(format!("it has more than {MAX_TOKENS} parts"));
        }
        let (token, after) = token(rest)?;
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

fn token(text: &str) -> Result<(ExpressionToken, &str), String> {
    for (sign_text, sign) in SIGNS {
        if let Some(after) = text.strip_prefix(sign_text) {
            return Ok((ExpressionToken::Sign(sign), after));
        }
    }
    if let Some(after) = text.strip_prefix('$') {
        let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
        if end > 0 {
            return Ok((ExpressionToken::Variable(after[..end].into()), &after[end..]));
        }
        if after.starts_with('{') {
            return Err(format!("`{}`: write variables as $NAME, without braces", shown(text)));
        }
    }
    for quote in ['"', '\''] {
        if let Some(after) = text.strip_prefix(quote) {
            let end = after.find(quote).ok_or_else(|| format!("`{}`: the quote is not closed", shown(text)))?;
            return Ok((ExpressionToken::Text(after[..end].into()), &after[end + 1..]));
        }
    }
    if text.starts_with('/') {
        return pattern(text);
    }
    if let Some(after) = text.strip_prefix("null") {
        return Ok((ExpressionToken::Null, after));
    }
    for (word, value) in [("true", true), ("false", false)] {
        let after =
            text.strip_prefix(word).filter(|after| !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'));
        if let Some(after) = after {
            return Ok((ExpressionToken::Bool(value), after));
        }
    }
    if text.starts_with('=') {
        return Err(format!("`{}`: `=` is not an operator; write == or =~", shown(text)));
    }
    Err(format!("`{}` is not a variable, text in quotes, a pattern or an operator", shown(text)))
}

/// A pattern ends at the first slash without a backslash before it, and has at least two characters.
fn pattern(text: &str) -> Result<(ExpressionToken, &str), String> {
    let mut previous = '/';
    for (length, (at, c)) in text.char_indices().skip(1).enumerate() {
        if c == '/' && previous != '\\' && (length >= 2 || length == 0) {
            if length == 0 {
                break;
            }
            let flags = &text[at + 1..];
            let end = flags.find(|c: char| !"ismU".contains(c)).unwrap_or(flags.len());
            return Ok((ExpressionToken::Pattern(text[..at + 1 + end].into()), &flags[end..]));
        }
        previous = c;
    }
    Err(format!("`{}`: a pattern must be between slashes and have at least two characters", shown(text)))
}

/// The beginning of a long text, for messages.
fn shown(text: &str) -> String {
    let end = text.char_indices().nth(30).map_or(text.len(), |(at, _)| at);
    let word = &text[..end];
    word.split_once(' ').map_or(word, |(word, _)| word).to_owned()
}
