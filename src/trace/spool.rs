//! The job's log as a file: the agent and shims append to it, the uploader reads it.
//!
//! The spool contains exactly the bytes that GitLab gets. Each append is atomic: it holds a lock, and removes a part
//! that a full disk cut short. A log over its limit is cut there with a notice; the agent's last lines still fit.
//!
//! Space for the agent's last lines is allocated after the end of the file. So the log of a job that fills the disk
//! still contains the result of the job and a notice about missing lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::colours::{BOLD_YELLOW, RESET, YELLOW};
use super::ledger::{Ledger, Losses};
use crate::sync;

/// Bytes allocated after the end of the file, reserved for the agent's own lines on a full disk.
const RESERVE: u64 = 16 << 10;

/// Bytes allocated at a time for output, so that few appends need a system call for it.
const ALLOCATION: u64 = 256 << 10;

/// The kind of text that is appended; decides the behaviour at the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// Output of a script; dropped after the limit.
    Output,
    /// The agent's lines about the result of the job: few, never dropped.
    Result,
}

/// The spool file, opened for appending.
pub struct Spool {
    file: File,
    /// The size after which output is dropped.
    limit: u64,
    ledger: Ledger,
    /// The lock of the file works only between processes; this one works between threads.
    thread_lock: Mutex<()>,
}

impl Spool {
    /// Opens or creates the file with mode 0600.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let spool = Self { file, limit, ledger: Ledger::open(path), thread_lock: Mutex::default() };
        spool.with_lock(|size| {
            spool.ledger.reserve();
            spool.has_room(0, size);
            Ok(())
        })?;
        Ok(spool)
    }

    /// Appends text atomically. Counts text that does not fit on the disk, and reports its size in the log as soon as
    /// there is space: a full disk must not end a job that may be freeing space. Fails if the file cannot be locked or
    /// read.
    pub fn append(&self, text: &[u8], kind: TextKind) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.with_lock(|size| self.append_locked(text, kind, size))
    }

    /// The number of bytes in the file.
    pub fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The number of output bytes that the limit dropped.
    pub fn dropped(&self) -> u64 {
        self.with_lock(|_| Ok(self.ledger.read().dropped)).unwrap_or(0)
    }

    /// Runs `work` with the size of the file while no other process or thread appends.
    fn with_lock<T>(&self, work: impl FnOnce(u64) -> io::Result<T>) -> io::Result<T> {
        let _guard = sync::lock(&self.thread_lock);
        self.file.lock()?;
        let result = self.file.metadata().and_then(|metadata| work(metadata.len()));
        self.file.unlock()?;
        result
    }

    fn append_locked(&self, text: &[u8], kind: TextKind, size: u64) -> io::Result<()> {
        let before = self.ledger.read();
        let mut after = before;
        let room = usize::try_from(self.limit.saturating_sub(size)).unwrap_or(usize::MAX);
        let fits = kind == TextKind::Result || (text.len() <= room && !before.cut);
        let kept = if fits { text.len() } else { boundary(text, if before.cut { 0 } else { room }) };
        after.dropped += (text.len() - kept) as u64;
        if fits && before.lost == 0 {
            if !self.write_whole(text, kind, size)? {
                self.ledger.write(Losses { lost: text.len() as u64, ..before });
            }
            return Ok(());
        }
        let mut appended = Vec::with_capacity(kept + 512);
        if before.lost > 0 && (fits || !before.cut) {
            appended.extend_from_slice(lost_notice(before.lost).as_bytes());
            after.lost = 0;
        }
        appended.extend_from_slice(&text[..kept]);
        if !fits && !before.cut {
            appended.extend_from_slice(limit_notice(self.limit).as_bytes());
            after.cut = true;
        }
        // The ledger is written first: if the process dies in between, the notice must not appear twice in the log.
        self.ledger.write(after);
        if !self.write_whole(&appended, kind, size)? {
            self.ledger.write(Losses { lost: before.lost + text.len() as u64, ..before });
        }
        Ok(())
    }

    /// Writes all of `text`. If that fails, removes the written part and returns false.
    fn write_whole(&self, text: &[u8], kind: TextKind, size: u64) -> io::Result<bool> {
        let has_room = self.has_room(text.len() as u64, size);
        if (has_room || kind == TextKind::Result) && (&self.file).write_all(text).is_ok() {
            return Ok(true);
        }
        // Truncating the file would also release the space allocated after its end.
        if self.size() != size {
            self.file.set_len(size)?;
        }
        Ok(false)
    }

    /// Whether `length` bytes of output fit after `size` and leave [`RESERVE`] allocated bytes for the agent's lines.
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
            // The file system does not support allocation: the write will show whether there is space.
            Ok(()) | Err(_) => true,
        }
    }
}

/// See [`Spool::has_room`].
fn allocate(file: &File, offset: u64, length: u64) -> nix::Result<()> {
    let cast = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, cast(offset), cast(length))
}

/// The size of the part of a spool that will not be removed again: waits for the end of a running append.
pub fn settled_size(spool: &File) -> io::Result<u64> {
    spool.lock_shared()?;
    let metadata = spool.metadata();
    spool.unlock()?;
    Ok(metadata?.len())
}

/// The end of the last complete character within the first `room` bytes of `text`, which is UTF-8.
fn boundary(text: &[u8], room: usize) -> usize {
    (0..=room.min(text.len())).rev().find(|at| text.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80)).unwrap_or(0)
}

fn lost_notice(lost: u64) -> String {
    format!("\n{YELLOW}WARNING: {lost} bytes of the log were lost because the disk was full.{RESET}\n")
}

fn limit_notice(limit: u64) -> String {
    format!(
        "\n{BOLD_YELLOW}Job's log exceeded limit of {limit} bytes.\nJob execution will continue but no more output \
         will be collected.{RESET}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_once_at_the_limit_and_keeps_the_result() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let spool = Spool::open(&path, 10).expect("open the file");
        spool.append("12345678ü".as_bytes(), TextKind::Output).expect("write all bytes");
        spool.append(b"more", TextKind::Output).expect("write all bytes");
        // Another process would open the file in the same way.
        Spool::open(&path, 10).expect("open the file").append(b"even more", TextKind::Output).expect("write all bytes");
        spool.append(b"Job succeeded\n", TextKind::Result).expect("write all bytes");
        let text = std::fs::read_to_string(&path).expect("read the file");
        assert!(text.starts_with("12345678ü\n\x1b[33;1mJob's log exceeded limit of 10 bytes.\n"), "{text}");
        assert_eq!(text.matches("exceeded").count(), 1);
        assert!(!text.contains("more\n") && text.ends_with("collected.\x1b[0;m\nJob succeeded\n"), "{text}");
    }

    #[test]
    fn does_not_cut_inside_a_character() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        Spool::open(&path, 9)
            .expect("open the file")
            .append("12345678üü".as_bytes(), TextKind::Output)
            .expect("write all bytes");
        assert!(std::fs::read_to_string(&path).expect("valid UTF-8").starts_with("12345678\n"));
    }

    #[test]
    fn appends_of_two_writers_are_atomic() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        std::thread::scope(|scope| {
            for letter in ["a", "b"] {
                let path = &path;
                scope.spawn(move || {
                    let spool = Spool::open(path, u64::MAX).expect("open the file");
                    for _ in 0..200 {
                        let line = format!("{}\n", letter.repeat(100));
                        spool.append(line.as_bytes(), TextKind::Output).expect("write all bytes");
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&path).expect("read the file");
        assert_eq!(text.lines().count(), 400);
        assert!(text.lines().all(|line| line.len() == 100 && (!line.contains('a') || !line.contains('b'))));
    }

    #[test]
    fn the_notice_is_written_even_if_a_result_exceeded_the_limit_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let (agent, shim) =
            (Spool::open(&path, 10).expect("open the file"), Spool::open(&path, 10).expect("open the file"));
        agent.append(b"a warning that is long\n", TextKind::Result).expect("write all bytes");
        shim.append(b"output\n", TextKind::Output).expect("write all bytes");
        agent.append(b"output\n", TextKind::Output).expect("write all bytes");
        agent.append(b"Job succeeded\n", TextKind::Result).expect("write all bytes");
        let text = std::fs::read_to_string(&path).expect("read the file");
        assert_eq!(text.matches("exceeded limit of 10 bytes").count(), 1, "{text}");
        assert!(text.ends_with("Job succeeded\n"));
        assert_eq!((agent.dropped(), shim.dropped()), (14, 14), "each knows what both dropped");
    }

    /// Runs the test `name` in a separate process, in which `inside` runs: resource limits apply to a process.
    fn in_own_process(name: &str, inside: impl FnOnce()) {
        if std::env::var_os("MAYFLY_TEST_INSIDE").is_some() {
            return inside();
        }
        let mut again = std::process::Command::new(std::env::current_exe().expect("this program"));
        again.args(["--exact", name]).env("MAYFLY_TEST_INSIDE", "1");
        let output = again.output().expect("run the program");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{name} is not this test's name");
    }

    #[test]
    fn on_a_full_disk_appends_are_atomic_and_the_loss_is_reported() {
        use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
        use nix::sys::signal::Signal;
        let name = "trace::spool::tests::on_a_full_disk_appends_are_atomic_and_the_loss_is_reported";
        in_own_process(name, || {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("trace");
            let (agent, shim) =
                (Spool::open(&path, 1000).expect("open the file"), Spool::open(&path, 1000).expect("open the file"));
            crate::sys::ignore(Signal::SIGXFSZ).expect("ignore the signal");
            setrlimit(Resource::RLIMIT_FSIZE, 100, RLIM_INFINITY).expect("set the resource limit");
            shim.append(b"before\n", TextKind::Output).expect("write all bytes");
            shim.append(&[b'x'; 200], TextKind::Output).expect("write all bytes");
            shim.append(&[b'y'; 200], TextKind::Output).expect("write all bytes");
            assert_eq!(std::fs::read(&path).expect("read the file"), b"before\n");
            setrlimit(Resource::RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY).expect("set the resource limit");
            agent.append(b"after\n", TextKind::Output).expect("write all bytes");
            shim.append(b"end\n", TextKind::Output).expect("write all bytes");
            let text = std::fs::read_to_string(&path).expect("read the file");
            let notice = "\n\x1b[0;33mWARNING: 400 bytes of the log were lost because the disk was full.\x1b[0;m\n";
            assert_eq!(text, format!("before\n{notice}after\nend\n"));
        });
    }
}
