//! A pipeline on a developer's machine, for `mayfly exec`: clean copies of the checkout, and the agent's own engine.
//!
//! Jobs run as the developer. Nothing here writes into the checkout or its repository.

pub mod checkout;
pub mod color;
pub mod log;
pub mod state;
pub mod terminal;
pub mod tree;
