//! The job's log as a file: appended to by the agent and by shims, read by the uploader.
//!
//! What stands in it is what the server gets. Each piece is appended whole or not at all: under a lock, with what a
//! full disk cut short taken back. A log over its limit is cut there with a notice; the agent's last lines still fit.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Who appends, and so what happens at the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Dropped beyond the limit.
    Output,
    /// The agent's own lines on how the job went: few, and never dropped.
    Result,
}

/// The file, opened for appending.
pub struct Spool {
    file: File,
    /// Bytes after which output is dropped.
    limit: u64,
    lost: Mutex<u64>,
}

impl Spool {
    /// Opens or makes the file, mode 0600.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { file, limit, lost: Mutex::new(0) })
    }

    /// Appends whole pieces of log. What the disk has no room for is counted, and told as soon as there is room
    /// again: a full disk must not end the job that may be cleaning it up. Errors: the file cannot be locked or read.
    pub fn append(&self, text: &[u8], claim: Claim) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.lock()?;
        let appended = self.append_locked(text, claim, &mut lost);
        self.file.unlock()?;
        appended
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn append_locked(&self, text: &[u8], claim: Claim, lost: &mut u64) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        if *lost > 0 {
            let notice =
                format!("\n\x1b[0;33mWARNING: {lost} bytes of the log were lost: no room on the disk.\x1b[0;m\n");
            if !self.write_whole(notice.as_bytes(), size)? {
                *lost += text.len() as u64;
                return Ok(());
            }
            *lost = 0;
        }
        let size = self.file.metadata()?.len();
        let left = self.limit.saturating_sub(size);
        if claim == Claim::Result || text.len() as u64 <= left {
            return self.write_or_count(text, size, lost);
        }
        // A file over its limit has its notice already.
        if size > self.limit {
            return Ok(());
        }
        let mut cut = text[..usize::try_from(left).unwrap_or(text.len())].to_vec();
        while std::str::from_utf8(&cut).is_err() && cut.pop().is_some() {}
        let notice = format!(
            "\n\x1b[33;1mJob's log exceeded limit of {} bytes.\nJob execution will continue but no more output will be \
             collected.\x1b[0;m\n",
            self.limit
        );
        cut.extend_from_slice(notice.as_bytes());
        self.write_or_count(&cut, size, lost)
    }

    fn write_or_count(&self, text: &[u8], size: u64, lost: &mut u64) -> io::Result<()> {
        if !self.write_whole(text, size)? {
            *lost += text.len() as u64;
        }
        Ok(())
    }

    /// Writes all of `text`, or takes back what got written and says false.
    fn write_whole(&self, text: &[u8], size: u64) -> io::Result<bool> {
        if (&self.file).write_all(text).is_ok() {
            return Ok(true);
        }
        self.file.set_len(size)?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_the_limit_once_and_keeps_results() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let spool = Spool::open(&path, 10).expect("opened");
        spool.append("12345678ü".as_bytes(), Claim::Output).expect("appended");
        spool.append(b"more", Claim::Output).expect("appended");
        // Another process appends to the same file.
        Spool::open(&path, 10).expect("opened").append(b"even more", Claim::Output).expect("appended");
        spool.append(b"Job succeeded\n", Claim::Result).expect("appended");
        let text = std::fs::read_to_string(&path).expect("text");
        assert!(text.starts_with("12345678ü\n\x1b[33;1mJob's log exceeded limit of 10 bytes.\n"), "{text}");
        assert_eq!(text.matches("exceeded").count(), 1);
        assert!(!text.contains("more\n") && text.ends_with("collected.\x1b[0;m\nJob succeeded\n"), "{text}");
    }

    #[test]
    fn a_limit_inside_a_character_keeps_the_text_valid() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        Spool::open(&path, 9).expect("opened").append("12345678üü".as_bytes(), Claim::Output).expect("appended");
        assert!(std::fs::read_to_string(&path).expect("valid UTF-8").starts_with("12345678\n"));
    }

    #[test]
    fn two_writers_never_mix_their_pieces() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        std::thread::scope(|scope| {
            for letter in ["a", "b"] {
                let path = &path;
                scope.spawn(move || {
                    let spool = Spool::open(path, u64::MAX).expect("opened");
                    for _ in 0..200 {
                        let line = format!("{}\n", letter.repeat(100));
                        spool.append(line.as_bytes(), Claim::Output).expect("appended");
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&path).expect("text");
        assert_eq!(text.lines().count(), 400);
        assert!(text.lines().all(|line| line.len() == 100 && (!line.contains('a') || !line.contains('b'))));
    }
}
