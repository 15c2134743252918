//! What can go wrong before there is an answer.

use std::fmt;

/// Why a request got no answer.
#[derive(Debug)]
pub enum Error {
    /// A URL that cannot be used, or a certificate file that cannot be read.
    Configuration(String),
    /// The network, TLS, or the server's way of speaking.
    Transport(String),
    /// The server sends a call with a secret in its body to another host.
    Redirected { from: String, to: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(why) | Self::Transport(why) => f.write_str(why),
            Self::Redirected { from, to } => write!(
                f,
                "{from} redirects the call to {to}; a token is not sent to another host: put the right `url` into the \
                 configuration"
            ),
        }
    }
}

impl std::error::Error for Error {}
