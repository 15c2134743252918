//! Where a service is that stands on this machine or beside it, and why it may not answer.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::tls::TlsFiles;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`, over TLS where there are files for it.
    Tcp(String, Option<TlsFiles>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(place, _) => write!(f, "tcp://{place}"),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Trouble {
    /// An address or a certificate file that cannot be used.
    Configuration(String),
    /// The system's word: no such socket, no permission, nobody listens, cut off.
    Io(io::Error),
    /// Nothing came for too long.
    TimedOut,
    /// What came is no HTTP, or no TLS.
    Nonsense(String),
}
