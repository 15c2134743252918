//! Amazon Web Services, as far as an instance needs them: what it is told of itself, who may sign a request, and calls.

pub mod autoscaling;
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
pub mod secrets;
pub mod sign;
pub mod source;
pub mod sts;
pub mod transport;
mod watch;
pub mod xml;
