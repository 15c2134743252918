//! Runs a pipeline on a developer's machine, for `mayfly exec`: clean copies of the checkout, a schedule of jobs, and
//! the agent's job engine.
//!
//! Jobs run as the developer's user. This module never writes into the checkout or its repository.

pub mod artifacts;
pub mod attempt;
pub mod checkout;
pub mod color;
mod conclusion;
pub mod containers;
mod coverage;
mod dotenv;
mod downstream;
mod engine;
pub mod facts;
mod failed_shell;
mod fit;
mod git_dir;
pub mod guard;
mod killed;
pub mod log;
pub mod mapped;
pub mod objects;
pub mod options;
pub mod payload;
pub mod project;
mod record;
pub mod report;
pub mod results;
pub mod runner;
mod schedule;
pub mod screen;
pub mod sources;
pub mod state;
pub mod table;
pub mod tree;
