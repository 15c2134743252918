//! What makes tests read as given, when, then: a GitLab, repositories, jobs, and the real program.

pub mod cloud;
#[allow(dead_code, reason = "tests of the executor use the rest")]
pub mod docker;
pub mod git;
pub mod gitlab;
pub mod http;
pub mod job;
pub mod mayfly;
pub mod moto;
pub mod pki;
pub mod registry;
pub mod s3;

use std::sync::atomic::{AtomicI64, Ordering};

/// A number that nothing else on this machine has: processes are found by it, also with other test runs beside this one.
pub fn unique_number() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    i64::from(std::process::id()) * 10_000 + NEXT.fetch_add(1, Ordering::SeqCst)
}
