//! Tests of whole plans: the shared cases with a real repository, single rules in memory, and properties of any input.

mod corpus;
mod includes;
mod keywords;
mod memory;
mod planning;
mod problems;
mod properties;
mod refused;
mod repository;
mod rules;
mod variables;
