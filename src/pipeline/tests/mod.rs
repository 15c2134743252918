//! Tests of whole plans: the shared cases with a real repository, and properties of any input.

mod corpus;
mod entries;
mod memory;
mod properties;
mod repository;
mod rules;
mod views;
