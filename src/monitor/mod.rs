//! What this process counts of its work, and how it is shown to whoever monitors it.
//!
//! The numbers are process-wide, as the log is: whoever does something notes it, and needs to be handed nothing for that.
//! This layer knows numbers, their text and connections; it never asks anybody for anything, and nothing waits for it.

pub mod listener;
pub mod machine;
pub mod metrics;
mod process;
pub mod text;

pub use process::write as write_process;
