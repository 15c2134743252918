//! Errors of requests without a response.

use std::fmt;

/// Why a request got no response.
#[derive(Debug)]
pub enum HttpError {
    /// An unusable URL or certificate file.
    Configuration(String),
    /// An error of the network or of TLS, or an invalid response.
    Transport(String),
    /// The server redirects a request with a body, which may contain a secret, to another server.
    Redirected { from: String, to: String },
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(why) | Self::Transport(why) => f.write_str(why),
            Self::Redirected { from, to } => write!(
                f,
                "{from} redirects the request to {to}, and tokens are not sent to another server; write the address to \
                 which it redirects as `url` into the configuration"
            ),
        }
    }
}

impl std::error::Error for HttpError {}
