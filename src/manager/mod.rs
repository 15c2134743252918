//! `mayfly manager`: a small broker between GitLab, which is the queue, and a cloud's group of instances, which is the
//! engine of scale.
//!
//! The manager polls GitLab with the runner's token, hands each job to the agent on an instance, and sets the size of the
//! group. It never runs a job, never sees a byte of a job's log or artifacts, never connects to an instance, and no
//! running job depends on it: it may crash or be replaced at any time.
//!
//! One `[[runners]]` of a fleet is a [`pool`]. A pool has a broker, which holds and hands over jobs, and a scaler, which
//! sees the broker as a [`workload`].

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

pub use process::{Options, run};
