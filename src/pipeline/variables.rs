//! Variables by level, and the server's expansion of them.

/// All variables of a pipeline.
#[derive(Debug, Default)]
pub struct Scope {}
