//! Jobs in containers, through the Engine API: no docker command line, no helper image.

pub mod attendant;
pub mod choice;
pub mod create;
pub mod credentials;
pub mod engine;
pub mod images;
pub mod policy;
pub mod reference;
pub mod services;
