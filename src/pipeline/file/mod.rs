//! One file of the configuration: header, inputs, blocks in its text.

pub mod document;
pub mod functions;
pub mod inputs;
pub mod interpolate;
