//! One job, from payload to final state.

pub mod artifacts;
pub mod cache;
pub mod failure;
pub mod sources;
