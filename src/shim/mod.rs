//! The shim: a small process that supervises one running step and its log, and outlives the agent.
//!
//! The agent starts its own program as `mayfly shim`, one process per step. The shim is the subreaper of the step's
//! processes. It copies their output, masked, to the spool, enforces the deadline, kills the processes that remain, and
//! writes the result to a file. It knows the job's secrets but never the runner's token, and does not depend on the
//! agent.

mod child;
pub mod confine;
mod descendants;
mod groups;
mod running;
pub mod spec;
mod streams;
mod supervise;

pub use running::{
    PASSED_VARIABLES, RunningShim, STARTED, ShimEvent, ShimIdentity, StepOutcome, kill_step, started_marker, sweep,
};
pub use supervise::main;
