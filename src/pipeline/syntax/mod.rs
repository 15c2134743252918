//! YAML as GitLab reads it: turns text into a tree of typed values, each with its file and line.
//!
//! GitLab parses with Ruby, which follows YAML 1.1: `yes` is true, `010` is 8, the last of two equal keys wins. Trees
//! share their parts, so aliases, `extends` and `default` copy pointers and not values.

mod budget;
mod libyaml;
mod node;
mod parse;
mod print;
mod scalar;
mod size;

pub use budget::{Budget, Size};
pub use node::{Mapping, MappingEntry, Node, Origin, YamlValue};
pub use parse::{MAX_DEPTH, SyntaxError, parse};
pub use print::print;
pub use size::{TreeExtent, extent, written_size};

/// The largest configuration file, in bytes, as on GitLab.
pub const MAX_FILE_SIZE: usize = 2 << 20;
