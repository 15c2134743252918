//! Amazon Web Services: instance metadata, credentials and API calls.

pub mod autoscaling;
pub mod caller_identity;
pub mod client;
pub mod credentials;
mod detect;
pub mod ecr;
pub mod endpoint;
mod environment;
pub mod find;
mod group;
mod hooks;
mod inspect;
mod member;
pub mod metadata;
mod profile;
mod protection;
mod raise;
mod region;
mod retry;
pub mod secrets;
mod service_error;
pub mod sign;
pub mod source;
pub mod sts;
pub mod transport;
mod watch;
pub mod xml;
