//! Errors of requests to an engine, with messages that say what to do.

use std::fmt;
use std::io;

use serde::Deserialize;

use super::Revision;
use crate::decode;
use crate::http::{Address, ConnectionError};

/// Why a request to the engine failed.
#[derive(Debug)]
pub enum DockerError {
    /// The socket or the host does not exist.
    Missing { address: String },
    /// The agent's user may not use the socket.
    NotPermitted { address: String },
    /// The engine does not listen.
    NotRunning { address: String },
    /// The engine does not respond in time.
    Silent {
        address: String,
        /// The request.
        what: String,
    },
    /// The connection broke.
    Cut {
        address: String,
        what: String,
        /// The system's error.
        why: String,
    },
    /// The engine's API version is too old.
    TooOld {
        address: String,
        /// The engine's version.
        has: Revision,
        /// The required version.
        needs: Revision,
    },
    /// The engine returned an error.
    Answer {
        status: u16,
        /// The engine's message.
        message: String,
    },
    /// The response is invalid: another server, or a broken engine.
    Nonsense { address: String, what: String, why: String },
    /// An unusable address or certificate file.
    Configuration(String),
}

#[derive(Deserialize)]
struct Explanation {
    message: String,
}

impl DockerError {
    pub(super) fn from_connection(address: &Address, what: &str, error: ConnectionError) -> Self {
        let (address, what) = (address.to_string(), what.to_owned());
        match error {
            ConnectionError::Configuration(why) => Self::Configuration(why),
            ConnectionError::TimedOut => Self::Silent { address, what },
            ConnectionError::Nonsense(why) => Self::Nonsense { address, what, why },
            ConnectionError::Io(error) if let Some(advice) = of_certificates(&address, &error) => {
                Self::Configuration(advice)
            }
            ConnectionError::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => Self::Missing { address },
                io::ErrorKind::PermissionDenied => Self::NotPermitted { address },
                io::ErrorKind::ConnectionRefused => Self::NotRunning { address },
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Silent { address, what },
                _ => Self::Cut { address, what, why: error.to_string() },
            },
        }
    }

    pub(super) fn answer(address: &Address, what: &str, status: u16, body: &str) -> Self {
        if (300..400).contains(&status) {
            return Self::unreadable_answer(address, what, "it redirects, which an engine never does");
        }
        let message = match decode::json::<Explanation>(body.as_bytes()) {
            Ok(explanation) => explanation.message,
            Err(_) if body.trim().is_empty() => format!("status {status} for {what}"),
            Err(_) => body.trim().chars().take(500).collect(),
        };
        Self::Answer { status, message }
    }

    pub(super) fn unreadable_answer(address: &Address, what: &str, why: &str) -> Self {
        Self::Nonsense { address: address.to_string(), what: what.to_owned(), why: why.to_owned() }
    }

    /// The status of an error response.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the object does not exist.
    pub fn is_missing(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether the request conflicts with the engine's state: the name is taken, or the object is in use.
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }

    /// Whether the engine's disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Answer { message, .. } if message.contains("no space left on device"))
    }

    /// Whether the engine itself is unreachable, so that a later attempt may succeed.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::NotRunning { .. } | Self::Silent { .. } | Self::Cut { .. })
    }
}

/// The problem with a certificate, if that caused the error.
fn of_certificates(address: &str, error: &io::Error) -> Option<String> {
    let why = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match why {
        rustls::Error::InvalidCertificate(_) => Some(format!(
            "the certificate of the container engine at {address} is not trusted ({why}): put the certificate of its \
             authority into `ca.pem` in the directory `tls_cert_path` below [runners.docker]"
        )),
        rustls::Error::AlertReceived(_) => Some(format!(
            "the container engine at {address} does not accept the client's certificate ({why}): put one that it accepts \
             into `cert.pem` and its key into `key.pem` in the directory `tls_cert_path` below [runners.docker]"
        )),
        _ => None,
    }
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { address } => write!(
                f,
                "there is no container engine at {address}: install or start it (systemctl start docker), or set `host` \
                 below [runners.docker]"
            ),
            Self::NotPermitted { address } => write!(
                f,
                "the container engine at {address} refuses access (permission denied): run mayfly as root, or add its \
                 user to the group `docker`"
            ),
            Self::NotRunning { address } => {
                write!(f, "the container engine at {address} does not run; start it (systemctl start docker)")
            }
            Self::Silent { address, what } => write!(
                f,
                "the container engine at {address} does not answer ({what}): look at its log (journalctl -u docker), or \
                 restart it"
            ),
            Self::Cut { address, what, why } => write!(
                f,
                "the connection to the container engine at {address} broke ({what}: {why}): it may have stopped; look at \
                 its log (journalctl -u docker)"
            ),
            Self::TooOld { address, has, needs } => write!(
                f,
                "the container engine at {address} has API version {has}, but jobs need {needs}; update the engine"
            ),
            Self::Answer { message, .. } if self.is_disk_full() => write!(
                f,
                "{}: the disk of the container engine is full; free some of it (docker system prune), or enlarge it",
                message.trim()
            ),
            Self::Answer { message, .. } => f.write_str(message),
            Self::Nonsense { address, what, why } => {
                write!(f, "invalid response from {address}, which should be a container engine ({what}): {why}")
            }
            Self::Configuration(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for DockerError {}
