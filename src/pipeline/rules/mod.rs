//! Decides which jobs are in a pipeline: `rules`, `only` and `except`, `workflow:rules`, `include:rules`.

pub mod clause;
pub mod expression;
pub mod files;
pub mod lexer;
mod path_pattern;
pub mod policy;
pub mod rule;
