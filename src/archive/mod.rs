//! zip, gzip and tar+zstd: packing and unpacking that cannot leave the project directory.
//!
//! Everything here works on ground that a job may have prepared: names are resolved beneath an open directory and
//! never through a symbolic link out of it, only regular files are opened, and what changes or vanishes on the way is
//! a warning. Nothing here knows of jobs, GitLab or the network.

pub mod glob;
pub mod root;
pub mod select;
pub mod unpack;
pub mod zip;

mod deflate;
mod feed;
mod pool;

use std::fmt::Display;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How hard to compress, in the words of `ARTIFACT_COMPRESSION_LEVEL` and `CACHE_COMPRESSION_LEVEL`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Not at all.
    Fastest,
    /// A little.
    Fast,
    /// As most tools do.
    #[default]
    Default,
    /// More.
    Slow,
    /// As far as it goes.
    Slowest,
}

impl Level {
    /// Reads the name of a level; `None` for a word that is none.
    pub fn parse(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "fastest" => Some(Self::Fastest),
            "fast" => Some(Self::Fast),
            "" | "default" => Some(Self::Default),
            "slow" => Some(Self::Slow),
            "slowest" => Some(Self::Slowest),
            _ => None,
        }
    }

    /// The level for deflate; `None` for storing.
    fn deflate(self) -> Option<u32> {
        match self {
            Self::Fastest => None,
            Self::Fast => Some(2),
            Self::Default => Some(6),
            Self::Slow => Some(8),
            Self::Slowest => Some(9),
        }
    }
}

/// What went into an archive.
#[derive(Debug, Default)]
pub struct Written {
    /// How many entries.
    pub entries: u64,
    /// How many bytes before compression.
    pub bytes: u64,
    /// What was left out or is not quite what it was, one line each.
    pub warnings: Vec<String>,
}

impl Written {
    fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }

    fn warn(&mut self, path: &Path, what: impl Display) {
        self.warnings.push(format!("{}: {what}", path.display()));
    }

    fn leave_out(&mut self, path: &Path, why: &io::Error) {
        self.warn(path, format_args!("left out: {why}"));
    }
}

#[cfg(test)]
mod testing;
