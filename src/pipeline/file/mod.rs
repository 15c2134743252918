//! Reads the parts of one configuration file: [`document`] splits it into header and content, [`declaration`] reads the
//! inputs that the header declares, and [`inputs`] computes their values. [`interpolate`] finds the blocks `$[[ … ]]` of
//! the content, [`functions`] has the functions in blocks, and [`fill`] inserts the values into the parsed content.
//! [`crate::pipeline::include`] puts these steps together.

pub mod declaration;
pub mod document;
pub mod fill;
pub mod functions;
pub mod inputs;
pub mod interpolate;
