//! Jobs in containers, through the Engine API: no docker command line, no helper image.

pub mod choice;
pub mod credentials;
pub mod engine;
pub mod policy;
pub mod reference;
