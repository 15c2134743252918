//! The checksum of a growing log. Each byte is read once, even if it is sent repeatedly.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::coordinator::TraceSummary;

/// The CRC-32 of the beginning of a file.
#[derive(Default)]
pub struct Checksum {
    hasher: crc32fast::Hasher,
    covered: u64,
}

impl Checksum {
    /// Adds the new part of `bytes`, which begin at offset `start`. If there is a gap before them, [`Self::summary`]
    /// reads it later.
    pub fn take(&mut self, start: u64, bytes: &[u8]) {
        let known = self.covered.checked_sub(start).and_then(|known| usize::try_from(known).ok());
        if let Some(fresh) = known.and_then(|known| bytes.get(known..)) {
            self.hasher.update(fresh);
            self.covered += fresh.len() as u64;
        }
    }

    /// Size and checksum of the first `size` bytes of `file`; `buffer` is used for reading.
    pub fn summary(&mut self, file: &File, size: u64, buffer: &mut [u8]) -> io::Result<TraceSummary> {
        while self.covered < size {
            let length = usize::try_from(size - self.covered).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..length], self.covered)?;
            self.hasher.update(&buffer[..length]);
            self.covered += length as u64;
        }
        Ok(TraceSummary { size: self.covered, crc32: self.hasher.clone().finalize() })
    }
}
