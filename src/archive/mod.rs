//! zip, gzip and tar+zstd: packing and unpacking that cannot leave the project directory.
//!
//! A job may have prepared the directory. So names are resolved below an open directory and never through a symbolic
//! link out of it, only regular files are opened, and files that change or vanish meanwhile cause a warning. This
//! module knows nothing of jobs, GitLab or the network.

pub mod entry;
pub mod glob;
pub mod root;
pub mod select;
pub mod stream;
pub mod unpack;
mod untracked;

mod gzip;
mod tar;
mod zip;

mod block_queue;
mod compress;
mod feed;
mod frames;
mod pool;
mod walk;
mod warnings;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use compress::Codec;
use entry::ArchiveEntry;
use feed::SmallFile;
use root::ArchiveRoot;
pub use warnings::Warnings;

/// The compression level: the values of `ARTIFACT_COMPRESSION_LEVEL` and `CACHE_COMPRESSION_LEVEL`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompressionLevel {
    /// Stored without compression.
    Fastest,
    Fast,
    #[default]
    Default,
    Slow,
    Slowest,
}

impl CompressionLevel {
    /// Parses the name of a level; `None` for an unknown name.
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

    fn deflate(self) -> Codec {
        match self {
            Self::Fastest => Codec::Store,
            Self::Fast => Codec::Deflate(2),
            Self::Default => Codec::Deflate(6),
            Self::Slow => Codec::Deflate(8),
            Self::Slowest => Codec::Deflate(9),
        }
    }

    fn zstd(self) -> i32 {
        match self {
            Self::Fastest | Self::Fast => 1,
            Self::Default => 3,
            Self::Slow => 8,
            Self::Slowest => 12,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArchiveFormat {
    /// zip with deflate.
    Zip,
    /// zip with zstd.
    ZipZstd,
    /// One gzip member per file.
    Gzip,
    /// tar compressed with zstd.
    TarZstd,
}

/// Writes an archive of the entries to `sink`. Unreadable entries are skipped with a warning; only a write error of
/// `sink` is an error.
pub fn write<W: Write>(
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    format: ArchiveFormat,
    level: CompressionLevel,
    sink: W,
) -> io::Result<Written> {
    match format {
        ArchiveFormat::Zip => zip::write_zip(root, entries, level.deflate(), sink),
        ArchiveFormat::ZipZstd => zip::write_zip(root, entries, Codec::Zstd(level), sink),
        ArchiveFormat::Gzip => gzip::write_gzip(root, entries, level, sink),
        ArchiveFormat::TarZstd => tar::write_tar_zstd(root, entries, level, sink),
    }
}

/// The result of writing an archive.
#[derive(Debug, Default)]
pub struct Written {
    /// The number of entries.
    pub entries: u64,
    /// The number of bytes before compression.
    pub bytes: u64,
    /// Skipped or inexact entries, one line each.
    pub warnings: Warnings,
}

impl Written {
    fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }

    fn add_small(&mut self, path: &Path, small: &SmallFile) {
        self.add(small.size as u64);
        if small.changed {
            self.warn(path, "changed while it was packed");
        }
    }

    fn warn(&mut self, path: &Path, what: impl Display) {
        self.warnings.push(format!("{}: {what}", path.display()));
    }

    fn warn_skipped(&mut self, path: &Path, why: &io::Error) {
        self.warn(path, format_args!("skipped: {why}"));
    }
}

#[cfg(test)]
mod testing;
