//! One way to make a request: trust, proxies, redirects, retries.
//!
//! Tokens are never sent to a host they were not meant for, and a body that carries one is never repeated there.

mod address;
mod chain;
mod client;
mod connections;
pub mod conversation;
pub mod diagnose;
mod error;
mod escape;
mod proxy;
mod retry;
pub mod service;
mod socket;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tls;
mod transfer;
mod url;

pub use address::{Address, Trouble};
pub use client::{Client, Method, Request, Response};
pub use error::Error;
pub use escape::escape;
pub use retry::{Backoff, TRIES, http_date, is_retryable};
pub use socket::plain_config;
pub use transfer::{Incoming, Outgoing, Patience, Transfer};
pub use url::{is_same_server, origin, resolve};
