//! One job, from payload to final state.

pub mod artifacts;
pub mod cache;
pub mod containers;
pub mod context;
pub mod control;
pub mod engine;
mod expand;
pub mod failure;
mod files;
mod flags;
mod inputs;
mod lenient;
mod limits;
pub mod payload;
pub mod place;
mod salvage;
mod saying;
pub mod script;
mod service_log;
mod settings;
mod sources;
mod stages;
mod steps;
#[cfg(test)]
mod testing;
mod transfer;
pub mod variables;
pub mod work;
