//! Detects whether a file changed, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Inode, type and permissions, size, and the times of the last change of content and of metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp([i64; 7]);

/// The coarsest resolution of file times, in nanoseconds. A second change within that time may leave them equal.
const TIME_RESOLUTION: i64 = 20_000_000;

impl Stamp {
    /// The size of a stamp in a manifest, in bytes.
    pub const SIZE: usize = 56;

    /// The stamp of a file with this metadata.
    pub fn of_metadata(metadata: &Metadata) -> Self {
        Self([
            metadata.ino().cast_signed(),
            i64::from(metadata.mode()),
            metadata.size().cast_signed(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ])
    }

    /// A stamp for content that is not in a file.
    pub fn of_content(content: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, content);
        let mut stamp = Self::default();
        for (number, part) in stamp.0.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
            *number = i64::from_le_bytes(part.try_into().unwrap_or_default());
        }
        stamp
    }

    /// Whether the file could still change at `now` (since the epoch) without a change of its stamp.
    pub fn is_recent(&self, now: std::time::Duration) -> bool {
        let [.., seconds, nanoseconds] = self.0;
        let changed = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - changed < i128::from(TIME_RESOLUTION)
    }

    /// Seven numbers, the lowest byte first.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (place, number) in bytes.chunks_exact_mut(8).zip(self.0) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`Stamp::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let mut stamp = Self::default();
        for (number, place) in stamp.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = i64::from_le_bytes(place.try_into().unwrap_or_default());
        }
        stamp
    }
}
