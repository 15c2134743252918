//! Rebuilds the git index that an earlier job has left, before git trusts it.
//!
//! Git considers a file unchanged if its times and size are those in the index, or if a flag in the index says so. A
//! job can write both. The agent therefore keeps the entries but not their flags, and a file counts as unchanged only
//! if its content is that of its entry: either the agent hashes the file, or the file's times are those that the agent
//! recorded after the checkout ([`super::record`]). Git writes all other files again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::stat::{FileStat, Mode, fstat, umask};
use ring::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::record::CheckoutRecord;
use super::repository::is_hex;
use super::{SourcesPlan, files, git};
use crate::archive::root::{Kind, Root, kind_of};

/// Limit for the list of entries, in bytes.
const LIST_MAX: u64 = 512 << 20;

/// Limit for the threads that hash files.
const THREADS_MAX: usize = 8;

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

/// The hash algorithm of the object ids.
pub fn algorithm(plan: &SourcesPlan) -> &'static Algorithm {
    if plan.object_format == "sha256" { &SHA256 } else { &SHA1_FOR_LEGACY_USE_ONLY }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The entries of the index. `None` if the index cannot be read.
pub fn list(plan: &SourcesPlan) -> io::Result<Option<Vec<IndexEntry>>> {
    let mut command = git::command(plan, &plan.project, &["ls-files", "--stage", "-z"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut text = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(LIST_MAX + 1).read_to_end(&mut text));
    let is_whole = read.transpose()?.is_some() && text.len() as u64 <= LIST_MAX;
    // Git would block on a pipe that is not read any more.
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

/// `100644 <object> <stage>\t<path>`
fn parse(line: &[u8]) -> Option<Option<IndexEntry>> {
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    let words = std::str::from_utf8(&line[..tab]).ok()?;
    let [mode, oid, stage] = words.split(' ').collect::<Vec<_>>()[..] else { return None };
    let mode = u32::from_str_radix(mode, 8).ok()?;
    is_hex(oid, &[40, 64]).then_some(())?;
    Some((stage == "0").then(|| IndexEntry { mode, oid: oid.to_owned(), path: line[tab + 1..].to_vec() }))
}

/// Rebuilds the index. Returns the files whose content is known to be that of their entries; `None` if the index cannot
/// be read: then it is unknown which files of the directory came from git.
pub fn rebuild(plan: &SourcesPlan, record: &CheckoutRecord) -> io::Result<Option<KnownFiles>> {
    let index = plan.project.join(".git/index");
    if files::open(&index).is_none() {
        super::remove::remove(&index)?;
        return Ok(Some(KnownFiles::new()));
    }
    let Some(entries) = list(plan)? else { return Ok(None) };
    let known = find_unchanged(plan, &entries, record)?;
    write(plan, &index, &entries, &known)?;
    Ok(Some(known))
}

/// Finds the files whose content is that of their entries.
pub fn find_unchanged(plan: &SourcesPlan, entries: &[IndexEntry], record: &CheckoutRecord) -> io::Result<KnownFiles> {
    let root = Root::open(&plan.project)?;
    // The permissions that git would give a new file.
    let mask = umask(Mode::empty());
    umask(mask);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(stat) = unchanged(&root, plan, entry, record, mask) {
                found.push((entry.path.clone(), (entry.oid.clone(), stat)));
            }
        }
        found
    };
    Ok(thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut known: KnownFiles = work().into_iter().collect();
        // A thread that panicked contributes no files.
        known.extend(helpers.into_iter().filter_map(|helper| helper.join().ok()).flatten());
        known
    }))
}

/// The stat of a file whose content is that of its entry.
fn unchanged(
    root: &Root,
    plan: &SourcesPlan,
    entry: &IndexEntry,
    record: &CheckoutRecord,
    mask: Mode,
) -> Option<FileStat> {
    let path = Path::new(OsStr::from_bytes(&entry.path));
    let stat = root.stat(path).ok()?;
    let kind = if entry.mode & 0o170_000 == 0o120_000 { Kind::Link } else { Kind::File };
    if kind_of(&stat) != kind || !matches!(entry.mode, 0o100_644 | 0o100_755 | 0o120_000) {
        return None;
    }
    if record.holds(entry, &stat) {
        return Some(stat);
    }
    if kind == Kind::Link {
        let target = root.read_link(path).ok()?;
        return (oid_of(plan, "blob", target.as_bytes()) == entry.oid).then_some(stat);
    }
    let full = if entry.mode & 0o100 == 0 { 0o666 } else { 0o777 };
    // A hard link may lead to it, or its permissions may exclude the job: git writes it again.
    if stat.st_nlink != 1 || stat.st_mode & 0o7777 != full & !mask.bits() {
        return None;
    }
    let (mut file, opened) = root.open_file(path).ok()?;
    let hash = hash_of(plan, "blob", opened.st_size.unsigned_abs(), &mut file).ok()?;
    let after = fstat(&file).ok()?;
    (hash == entry.oid && is_same(&stat, &after)).then_some(after)
}

/// Whether a file did not change between two calls of stat.
pub fn is_same(one: &FileStat, other: &FileStat) -> bool {
    let times = |stat: &FileStat| (stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_mtime_nsec);
    (one.st_dev, one.st_ino, one.st_size, one.st_mode) == (other.st_dev, other.st_ino, other.st_size, other.st_mode)
        && times(one) == times(other)
}

/// The object id for this content.
fn oid_of(plan: &SourcesPlan, kind: &str, content: &[u8]) -> String {
    let mut context = Context::new(algorithm(plan));
    context.update(format!("{kind} {}\0", content.len()).as_bytes());
    context.update(content);
    hex(context.finish().as_ref())
}

/// As [`oid_of`], for content from a reader. Errors: the content is shorter than `size`.
pub fn hash_of(plan: &SourcesPlan, kind: &str, size: u64, reader: &mut dyn Read) -> io::Result<String> {
    let mut context = Context::new(algorithm(plan));
    context.update(format!("{kind} {size}\0").as_bytes());
    let mut left = size;
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = reader.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        context.update(&buffer[..length]);
        left -= length as u64;
    }
    Ok(hex(context.finish().as_ref()))
}

/// Writes an index of version 2 (gitformat-index(5)). Files that are not known get no times.
pub fn write(plan: &SourcesPlan, path: &Path, entries: &[IndexEntry], known: &KnownFiles) -> io::Result<()> {
    let mut file = BufWriter::new(HashingWriter { file: files::create(path)?, context: Context::new(algorithm(plan)) });
    let count = u32::try_from(entries.len()).map_err(io::Error::other)?;
    file.write_all(b"DIRC")?;
    file.write_all(&2_u32.to_be_bytes())?;
    file.write_all(&count.to_be_bytes())?;
    for entry in entries {
        let times = known.get(&entry.path).map(|(_, stat)| of_stat(stat)).unwrap_or_default();
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
fn of_stat(stat: &FileStat) -> [u32; 9] {
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

/// The bytes of hexadecimal digits.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | pair.get(1).map_or(0, |low| digit(*low))).collect()
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
