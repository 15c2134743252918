//! The job's log as a file: appended to by the agent and by shims, read by the uploader.
//!
//! What stands in it is what the server gets. Each piece is appended whole or not at all: under a lock, with what a
//! full disk cut short taken back. A log over its limit is cut there with a notice; the agent's last lines still fit.
//!
//! Room for the agent's last lines is allocated behind the end of the file, so that a job that fills the disk still says
//! how it ended, and that lines are missing.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::ledger::{Ledger, Losses};

/// Bytes allocated behind the end of the file that output never takes: for the agent's own lines on a full disk.
const RESERVE: u64 = 16 << 10;

/// Bytes allocated at once for output, so that few appends have to ask the file system.
const ALLOCATION: u64 = 256 << 10;

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
    ledger: Ledger,
    /// The file's lock holds between processes only.
    turn: Mutex<()>,
}

impl Spool {
    /// Opens or makes the file, mode 0600.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let spool = Self { file, limit, ledger: Ledger::open(path), turn: Mutex::default() };
        spool.locked(|size| {
            spool.ledger.reserve();
            spool.has_room(0, size);
            Ok(())
        })?;
        Ok(spool)
    }

    /// Appends whole pieces of log. What the disk has no room for is counted, and told as soon as there is room
    /// again: a full disk must not end the job that may be cleaning it up. Errors: the file cannot be locked or read.
    pub fn append(&self, text: &[u8], claim: Claim) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.locked(|size| self.append_locked(text, claim, size))
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Bytes of output that the limit kept out.
    pub fn dropped(&self) -> u64 {
        self.locked(|_| Ok(self.ledger.read().dropped)).unwrap_or(0)
    }

    /// Does `work`, which gets the size of the file, while nobody else appends.
    fn locked<T>(&self, work: impl FnOnce(u64) -> io::Result<T>) -> io::Result<T> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.lock()?;
        let worked = self.file.metadata().and_then(|metadata| work(metadata.len()));
        self.file.unlock()?;
        worked
    }

    fn append_locked(&self, text: &[u8], claim: Claim, size: u64) -> io::Result<()> {
        let before = self.ledger.read();
        let mut after = before;
        let room = usize::try_from(self.limit.saturating_sub(size)).unwrap_or(usize::MAX);
        let fits = claim == Claim::Result || (text.len() <= room && !before.cut);
        let kept = if fits { text.len() } else { boundary(text, if before.cut { 0 } else { room }) };
        after.dropped += (text.len() - kept) as u64;
        if fits && before.lost == 0 {
            if !self.write_whole(text, claim, size)? {
                self.ledger.write(Losses { lost: text.len() as u64, ..before });
            }
            return Ok(());
        }
        let mut piece = Vec::with_capacity(kept + 512);
        if before.lost > 0 && (fits || !before.cut) {
            piece.extend_from_slice(lost_notice(before.lost).as_bytes());
            after.lost = 0;
        }
        piece.extend_from_slice(&text[..kept]);
        if !fits && !before.cut {
            piece.extend_from_slice(limit_notice(self.limit).as_bytes());
            after.cut = true;
        }
        // First the ledger: whoever dies in between must not lead to a second notice.
        self.ledger.write(after);
        if !self.write_whole(&piece, claim, size)? {
            self.ledger.write(Losses { lost: before.lost + text.len() as u64, ..before });
        }
        Ok(())
    }

    /// Writes all of `text`, or takes back what got written and says false.
    fn write_whole(&self, text: &[u8], claim: Claim, size: u64) -> io::Result<bool> {
        let has_room = self.has_room(text.len() as u64, size);
        if (has_room || claim == Claim::Result) && (&self.file).write_all(text).is_ok() {
            return Ok(true);
        }
        // Cutting the file would give up what is allocated behind its end as well.
        if self.size() != size {
            self.file.set_len(size)?;
        }
        Ok(false)
    }

    /// Whether `length` bytes of output fit behind `size` and leave [`RESERVE`] bytes allocated for the agent's lines.
    fn has_room(&self, length: u64, size: u64) -> bool {
        let wanted = length.saturating_add(RESERVE);
        let allocated = self.file.metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512));
        if allocated.saturating_sub(size) >= wanted {
            return true;
        }
        match allocate(&self.file, size, wanted.saturating_add(ALLOCATION))
            .or_else(|_| allocate(&self.file, size, wanted))
        {
            Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => false,
            // The file system allocates nothing ahead: writing tells.
            Ok(()) | Err(_) => true,
        }
    }
}

/// See [`Spool::has_room`].
fn allocate(file: &File, offset: u64, length: u64) -> nix::Result<()> {
    let cast = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, cast(offset), cast(length))
}

/// Size of the part of a spool that nobody will take back: not in the middle of an append.
pub fn settled_size(spool: &File) -> io::Result<u64> {
    spool.lock_shared()?;
    let metadata = spool.metadata();
    spool.unlock()?;
    Ok(metadata?.len())
}

/// The end of the last whole character within the first `room` bytes of `text`, which is UTF-8.
fn boundary(text: &[u8], room: usize) -> usize {
    (0..=room.min(text.len())).rev().find(|at| text.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80)).unwrap_or(0)
}

fn lost_notice(lost: u64) -> String {
    format!("\n\x1b[0;33mWARNING: {lost} bytes of the log were lost: no room on the disk.\x1b[0;m\n")
}

fn limit_notice(limit: u64) -> String {
    format!(
        "\n\x1b[33;1mJob's log exceeded limit of {limit} bytes.\nJob execution will continue but no more output will be \
         collected.\x1b[0;m\n"
    )
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

    #[test]
    fn the_limit_is_told_though_a_result_passed_it_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let (agent, shim) = (Spool::open(&path, 10).expect("opened"), Spool::open(&path, 10).expect("opened"));
        agent.append(b"a warning that is long\n", Claim::Result).expect("appended");
        shim.append(b"output\n", Claim::Output).expect("appended");
        agent.append(b"output\n", Claim::Output).expect("appended");
        agent.append(b"Job succeeded\n", Claim::Result).expect("appended");
        let text = std::fs::read_to_string(&path).expect("text");
        assert_eq!(text.matches("exceeded limit of 10 bytes").count(), 1, "{text}");
        assert!(text.ends_with("Job succeeded\n"));
        assert_eq!((agent.dropped(), shim.dropped()), (14, 14), "each knows what both dropped");
    }

    /// Runs the test `name` again in a process of its own, where `inside` is done: limits are a matter of processes.
    fn in_own_process(name: &str, inside: impl FnOnce()) {
        if std::env::var_os("MAYFLY_TEST_INSIDE").is_some() {
            return inside();
        }
        let mut again = std::process::Command::new(std::env::current_exe().expect("this program"));
        again.args(["--exact", name]).env("MAYFLY_TEST_INSIDE", "1");
        let output = again.output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{name} is not this test's name");
    }

    #[test]
    fn a_full_disk_takes_nothing_by_halves_and_the_loss_is_told() {
        use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
        use nix::sys::signal::Signal;
        let name = "trace::spool::tests::a_full_disk_takes_nothing_by_halves_and_the_loss_is_told";
        in_own_process(name, || {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("trace");
            let (agent, shim) = (Spool::open(&path, 1000).expect("opened"), Spool::open(&path, 1000).expect("opened"));
            crate::sys::ignore(Signal::SIGXFSZ).expect("ignored");
            setrlimit(Resource::RLIMIT_FSIZE, 100, RLIM_INFINITY).expect("limited");
            shim.append(b"before\n", Claim::Output).expect("appended");
            shim.append(&[b'x'; 200], Claim::Output).expect("survived");
            shim.append(&[b'y'; 200], Claim::Output).expect("survived");
            assert_eq!(std::fs::read(&path).expect("read"), b"before\n");
            setrlimit(Resource::RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY).expect("unlimited");
            agent.append(b"after\n", Claim::Output).expect("appended");
            shim.append(b"end\n", Claim::Output).expect("appended");
            let text = std::fs::read_to_string(&path).expect("text");
            let notice = "\n\x1b[0;33mWARNING: 400 bytes of the log were lost: no room on the disk.\x1b[0;m\n";
            assert_eq!(text, format!("before\n{notice}after\nend\n"));
        });
    }
}
