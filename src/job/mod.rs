//! One job, from payload to final state.

pub mod failure;
pub mod sources;
