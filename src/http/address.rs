//! Addresses of local services such as a container engine, and errors of connections to them.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::tls::TlsFiles;

/// The address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// The authority `host:port`, with TLS if there are certificate files.
    Tcp(String, Option<TlsFiles>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(authority, _) => write!(f, "tcp://{authority}"),
        }
    }
}

/// Why a request got no response.
#[derive(Debug)]
pub enum ConnectionError {
    /// An unusable address or certificate file.
    Configuration(String),
    /// An error of the connection.
    Io(io::Error),
    /// A timeout.
    TimedOut,
    /// The response is not HTTP, or the TLS handshake failed.
    InvalidResponse(String),
}
