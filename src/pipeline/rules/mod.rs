//! Reads and evaluates the conditions of `rules`, `workflow:rules`, `include:rules`, `only` and `except`.
//!
//! A [`rule::Rule`] is a [`clause::Clause`] (its condition: `if`, `changes` and `exists`) with the values that it
//! overrides. [`lexer`] and [`expression`] parse and evaluate `if`; [`files`] and [`path_pattern`] match paths for
//! `changes` and `exists`; [`policy`] has `only` and `except`. [`crate::pipeline::decide`] applies them to jobs.

pub mod clause;
pub mod expression;
pub mod files;
pub mod lexer;
mod path_pattern;
pub mod policy;
pub mod rule;
