//! One job, from crate::payload to final state.

pub mod artifacts;
pub mod cache;
pub mod containers;
pub mod context;
pub mod control;
pub mod engine;
mod files;
mod flags;
mod inputs;
mod limits;
mod saying;
pub mod script;
mod service_log;
mod settings;
pub mod sources;
mod stages;
mod steps;
#[cfg(test)]
mod testing;
mod transfer;
pub mod work;
