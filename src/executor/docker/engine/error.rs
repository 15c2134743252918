//! Errors of requests to an engine, with messages that say what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Revision;
use crate::decode;
use crate::http::{Address, ConnectionError};

/// The longest part of a message that is shown, in characters.
const MAX_MESSAGE: usize = 500;

/// Why a request to the engine failed.
#[derive(Debug)]
pub enum DockerError {
    /// The socket or the host does not exist.
    Missing { address: String },
    /// The agent's user may not use the socket.
    NotPermitted { address: String },
    /// The engine does not listen.
    NotRunning { address: String },
    /// The engine did not respond in time.
    TimedOut {
        address: String,
        /// The request.
        what: String,
    },
    /// The connection broke.
    ConnectionLost {
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
    /// The engine responded with an error.
    ErrorResponse {
        status: u16,
        /// The engine's message.
        message: String,
    },
    /// The response is invalid: another server, or a broken engine.
    InvalidResponse { address: String, what: String, why: String },
    /// The engine speaks TLS, and the agent's configuration does not.
    NeedsTls { address: String },
    /// The engine's certificate is not trusted.
    UntrustedEngine {
        address: String,
        /// The error of the verification.
        why: String,
        /// The configured file of certificate authorities.
        ca_file: Option<PathBuf>,
    },
    /// The engine does not accept the client's certificate.
    UntrustedClient {
        address: String,
        /// The engine's alert.
        why: String,
        /// The configured file of authorities, in whose directory the client's certificate belongs.
        ca_file: Option<PathBuf>,
    },
    /// An unusable address or certificate file.
    Configuration(String),
}

/// The body of an error response.
#[derive(Deserialize)]
struct ErrorBody {
    message: String,
}

impl DockerError {
    pub(super) fn from_connection(address: &Address, what: &str, error: ConnectionError) -> Self {
        let ca_file = match address {
            Address::Tcp(_, files) => files.as_ref().and_then(|files| files.ca_file.clone()),
            Address::Unix(_) => None,
        };
        let (address, what) = (address.to_string(), what.to_owned());
        match error {
            ConnectionError::Configuration(why) => Self::Configuration(why),
            ConnectionError::TimedOut => Self::TimedOut { address, what },
            ConnectionError::InvalidResponse(why) => Self::InvalidResponse { address, what, why },
            ConnectionError::Io(error) => match (tls_error(&error), error.kind()) {
                (Some(why @ rustls::Error::InvalidCertificate(_)), _) => {
                    Self::UntrustedEngine { address, why: why.to_string(), ca_file }
                }
                (Some(why @ rustls::Error::AlertReceived(_)), _) => {
                    Self::UntrustedClient { address, why: why.to_string(), ca_file }
                }
                (_, io::ErrorKind::NotFound) => Self::Missing { address },
                (_, io::ErrorKind::PermissionDenied) => Self::NotPermitted { address },
                (_, io::ErrorKind::ConnectionRefused) => Self::NotRunning { address },
                (_, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Self::TimedOut { address, what },
                _ => Self::ConnectionLost { address, what, why: error.to_string() },
            },
        }
    }

    pub(super) fn error_response(address: &Address, what: &str, status: u16, body: &str) -> Self {
        if (300..400).contains(&status) {
            return Self::invalid_response(address, what, "it redirects, which an engine never does");
        }
        let message = match decode::json::<ErrorBody>(body.as_bytes()) {
            Ok(body) => body.message,
            Err(_) if body.trim().is_empty() => format!("status {status} for {what}"),
            Err(_) => body.trim().chars().take(MAX_MESSAGE).collect(),
        };
        Self::ErrorResponse { status, message }
    }

    pub(super) fn invalid_response(address: &Address, what: &str, why: &str) -> Self {
        Self::InvalidResponse { address: address.to_string(), what: what.to_owned(), why: why.to_owned() }
    }

    /// The status of an error response.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::ErrorResponse { status, .. } => Some(*status),
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
        matches!(self, Self::ErrorResponse { message, .. } if message.contains("no space left on device"))
    }

    /// Whether the engine itself is unreachable, so that a later attempt may succeed.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::NotRunning { .. } | Self::TimedOut { .. } | Self::ConnectionLost { .. }
        )
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The setting for a directory of certificates if none is configured.
const CERTIFICATE_SETTING: &str =
    "the directory `tls_cert_path` below [runners.docker] (beside DOCKER_HOST: DOCKER_CERT_PATH)";

/// The directory for certificates that is configured, or the setting for it.
fn certificate_directory(ca_file: Option<&Path>) -> String {
    let directory = ca_file.and_then(Path::parent);
    directory.map_or_else(|| CERTIFICATE_SETTING.to_owned(), |directory| format!("{}", directory.display()))
}

impl DockerError {
    /// What failed, and why.
    fn problem(&self) -> String {
        match self {
            Self::Missing { address } => format!("there is no container engine at {address}"),
            Self::NotPermitted { address } => {
                format!("the container engine at {address} refuses access (permission denied)")
            }
            Self::NotRunning { address } => format!("the container engine at {address} does not run"),
            Self::TimedOut { address, what } => format!("the container engine at {address} does not answer ({what})"),
            Self::ConnectionLost { address, what, why } => {
                format!("the connection to the container engine at {address} broke ({what}: {why})")
            }
            Self::TooOld { address, has, needs } => {
                format!("the container engine at {address} has API version {has}, but jobs need {needs}")
            }
            Self::ErrorResponse { message, .. } if self.is_disk_full() => {
                format!("{}: the disk of the container engine is full", message.trim())
            }
            Self::ErrorResponse { message, .. } => message.clone(),
            Self::InvalidResponse { address, what, why } => {
                format!("invalid response from {address}, which should be a container engine ({what}): {why}")
            }
            Self::NeedsTls { address } => format!("the container engine at {address} speaks TLS"),
            Self::UntrustedEngine { address, why, .. } => {
                format!("the certificate of the container engine at {address} is not trusted ({why})")
            }
            Self::UntrustedClient { address, why, .. } => {
                format!("the container engine at {address} does not accept the client's certificate ({why})")
            }
            Self::Configuration(why) => why.clone(),
        }
    }

    /// What the operator can do, if the problem does not say it.
    fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Missing { .. } => {
                "install or start it (systemctl start docker), or set `host` below [runners.docker] \
                                     or DOCKER_HOST to the address of another one"
                    .to_owned()
            }
            Self::NotPermitted { .. } => "run mayfly as root, or add its user to the group `docker`".to_owned(),
            Self::NotRunning { .. } => "start it (systemctl start docker)".to_owned(),
            Self::TimedOut { .. } => "look at its log (journalctl -u docker), or restart it".to_owned(),
            Self::ConnectionLost { .. } => "it may have stopped; look at its log (journalctl -u docker)".to_owned(),
            Self::TooOld { .. } => "update the engine".to_owned(),
            Self::ErrorResponse { .. } if self.is_disk_full() => {
                "free some of it (docker system prune), or enlarge it".to_owned()
            }
            Self::NeedsTls { .. } => "set `tls_verify = true` and `tls_cert_path` below [runners.docker] (beside \
                                      DOCKER_HOST: DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH)"
                .to_owned(),
            Self::UntrustedEngine { ca_file, .. } => {
                let directory = certificate_directory(ca_file.as_deref());
                format!("put the certificate of its authority into `ca.pem` in {directory}")
            }
            Self::UntrustedClient { ca_file, .. } => {
                let directory = certificate_directory(ca_file.as_deref());
                format!("put one that it accepts into `cert.pem` and its key into `key.pem` in {directory}")
            }
            Self::ErrorResponse { .. } | Self::InvalidResponse { .. } | Self::Configuration(_) => return None,
        })
    }
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem())?;
        self.remedy().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl std::error::Error for DockerError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tls::TlsFiles;

    #[test]
    fn a_certificate_error_names_the_configured_directory_or_every_setting_for_it() {
        let failure = |ca_file: Option<&str>, why: rustls::Error| {
            let files = TlsFiles { ca_file: ca_file.map(PathBuf::from), ..TlsFiles::default() };
            let error = ConnectionError::Io(io::Error::other(why));
            DockerError::from_connection(&Address::Tcp("h:1".to_owned(), Some(files)), "_ping", error).to_string()
        };
        let untrusted = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let alert = || rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let text = failure(Some("/certificates/ca.pem"), untrusted());
        assert!(text.ends_with("into `ca.pem` in /certificates"), "{text}");
        let text = failure(Some("/certificates/ca.pem"), alert());
        assert!(text.ends_with("into `key.pem` in /certificates"), "{text}");
        let text = failure(None, untrusted());
        assert!(text.contains("`tls_cert_path` below [runners.docker]") && text.contains("DOCKER_CERT_PATH"), "{text}");
    }
}
