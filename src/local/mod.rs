//! A pipeline on a developer's machine, for `mayfly exec`: clean copies of the checkout, a schedule of jobs, and the
//! agent's own engine.
//!
//! Jobs run as the developer. Nothing here writes into the checkout or its repository.

pub mod artifacts;
pub mod attempt;
pub mod checkout;
mod children;
pub mod color;
pub mod containers;
mod coverage;
mod dotenv;
pub mod facts;
mod failed_shell;
pub mod guard;
pub mod log;
mod payload;
mod record;
pub mod report;
pub mod results;
pub mod runner;
mod schedule;
pub mod screen;
pub mod sources;
pub mod state;
pub mod tree;
mod verdict;
pub mod wishes;
