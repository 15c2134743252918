//! The checksum of a log that grows: each byte is read once, whatever is sent again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::coordinator::TraceSummary;

/// CRC-32 over the beginning of a file.
#[derive(Default)]
pub struct Checksum {
    hasher: crc32fast::Hasher,
    covered: u64,
}

impl Checksum {
    /// Takes in what is new of `bytes`, which stand at `start`; a gap before them is left to [`Self::summary`].
    pub fn take(&mut self, start: u64, bytes: &[u8]) {
        let known = self.covered.checked_sub(start).and_then(|known| usize::try_from(known).ok());
        if let Some(fresh) = known.and_then(|known| bytes.get(known..)) {
            self.hasher.update(fresh);
            self.covered += fresh.len() as u64;
        }
    }

    /// Size and checksum of the first `size` bytes of `file`; `buffer` is room to read into.
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
