//! Metrics of this process, and their HTTP server.
//!
//! Metrics are global, like the log: code counts an event where it happens. This layer handles only numbers, their text
//! format and connections; it never calls other layers, and no code waits for it.

pub mod address;
pub mod listener;
pub mod machine;
pub mod metrics;
mod process;
pub mod text;

pub use process::write as write_process;
