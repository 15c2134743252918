//! What tells whether a file is still the one that was copied, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Inode, kind and permissions, size, and the times of the last changes of content and of anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp([i64; 7]);

/// The clock of file times may stand still for this long (nanoseconds): a change in that time is not seen by them.
const TICK: i64 = 20_000_000;

impl Stamp {
    /// The stamp of a file.
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

    /// Whether a change made right after this stamp was taken, at `now` (since the epoch), might leave it as it is.
    pub fn is_recent(&self, now: std::time::Duration) -> bool {
        let [.., seconds, nanoseconds] = self.0;
        let changed = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - changed < i128::from(TICK)
    }

    /// The stamp as text: seven numbers with blanks between them.
    pub fn to_text(self) -> String {
        self.0.map(|number| number.to_string()).join(" ")
    }

    /// The opposite of [`Stamp::to_text`].
    pub fn of_text(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        let mut stamp = Self::default();
        for place in &mut stamp.0 {
            *place = numbers.next()??;
        }
        Some(stamp)
    }
}
