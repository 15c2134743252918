//! One job, from payload to final state.

pub mod expand;
pub mod failure;
pub mod flags;
pub mod payload;
pub mod script;
pub mod sources;
pub mod variables;
