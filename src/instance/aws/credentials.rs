//! AWS credentials.

use jiff::Timestamp;

use crate::token::Token;

/// Credentials that expire within this time are not used for long tasks.
const MARGIN_SECONDS: i64 = 5 * 60;

/// An access key, and when it expires.
#[derive(Clone, Debug)]
pub struct AwsCredentials {
    pub access_key: String,
    pub secret_key: Token,
    /// Set for temporary credentials.
    pub session_token: Option<Token>,
    /// `None` if they do not expire.
    pub expires: Option<Timestamp>,
}

impl AwsCredentials {
    /// Credentials from a configuration, which do not expire.
    pub fn fixed(access_key: &str, secret_key: &str) -> Self {
        let secret_key = Token::new(secret_key);
        Self { access_key: access_key.to_owned(), secret_key, session_token: None, expires: None }
    }

    /// Whether the credentials are valid for some more minutes.
    pub fn are_fresh(&self, now: Timestamp) -> bool {
        self.are_valid_for(now, MARGIN_SECONDS)
    }

    /// Whether the credentials are valid for this time.
    pub fn are_valid_for(&self, now: Timestamp, seconds: i64) -> bool {
        self.expires.is_none_or(|end| end.as_second() - now.as_second() > seconds)
    }
}
