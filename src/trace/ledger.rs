//! Records how much output is missing from a log, in a file beside the spool. The next process that appends to the
//! spool needs these numbers.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use crate::sync;

/// The missing parts of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// The log has reached its limit and contains a notice of that.
    pub cut: bool,
    /// The number of output bytes after the limit.
    pub dropped: u64,
    /// The number of bytes that did not fit on the disk and that the log does not mention yet.
    pub lost: u64,
}

impl Losses {
    const SIZE: usize = 17;

    fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = u8::from(self.cut);
        bytes[1..9].copy_from_slice(&self.dropped.to_le_bytes());
        bytes[9..].copy_from_slice(&self.lost.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; Self::SIZE]) -> Self {
        let number = |from: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[from..from + 8]);
            u64::from_le_bytes(word)
        };
        Self { cut: bytes[0] == 1, dropped: number(1), lost: number(9) }
    }
}

/// The losses file of a spool. Only the holder of the spool's lock may read or write it.
pub struct Ledger {
    /// `None` if the file could not be created on a full disk: then each process knows only its own losses.
    file: Option<File>,
    latest: Mutex<Losses>,
}

impl Ledger {
    /// Opens or creates the ledger of the spool at `path`; [`Ledger::reserve`] must follow.
    pub fn open(path: &Path) -> Self {
        let path = path.with_extension("losses");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let latest = Mutex::default();
        Self { file: file.ok(), latest }
    }

    pub fn read(&self) -> Losses {
        let mut bytes = [0; Losses::SIZE];
        match &self.file {
            Some(file) if file.read_exact_at(&mut bytes, 0).is_ok() => Losses::decode(bytes),
            _ => *sync::lock(&self.latest),
        }
    }

    pub fn write(&self, losses: Losses) {
        *sync::lock(&self.latest) = losses;
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.write_all_at(&losses.encode(), 0)) {
            log::warn!("cannot record the lost part of a job's log error={error}");
        }
    }

    /// Allocates the disk block of a new ledger: when the ledger has to record a loss, the disk may be full.
    pub fn reserve(&self) {
        let is_new =
            self.file.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|metadata| metadata.len() == 0);
        if is_new {
            self.write(Losses::default());
        }
    }
}
