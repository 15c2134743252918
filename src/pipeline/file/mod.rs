//! Reads one file of the configuration: its header, its inputs, and the interpolation of its text.

pub mod declaration;
pub mod document;
pub mod fill;
pub mod functions;
pub mod inputs;
pub mod interpolate;
