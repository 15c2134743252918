//! `mayfly manager`: polls GitLab for a fleet, and controls the size of the group of instances that run the jobs.
//!
//! The manager polls GitLab with the runner's token, hands each job to the agent on an instance, and sets the size of
//! the group. It must never run a job, transfer a job's log or artifacts, or connect to an instance. No running job
//! depends on it, so it may crash or be replaced at any time.
//!
//! Each `[[runners]]` of a fleet is a [`pool`]. A pool has a broker, which holds jobs and hands them to agents, and a
//! scaler, which accesses the broker through the trait [`workload::Workload`].

mod api;
pub mod broker;
pub mod engine;
pub mod findings;
mod held;
pub mod pool;
mod process;
mod proof;
pub mod scaling;
pub mod server;
pub mod settings;
pub mod simulation;
pub mod status;
pub mod store;
pub mod workload;

pub use process::{ManagerOptions, run, validate};
