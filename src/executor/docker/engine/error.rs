//! What goes wrong between us and an engine, in words that say what to do.

use std::fmt;
use std::io;

use serde::Deserialize;

use super::Revision;
use crate::decode;
use crate::http::{Address, Trouble};

/// Why the engine did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// There is no socket at the place, or no such host.
    Missing {
        /// Address of the engine.
        place: String,
    },
    /// The socket is not for us.
    NotPermitted {
        /// See above.
        place: String,
    },
    /// Nobody listens.
    NotRunning {
        /// See above.
        place: String,
    },
    /// Nothing comes.
    Silent {
        /// See above.
        place: String,
        /// What was asked.
        what: String,
    },
    /// The connection broke.
    Cut {
        /// See above.
        place: String,
        /// See above.
        what: String,
        /// The system's word.
        why: String,
    },
    /// It speaks an API that lacks what jobs need.
    TooOld {
        /// See above.
        place: String,
        /// What it speaks.
        has: Revision,
        /// What it must speak.
        needs: Revision,
    },
    /// It answered with an error.
    Answer {
        /// HTTP status.
        status: u16,
        /// Its explanation.
        message: String,
    },
    /// Something answers that is no engine, or that is broken.
    Nonsense {
        /// See above.
        place: String,
        /// See above.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// An address or a certificate file that cannot be used.
    Configuration(String),
}

#[derive(Deserialize)]
struct Explanation {
    message: String,
}

impl Error {
    pub(super) fn of_trouble(address: &Address, what: &str, trouble: Trouble) -> Self {
        let (place, what) = (address.to_string(), what.to_owned());
        match trouble {
            Trouble::Configuration(why) => Self::Configuration(why),
            Trouble::TimedOut => Self::Silent { place, what },
            Trouble::Nonsense(why) => Self::Nonsense { place, what, why },
            Trouble::Io(error) if let Some(advice) = of_certificates(&place, &error) => Self::Configuration(advice),
            Trouble::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => Self::Missing { place },
                io::ErrorKind::PermissionDenied => Self::NotPermitted { place },
                io::ErrorKind::ConnectionRefused => Self::NotRunning { place },
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Silent { place, what },
                _ => Self::Cut { place, what, why: error.to_string() },
            },
        }
    }

    pub(super) fn answer(address: &Address, what: &str, status: u16, body: &str) -> Self {
        if (300..400).contains(&status) {
            return Self::nonsense(address, what, "it redirects, which no engine does and nobody follows");
        }
        let message = match decode::json::<Explanation>(body.as_bytes()) {
            Ok(explanation) => explanation.message,
            Err(_) if body.trim().is_empty() => format!("status {status} for {what}"),
            Err(_) => body.trim().chars().take(500).collect(),
        };
        Self::Answer { status, message }
    }

    pub(super) fn nonsense(address: &Address, what: &str, why: &str) -> Self {
        Self::Nonsense { place: address.to_string(), what: what.to_owned(), why: why.to_owned() }
    }

    /// The status of an answer that is an error.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// What was asked for does not exist (any more).
    pub fn is_missing(&self) -> bool {
        self.status() == Some(404)
    }

    /// The engine's disk is full.
    pub fn is_for_lack_of_room(&self) -> bool {
        matches!(self, Self::Answer { message, .. } if message.contains("no space left on device"))
    }

    /// The engine is away, not the thing that was asked for: a later try may do.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::NotRunning { .. } | Self::Silent { .. } | Self::Cut { .. })
    }
}

/// What is wrong between our certificates and the engine's, if that is what is wrong.
fn of_certificates(place: &str, error: &io::Error) -> Option<String> {
    let why = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match why {
        rustls::Error::InvalidCertificate(_) => Some(format!(
            "the certificate of the container engine at {place} is not trusted ({why}): put the certificate of its \
             authority into `ca.pem` in the directory `tls_cert_path` below [runners.docker]"
        )),
        rustls::Error::AlertReceived(_) => Some(format!(
            "the container engine at {place} does not accept the client's certificate ({why}): put one that it accepts \
             into `cert.pem` and its key into `key.pem` in the directory `tls_cert_path` below [runners.docker]"
        )),
        _ => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { place } => write!(
                f,
                "there is no container engine at {place}: install or start it (systemctl start docker), or set `host` \
                 below [runners.docker]"
            ),
            Self::NotPermitted { place } => write!(
                f,
                "the container engine at {place} does not let this user in: run mayfly as root, or add its user to the \
                 group `docker`"
            ),
            Self::NotRunning { place } => {
                write!(f, "the container engine at {place} does not run: start it (systemctl start docker)")
            }
            Self::Silent { place, what } => write!(
                f,
                "the container engine at {place} does not answer ({what}): look at its log (journalctl -u docker), or \
                 restart it"
            ),
            Self::Cut { place, what, why } => write!(
                f,
                "the connection to the container engine at {place} broke ({what}: {why}): did it stop? Look at its log \
                 (journalctl -u docker)"
            ),
            Self::TooOld { place, has, needs } => write!(
                f,
                "the container engine at {place} speaks version {has} of its API and jobs need {needs}: update it"
            ),
            Self::Answer { message, .. } if self.is_for_lack_of_room() => write!(
                f,
                "{}: the disk of the container engine is full; free some of it (docker system prune), or enlarge it",
                message.trim()
            ),
            Self::Answer { message, .. } => f.write_str(message),
            Self::Nonsense { place, what, why } => {
                write!(f, "what answers at {place} is no container engine, or a broken one ({what}): {why}")
            }
            Self::Configuration(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}
