//! Amazon Web Services, as far as an instance needs them: what it is told of itself, who may sign a request, and calls.

pub mod client;
pub mod credentials;
#[allow(dead_code, reason = "until jobs run in containers")]
pub mod ecr;
pub mod endpoint;
pub mod metadata;
mod profile;
mod region;
pub mod sign;
pub mod sts;
pub mod wire;
pub mod xml;
