//! HTTP requests: TLS trust, proxies, redirects, retries.
//!
//! This module never sends a token to a server other than the one that the token belongs to, neither in a header nor in
//! a body.

mod address;
pub mod chain;
mod client;
mod connections;
pub mod diagnose;
mod error;
mod escape;
mod forward;
mod handshake;
pub mod proxy;
mod proxy_health;
mod retry;
pub mod service;
mod socket;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tls;
mod transfer;
pub mod upgraded;
mod url;
mod verifier;

pub use address::{Address, ConnectionError};
pub use client::{Client, Method, Request, Response};
pub use diagnose::redirect_to_https;
pub use error::HttpError;
pub use escape::escape;
pub use proxy::Route;
pub use retry::{Failure, RetryBudget, http_date, is_retryable};
pub use socket::{agent, connect_through, plain_config, relay_of_process};
pub use transfer::{Incoming, Outgoing, Timeouts, Transfer};
pub use url::{is_same_server, origin, resolve};
