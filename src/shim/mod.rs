//! The small process that holds one running step and its log, and outlives the agent.
//!
//! The agent starts itself again as `mayfly shim`, one process a step. The shim is the subreaper of everything the step
//! starts, pumps its output through masking into the spool, keeps the deadline and the order of killing, and leaves the
//! outcome in a file. It knows the job's secrets, never the runner's token, and nothing in it depends on the agent.

mod child;
pub mod confine;
mod descendants;
mod groups;
mod running;
pub mod spec;
mod supervise;

pub use running::{Event, Identity, Outcome, PASSED_VARIABLES, Running, started_marker, sweep};
pub use supervise::main;
