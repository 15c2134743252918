//! Reading and compressing the files of an archive ahead of the one that writes it, in order, with bounded memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};

use crc32fast::Hasher;
use nix::sys::stat::{FileStat, fstat};

use super::compress::{BLOCK, Compressor, Packed, window};
use super::pool::{Pending, Pool};
use super::root::Root;
use super::select::Entry;

/// A file that has been opened and, where it is small, read and compressed.
pub enum Loaded {
    /// All of it.
    Small(Small),
    /// More than a block: to be streamed.
    Large(File, FileStat),
    /// It cannot be read (any more).
    Unreadable(io::Error),
}

/// A file of at most one block.
pub struct Small {
    /// What the file was when it was opened.
    pub stat: FileStat,
    /// Its content.
    pub content: Vec<u8>,
    /// Its content as a complete compressed stream, where that is shorter.
    pub packed: Option<Vec<u8>>,
    /// CRC-32 of the content.
    pub checksum: u32,
    /// It changed while it was read.
    pub changed: bool,
}

/// Opens a file and deals with it at once when it is small.
pub fn load(compressor: &mut Compressor, root: &Root, entry: &Entry) -> Loaded {
    let (file, stat) = match root.open_file(&entry.path) {
        Ok(opened) => opened,
        Err(why) => return Loaded::Unreadable(why),
    };
    let size = stat.st_size as u64;
    if size > BLOCK as u64 {
        return Loaded::Large(file, stat);
    }
    let mut content = Vec::with_capacity(size as usize);
    if let Err(why) = (&file).take(size).read_to_end(&mut content) {
        return Loaded::Unreadable(why);
    }
    match compressor.whole(&content) {
        Ok(packed) => {
            let checksum = crc32fast::hash(&content);
            let changed = content.len() as u64 != size || has_changed(&file, &stat);
            Loaded::Small(Small { stat, content, packed, checksum, changed })
        }
        Err(why) => Loaded::Unreadable(why),
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

/// Compresses a large file block by block on the pool and gives each to `write`, in order. Reads no more than the file
/// held when it was opened, so that one that keeps growing ends; one that cannot be read further ends early.
pub fn stream(
    pool: &Pool<'_>,
    file: &File,
    stat: &FileStat,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Streamed> {
    let mut left = stat.st_size as u64;
    let (mut size, mut checksum, mut before, mut trouble) = (0, Hasher::new(), Vec::new(), None);
    let mut under_way: VecDeque<Pending<io::Result<Packed>>> = VecDeque::new();
    let mut settle = |pending: Pending<io::Result<Packed>>, checksum: &mut Hasher| {
        let packed = pending.wait()??;
        checksum.combine(&packed.checksum);
        write(&packed.data)
    };
    while left > 0 {
        let mut block = Vec::with_capacity(BLOCK.min(left as usize));
        if let Err(why) = file.take(left.min(BLOCK as u64)).read_to_end(&mut block) {
            trouble = Some(format!("could be read only in part: {why}"));
        }
        if block.is_empty() {
            break;
        }
        left -= block.len() as u64;
        size += block.len() as u64;
        let (window, previous) = (window(&block), std::mem::take(&mut before));
        before = window;
        under_way.push_back(pool.submit(move |compressor| compressor.block(&previous, block)));
        if under_way.len() >= pool.depth()
            && let Some(first) = under_way.pop_front()
        {
            settle(first, &mut checksum)?;
        }
        if trouble.is_some() {
            break;
        }
    }
    for pending in under_way {
        settle(pending, &mut checksum)?;
    }
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
