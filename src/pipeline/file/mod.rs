//! Reads one file of the configuration: its header, its inputs, and the interpolation of its text.

pub mod document;
pub mod functions;
pub mod inputs;
pub mod interpolate;
pub mod quoted;
