//! One job, from payload to final state.

pub mod context;
pub mod control;
pub mod engine;
mod expand;
pub mod artifacts;
pub mod cache;
pub mod expand;
pub mod failure;
mod flags;
pub mod payload;
pub mod place;
mod script;
mod sources;
mod stages;
mod steps;
mod variables;
pub mod work;
pub mod script;
pub mod sources;
#[cfg(test)]
mod testing;
mod transfer;
pub mod variables;
