//! The git index: reads its entries, and writes a new one without the flags that an earlier job may have set.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use nix::sys::stat::FileStat;
use ring::digest::Context;

use super::object_id::{self, algorithm};
use super::{SourcesPlan, files, git};
use crate::digest::unhex;

/// Limit for the list of entries, in bytes.
const MAX_LIST_SIZE: u64 = 512 << 20;

/// An entry of an index or of a commit's trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The file mode, in git's format.
    pub mode: u32,
    /// The object id, in hexadecimal digits.
    pub oid: String,
    /// The path, relative to the checkout.
    pub path: Vec<u8>,
}

impl IndexEntry {
    /// The path, unless it leads outside the checkout.
    pub fn path_below(&self) -> Option<PathBuf> {
        let path = Path::new(OsStr::from_bytes(&self.path));
        path.components().all(|part| matches!(part, Component::Normal(_))).then(|| path.to_owned())
    }
}

/// The object id and the stat of each file whose content is that of its object.
pub type KnownFiles = HashMap<Vec<u8>, (String, FileStat)>;

/// The entries of the index. `None` if the index cannot be read.
pub fn list(plan: &SourcesPlan) -> io::Result<Option<Vec<IndexEntry>>> {
    let mut command = git::command(plan, &plan.project, &["ls-files", "--stage", "-z"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut text = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(MAX_LIST_SIZE + 1).read_to_end(&mut text));
    let is_whole = read.transpose()?.is_some() && text.len() as u64 <= MAX_LIST_SIZE;
    // Git would block when it writes to a pipe that the agent does not read any more.
    if !is_whole {
        child.kill()?;
    }
    if !child.wait()?.success() || !is_whole {
        return Ok(None);
    }
    let mut entries = Vec::new();
    for line in text.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let Some(entry) = parse(line) else { return Ok(None) };
        // Entries of an unfinished merge are dropped.
        entries.extend(entry);
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    entries.dedup_by(|one, other| one.path == other.path);
    Ok(Some(entries))
}

/// Parses `100644 <object> <stage>\t<path>`.
fn parse(line: &[u8]) -> Option<Option<IndexEntry>> {
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    let words = std::str::from_utf8(&line[..tab]).ok()?;
    let [mode, oid, stage] = words.split(' ').collect::<Vec<_>>()[..] else { return None };
    let mode = u32::from_str_radix(mode, 8).ok()?;
    object_id::is_valid(oid).then_some(())?;
    Some((stage == "0").then(|| IndexEntry { mode, oid: oid.to_owned(), path: line[tab + 1..].to_vec() }))
}

/// Writes an index of version 2 (gitformat-index(5)). Files that are not known get no times.
pub fn write(plan: &SourcesPlan, path: &Path, entries: &[IndexEntry], known: &KnownFiles) -> io::Result<()> {
    let mut file = BufWriter::new(HashingWriter { file: files::create(path)?, context: Context::new(algorithm(plan)) });
    let count = u32::try_from(entries.len()).map_err(io::Error::other)?;
    file.write_all(b"DIRC")?;
    file.write_all(&2_u32.to_be_bytes())?;
    file.write_all(&count.to_be_bytes())?;
    for entry in entries {
        let times = known.get(&entry.path).map(|(_, stat)| stat_numbers(stat)).unwrap_or_default();
        // The mode is between the inode and the owner.
        for (at, number) in times.iter().enumerate() {
            if at == 6 {
                file.write_all(&entry.mode.to_be_bytes())?;
            }
            file.write_all(&number.to_be_bytes())?;
        }
        let oid = unhex(&entry.oid);
        file.write_all(&oid)?;
        let length = u16::try_from(entry.path.len()).unwrap_or(u16::MAX).min(0xfff);
        file.write_all(&length.to_be_bytes())?;
        file.write_all(&entry.path)?;
        let fixed = 40 + oid.len() + 2 + entry.path.len();
        file.write_all(&[0; 8][..8 - fixed % 8])?;
    }
    let hashed = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    let HashingWriter { mut file, context } = hashed;
    file.write_all(context.finish().as_ref())
}

/// Times, device, inode, owner and size as in an index: the lower 32 bits of each.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "git cuts them off as well")]
fn stat_numbers(stat: &FileStat) -> [u32; 9] {
    [
        stat.st_ctime as u32,
        stat.st_ctime_nsec as u32,
        stat.st_mtime as u32,
        stat.st_mtime_nsec as u32,
        stat.st_dev as u32,
        stat.st_ino as u32,
        stat.st_uid,
        stat.st_gid,
        stat.st_size as u32,
    ]
}

/// Writes a file and hashes its content at the same time.
struct HashingWriter {
    file: std::fs::File,
    context: Context,
}

impl Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.context.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
