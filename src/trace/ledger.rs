//! What a log had to leave out, kept beside its spool: whoever appends next, in this process or another, must know.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What is missing from a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// The log has reached its limit, and says so.
    pub cut: bool,
    /// Bytes of output that came after that.
    pub dropped: u64,
    /// Bytes that the disk did not take and of which the log says nothing yet.
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

/// The file of a spool's losses. Read and written only by who holds the spool's lock.
pub struct Ledger {
    /// `None` where the disk had no room even for it: then each process knows only its own losses.
    file: Option<File>,
    latest: Mutex<Losses>,
}

impl Ledger {
    /// Opens or makes the ledger of the spool at `path`. Its block is taken at once: when it is needed, the disk is full.
    pub fn open(path: &Path) -> Self {
        let path = path.with_extension("losses");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let latest = Mutex::default();
        Self { file: file.ok(), latest }
    }

    /// What is missing so far.
    pub fn read(&self) -> Losses {
        let mut bytes = [0; Losses::SIZE];
        match &self.file {
            Some(file) if file.read_exact_at(&mut bytes, 0).is_ok() => Losses::decode(bytes),
            _ => *self.latest.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Notes what is missing now.
    pub fn write(&self, losses: Losses) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = losses;
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.write_all_at(&losses.encode(), 0)) {
            log::warn!("cannot record what is missing from a job's log error={error}");
        }
    }

    /// Takes the ledger's place on the disk.
    pub fn reserve(&self) {
        let made = self.file.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|it| it.len() == 0);
        if made {
            self.write(Losses::default());
        }
    }
}
