//! Reading and compressing the files of an archive ahead of the one that writes it, in order, with bounded memory.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};

use crc32fast::Hasher;
use nix::sys::stat::{FileStat, fstat};

use super::compress::{BLOCK, Compressor, FRAME, Piece, window};
use super::entry::Entry;
use super::pieces::Pieces;
use super::pool::{Pending, Pool};
use super::root::{Kind, Root};

/// How many small files are one piece of work at most: to hand them from thread to thread one by one would cost more
/// than to pack them.
const BATCH_MAX: usize = 32;

/// The entries of an archive in order, each loaded before it is its turn.
pub struct Feed<'p, 'a> {
    pool: &'p Pool<'a>,
    root: &'a Root,
    each: FileContent,
    rest: &'a [Entry],
    ahead: VecDeque<Batch<'a>>,
    /// How many entries make up about a block, as far as the last ones tell.
    at_once: usize,
}

/// What becomes of small files beforehand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FileContent {
    /// Each is compressed by itself.
    Packed,
    /// They stay as they are: the stream that they become part of is compressed.
    Plain,
}

struct Batch<'a> {
    entries: &'a [Entry],
    loading: Pending<Vec<Loaded>>,
}

impl<'p, 'a> Feed<'p, 'a> {
    /// Begins to load.
    pub fn new(pool: &'p Pool<'a>, root: &'a Root, entries: &'a [Entry], each: FileContent) -> Self {
        Self { pool, root, each, rest: entries, ahead: VecDeque::new(), at_once: 1 }
    }

    /// Gives each entry with what came of it.
    pub fn for_each(mut self, mut each: impl FnMut(&'a Entry, Loaded) -> io::Result<()>) -> io::Result<()> {
        loop {
            let mut loaded = self.take()?.peekable();
            if loaded.peek().is_none() {
                return Ok(());
            }
            for (entry, loaded) in loaded {
                each(entry, loaded)?;
            }
        }
    }

    /// The next entries; none at the end.
    fn take(&mut self) -> io::Result<impl Iterator<Item = (&'a Entry, Loaded)> + use<'a>> {
        while self.ahead.len() < self.pool.depth(self.each.piece()) && !self.rest.is_empty() {
            let (entries, rest) = self.rest.split_at(self.at_once.min(self.rest.len()));
            self.rest = rest;
            let batch = self.submit(entries);
            self.ahead.push_back(batch);
        }
        let (entries, loaded) = match self.ahead.pop_front() {
            Some(batch) => (batch.entries, batch.loading.wait()?),
            None => (&[][..], Vec::new()),
        };
        let (done, left) = entries.split_at(loaded.len());
        let size: usize = loaded.iter().map(Loaded::weight).sum();
        self.at_once = (BLOCK * loaded.len() / size.max(1)).clamp(1, BATCH_MAX);
        if !left.is_empty() {
            let batch = self.submit(left);
            self.ahead.push_front(batch);
        }
        Ok(done.iter().zip(loaded))
    }

    fn submit(&self, entries: &'a [Entry]) -> Batch<'a> {
        let (root, each) = (self.root, self.each);
        let load_some = move |compressor: &mut Compressor| load_some(each.with(compressor), root, entries);
        Batch { entries, loading: self.pool.submit(load_some) }
    }
}

impl FileContent {
    /// The size of what is under way in the pool meanwhile, which says how much may be.
    fn piece(self) -> usize {
        match self {
            Self::Packed => BLOCK,
            Self::Plain => FRAME,
        }
    }

    /// The compressor, where it has something to do.
    fn with(self, compressor: &mut Compressor) -> Option<&mut Compressor> {
        (self == Self::Packed).then_some(compressor)
    }
}

/// An entry that has been looked at and, where it is a small file, read and compressed.
pub enum Loaded {
    /// All of a file.
    Small(Small),
    /// More than a block: to be streamed.
    Large(File, FileStat),
    /// It cannot be read (any more).
    Unreadable(io::Error),
    /// No file: what it is, and where it points if it is a link.
    Other(FileStat, Option<OsString>),
}

impl Loaded {
    /// How much of a block it makes up.
    fn weight(&self) -> usize {
        match self {
            Self::Small(small) => small.size,
            Self::Large(..) => BLOCK,
            Self::Unreadable(_) | Self::Other(..) => 0,
        }
    }
}

/// A file of at most one block.
pub struct Small {
    /// What the file was when it was opened.
    pub stat: FileStat,
    /// How long its content is.
    pub size: usize,
    /// Its content.
    pub data: Content,
    /// CRC-32 of the content.
    pub checksum: u32,
    /// It changed while it was read.
    pub changed: bool,
}

/// The content of a small file.
pub enum Content {
    /// As it is: as it was wanted, or since it would not be shorter otherwise.
    Plain(Vec<u8>),
    /// As a complete compressed stream.
    Packed(Vec<u8>),
}

/// Loads entries, at least one, until they make up a block: that bounds the memory, whatever their sizes turn out to be.
fn load_some(mut compressor: Option<&mut Compressor>, root: &Root, entries: &[Entry]) -> Vec<Loaded> {
    let (mut loaded, mut size) = (Vec::with_capacity(entries.len()), 0);
    for entry in entries {
        let next = match entry.kind {
            Kind::File => load(compressor.as_deref_mut(), root, entry),
            _ => look_at(root, entry).unwrap_or_else(Loaded::Unreadable),
        };
        size += next.weight();
        loaded.push(next);
        if size >= BLOCK {
            break;
        }
    }
    loaded
}

fn look_at(root: &Root, entry: &Entry) -> io::Result<Loaded> {
    let stat = root.stat(&entry.path)?;
    let target = if entry.kind == Kind::Link { Some(root.read_link(&entry.path)?) } else { None };
    Ok(Loaded::Other(stat, target))
}

/// Opens a file and deals with it at once when it is small.
fn load(compressor: Option<&mut Compressor>, root: &Root, entry: &Entry) -> Loaded {
    let (file, stat) = match root.open_file(&entry.path) {
        Ok(opened) => opened,
        Err(why) => return Loaded::Unreadable(why),
    };
    let expected = stat.st_size as u64;
    if expected > BLOCK as u64 {
        return Loaded::Large(file, stat);
    }
    let mut content = Vec::with_capacity(expected as usize);
    if let Err(why) = (&file).take(expected).read_to_end(&mut content) {
        return Loaded::Unreadable(why);
    }
    let (size, checksum) = (content.len(), crc32fast::hash(&content));
    let changed = size as u64 != expected || has_changed(&file, &stat);
    match compressor.map_or(Ok(None), |compressor| compressor.whole(&content)) {
        Ok(packed) => {
            let data = packed.map_or(Content::Plain(content), Content::Packed);
            Loaded::Small(Small { stat, size, data, checksum, changed })
        }
        Err(why) => Loaded::Unreadable(why),
    }
}

impl Content {
    /// The bytes for the archive.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) | Self::Packed(bytes) => bytes,
        }
    }
}

/// What a streamed file came to.
pub struct Streamed {
    /// How many bytes it gave.
    pub size: u64,
    /// CRC-32 of them.
    pub checksum: u32,
    /// Why it is not what it was when it was opened, if so.
    pub trouble: Option<String>,
}

/// Compresses a large file on the pool, in pieces of `at_once` bytes, and gives each to `write`, in order. Reads no more
/// than the file held when it was opened, so that one that keeps growing ends; one that cannot be read further ends early.
pub fn stream(
    pool: &Pool<'_>,
    file: &File,
    stat: &FileStat,
    at_once: usize,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Streamed> {
    let mut left = stat.st_size as u64;
    let (mut size, mut checksum, mut before, mut trouble) = (0, Hasher::new(), Vec::new(), None);
    let mut pieces = Pieces::new(pool, at_once);
    let mut put = |piece: &Piece| {
        checksum.combine(&piece.checksum);
        write(&piece.packed)
    };
    while left > 0 {
        let mut piece = pieces.next(&mut put)?;
        if let Err(why) = file.take(left.min(at_once as u64)).read_to_end(&mut piece.block) {
            trouble = Some(format!("could be read only in part: {why}"));
        }
        if piece.block.is_empty() {
            break;
        }
        left -= piece.block.len() as u64;
        size += piece.block.len() as u64;
        std::mem::swap(&mut piece.before, &mut before);
        before.clear();
        before.extend_from_slice(window(&piece.block));
        pieces.submit(piece);
        if trouble.is_some() {
            break;
        }
    }
    pieces.finish(&mut put)?;
    if trouble.is_none() && (left > 0 || has_changed(file, stat)) {
        trouble = Some("changed while it was being packed".to_owned());
    }
    Ok(Streamed { size, checksum: checksum.finalize(), trouble })
}

/// Whether a file is another than when it was opened.
pub fn has_changed(file: &File, before: &FileStat) -> bool {
    fstat(file).map_or(true, |now| {
        (now.st_size, now.st_mtime, now.st_mtime_nsec) != (before.st_size, before.st_mtime, before.st_mtime_nsec)
    })
}
