//! What makes tests read as given, when, then: a GitLab, repositories, jobs, and the real program.

pub mod git;
pub mod gitlab;
pub mod http;
pub mod job;
pub mod mayfly;
pub mod pki;
