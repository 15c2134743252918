//! Metrics of this process, and their HTTP server.
//!
//! Metrics are global, as the log is: code that does something counts it directly. This layer handles only numbers,
//! their text format and connections; it never calls other layers, and no code waits for it.

pub mod listener;
pub mod machine;
pub mod metrics;
mod process;
pub mod text;

pub use process::write as write_process;
