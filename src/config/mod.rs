//! `config.toml` as types; defaults in one place.

pub mod duration;
