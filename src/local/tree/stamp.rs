//! Detects whether a file changed, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Inode, type and permissions, size, and the times of the last change of content and of metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp([i64; 7]);

/// File time stamps may have a resolution of this many nanoseconds; a change within that time does not alter them.
const TICK: i64 = 20_000_000;

impl Stamp {
    pub fn of(metadata: &Metadata) -> Self {
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

    /// Whether a change directly after this stamp was taken, at `now` (since the epoch), might leave the stamp equal.
    pub fn is_recent(&self, now: std::time::Duration) -> bool {
        let [.., seconds, nanoseconds] = self.0;
        let changed = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - changed < i128::from(TICK)
    }

    /// Seven numbers, separated by spaces.
    pub fn to_text(self) -> String {
        self.0.map(|number| number.to_string()).join(" ")
    }

    /// Parses the output of [`Stamp::to_text`].
    pub fn of_text(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        let mut stamp = Self::default();
        for place in &mut stamp.0 {
            *place = numbers.next()??;
        }
        Some(stamp)
    }
}
