//! The right to sign.

use jiff::Timestamp;

use crate::token::Token;

/// Credentials this close to their end are not handed out for work that takes its time.
const MARGIN_SECONDS: i64 = 5 * 60;

/// A key pair, and how long it counts.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Public.
    pub access_key: String,
    /// Secret.
    pub secret_key: Token,
    /// Belongs to keys that were lent for a time.
    pub session_token: Option<Token>,
    /// When they end, if they do.
    pub expires: Option<Timestamp>,
}

impl Credentials {
    /// Keys that stand in a configuration.
    pub fn fixed(access_key: &str, secret_key: &str) -> Self {
        let secret_key = Token::new(secret_key);
        Self { access_key: access_key.to_owned(), secret_key, session_token: None, expires: None }
    }

    /// Whether they count for some minutes more.
    pub fn are_fresh(&self, now: Timestamp) -> bool {
        self.last(now, MARGIN_SECONDS)
    }

    /// Whether they count for that long.
    pub fn last(&self, now: Timestamp, seconds: i64) -> bool {
        self.expires.is_none_or(|end| end.as_second() - now.as_second() > seconds)
    }
}
