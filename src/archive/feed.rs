//! Reads and compresses the files of an archive in advance, in order, with bounded memory.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};

use crc32fast::Hasher;
use nix::sys::stat::{FileStat, fstat};

use super::block_queue::BlockQueue;
use super::compress::{BLOCK, Block, Compressor, FRAME, window};
use super::entry::ArchiveEntry;
use super::pool::{PendingResult, WorkerPool};
use super::root::{ArchiveRoot, FileKind};

/// The largest number of small files in one unit of work: passing files between threads one by one would cost more than
/// packing them.
const MAX_BATCH: usize = 32;

/// The entries of an archive in order, each loaded in advance.
pub struct Feed<'p, 'a> {
    pool: &'p WorkerPool<'a>,
    root: &'a ArchiveRoot,
    compression: FileCompression,
    /// The entries that the feed has not yet submitted to the pool.
    rest: &'a [ArchiveEntry],
    submitted: VecDeque<Batch<'a>>,
    /// The number of entries that fill about one block, estimated from the latest ones.
    batch_len: usize,
}

/// What compresses small files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FileCompression {
    /// The feed compresses each file separately.
    PerFile,
    /// The feed leaves files uncompressed, because the writer compresses the whole stream that contains them.
    WholeStream,
}

struct Batch<'a> {
    entries: &'a [ArchiveEntry],
    loading: PendingResult<Vec<LoadedFile>>,
}

impl<'p, 'a> Feed<'p, 'a> {
    /// A feed of these entries. Loading begins in [`Feed::for_each`].
    pub fn new(
        pool: &'p WorkerPool<'a>,
        root: &'a ArchiveRoot,
        entries: &'a [ArchiveEntry],
        compression: FileCompression,
    ) -> Self {
        Self { pool, root, compression, rest: entries, submitted: VecDeque::new(), batch_len: 1 }
    }

    /// Calls `each` with every entry and its loaded content.
    pub fn for_each(mut self, mut each: impl FnMut(&'a ArchiveEntry, LoadedFile) -> io::Result<()>) -> io::Result<()> {
        loop {
            let mut loaded = self.next_batch()?.peekable();
            if loaded.peek().is_none() {
                return Ok(());
            }
            for (entry, loaded) in loaded {
                each(entry, loaded)?;
            }
        }
    }

    /// The next entries; empty at the end.
    fn next_batch(&mut self) -> io::Result<impl Iterator<Item = (&'a ArchiveEntry, LoadedFile)> + use<'a>> {
        while self.submitted.len() < self.pool.max_in_progress(self.compression.unit_size()) && !self.rest.is_empty() {
            let (entries, rest) = self.rest.split_at(self.batch_len.min(self.rest.len()));
            self.rest = rest;
            let batch = self.submit(entries);
            self.submitted.push_back(batch);
        }
        let (entries, loaded) = match self.submitted.pop_front() {
            Some(batch) => (batch.entries, batch.loading.wait()?),
            None => (&[][..], Vec::new()),
        };
        let (done, left) = entries.split_at(loaded.len());
        let size: usize = loaded.iter().map(LoadedFile::weight).sum();
        self.batch_len = (BLOCK * loaded.len() / size.max(1)).clamp(1, MAX_BATCH);
        if !left.is_empty() {
            let batch = self.submit(left);
            self.submitted.push_front(batch);
        }
        Ok(done.iter().zip(loaded))
    }

    fn submit(&self, entries: &'a [ArchiveEntry]) -> Batch<'a> {
        let (root, compression) = (self.root, self.compression);
        let loading = self.pool.submit(move |compressor: &mut Compressor| {
            load_batch(compression.compressor_for_files(compressor), root, entries)
        });
        Batch { entries, loading }
    }
}

impl FileCompression {
    /// The size of a unit of work in the pool, in bytes; limits the number of units in progress.
    fn unit_size(self) -> usize {
        match self {
            Self::PerFile => BLOCK,
            Self::WholeStream => FRAME,
        }
    }

    /// The compressor, if files are compressed separately.
    fn compressor_for_files(self, compressor: &mut Compressor) -> Option<&mut Compressor> {
        (self == Self::PerFile).then_some(compressor)
    }
}

/// A loaded entry.
pub enum LoadedFile {
    /// The content of a small file.
    Small(SmallFile),
    /// A file larger than a block, to be streamed.
    Large(File, FileStat),
    /// The file cannot be read, or no longer exists.
    Unreadable(io::Error),
    /// Not a file: its metadata, and the target if it is a link.
    Other(FileStat, Option<OsString>),
}

impl LoadedFile {
    /// The memory that the entry takes, in bytes.
    fn weight(&self) -> usize {
        match self {
            Self::Small(small) => small.size,
            Self::Large(..) => BLOCK,
            Self::Unreadable(_) | Self::Other(..) => 0,
        }
    }
}

/// A file of at most one block.
pub struct SmallFile {
    /// The metadata when the file was opened.
    pub stat: FileStat,
    /// The length of the content.
    pub size: usize,
    pub data: LoadedContent,
    /// CRC-32 of the content.
    pub checksum: u32,
    /// Whether the file changed while it was read.
    pub changed: bool,
}

/// The content of a small file.
pub enum LoadedContent {
    /// Uncompressed, as requested or because compression would not make it shorter.
    Plain(Vec<u8>),
    /// A complete compressed stream.
    Packed(Vec<u8>),
}

/// Loads at least one entry, and stops after about one block, which bounds the memory for any file sizes.
fn load_batch(
    mut compressor: Option<&mut Compressor>,
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
) -> Vec<LoadedFile> {
    let (mut loaded, mut size) = (Vec::with_capacity(entries.len()), 0);
    for entry in entries {
        let next = match entry.kind {
            FileKind::File => load(compressor.as_deref_mut(), root, entry),
            _ => load_metadata(root, entry).unwrap_or_else(LoadedFile::Unreadable),
        };
        size += next.weight();
        loaded.push(next);
        if size >= BLOCK {
            break;
        }
    }
    loaded
}

fn load_metadata(root: &ArchiveRoot, entry: &ArchiveEntry) -> io::Result<LoadedFile> {
    let stat = root.stat(&entry.path)?;
    let target = if entry.kind == FileKind::Link { Some(root.read_link(&entry.path)?) } else { None };
    Ok(LoadedFile::Other(stat, target))
}

/// Opens a file, and reads it if it is small.
fn load(compressor: Option<&mut Compressor>, root: &ArchiveRoot, entry: &ArchiveEntry) -> LoadedFile {
    let (file, stat) = match root.open_file(&entry.path) {
        Ok(opened) => opened,
        Err(why) => return LoadedFile::Unreadable(why),
    };
    let expected = stat.st_size as u64;
    if expected > BLOCK as u64 {
        return LoadedFile::Large(file, stat);
    }
    let mut content = Vec::with_capacity(expected as usize);
    if let Err(why) = (&file).take(expected).read_to_end(&mut content) {
        return LoadedFile::Unreadable(why);
    }
    let (size, checksum) = (content.len(), crc32fast::hash(&content));
    let changed = size as u64 != expected || has_changed(&file, &stat);
    match compressor.map_or(Ok(None), |compressor| compressor.compress_file(&content)) {
        Ok(packed) => {
            let data = packed.map_or(LoadedContent::Plain(content), LoadedContent::Packed);
            LoadedFile::Small(SmallFile { stat, size, data, checksum, changed })
        }
        Err(why) => LoadedFile::Unreadable(why),
    }
}

impl LoadedContent {
    /// The bytes to write to the archive.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) | Self::Packed(bytes) => bytes,
        }
    }
}

/// The result of streaming a file.
pub struct Streamed {
    /// The number of bytes read.
    pub size: u64,
    /// The CRC-32 of those bytes.
    pub checksum: u32,
    /// Why the content differs from the file at opening time.
    pub trouble: Option<String>,
}

/// Compresses a large file on the pool, in blocks of `block_size` bytes, and passes each to `write`, in order. Reads at
/// most the size at opening time, so a file that keeps growing ends; a read error ends the file early.
pub fn stream(
    pool: &WorkerPool<'_>,
    file: &File,
    stat: &FileStat,
    block_size: usize,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Streamed> {
    let mut left = stat.st_size as u64;
    let (mut size, mut checksum, mut before, mut trouble) = (0, Hasher::new(), Vec::new(), None);
    let mut queue = BlockQueue::new(pool, block_size);
    let mut put = |block: &Block| {
        checksum.combine(&block.checksum);
        write(&block.packed)
    };
    while left > 0 {
        let mut block = queue.next(&mut put)?;
        if let Err(why) = file.take(left.min(block_size as u64)).read_to_end(&mut block.content) {
            trouble = Some(format!("could only be read in part: {why}"));
        }
        if block.content.is_empty() {
            break;
        }
        left -= block.content.len() as u64;
        size += block.content.len() as u64;
        std::mem::swap(&mut block.before, &mut before);
        before.clear();
        before.extend_from_slice(window(&block.content));
        queue.submit(block);
        if trouble.is_some() {
            break;
        }
    }
    queue.finish(&mut put)?;
    if trouble.is_none() && (left > 0 || has_changed(file, stat)) {
        trouble = Some("changed while it was packed".to_owned());
    }
    Ok(Streamed { size, checksum: checksum.finalize(), trouble })
}

/// Whether the file changed since it was opened.
pub fn has_changed(file: &File, before: &FileStat) -> bool {
    fstat(file).map_or(true, |now| {
        (now.st_size, now.st_mtime, now.st_mtime_nsec) != (before.st_size, before.st_mtime, before.st_mtime_nsec)
    })
}
