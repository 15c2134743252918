//! Reads tar archives compressed with zstd.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

use nix::sys::time::TimeSpec;
use tar::EntryType;

use super::destination::{Destination, Meta, Writer};
use super::{MAX_PATH_LENGTH, UnpackError, link_target, relative};

pub fn unpack(mut file: &File, destination: &Destination<'_>) -> Result<(), UnpackError> {
    file.rewind().map_err(UnpackError::of_archive)?;
    let decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(256 * 1024, file));
    let left = Cell::new(0);
    let content = HeaderLimit { content: decoder.map_err(UnpackError::of_archive)?, left: &left };
    let mut archive = tar::Archive::new(content);
    let mut entries = archive.entries().map_err(UnpackError::of_archive)?;
    let mut writer = Writer::new();
    let mut last = None;
    loop {
        left.set(MAX_HEADER_BYTES);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(|why| match &last {
            Some(name) => UnpackError::of_archive(format_args!("damaged after {name}: {why}")),
            None => UnpackError::of_archive(format_args!("not a valid tar archive: {why}")),
        })?;
        left.set(u64::MAX);
        let name = entry.path_bytes().into_owned();
        unpack_entry(&mut entry, &name, destination, &mut writer)?;
        // Skip unread content, so that the tar crate does not take it for a header.
        io::copy(&mut entry, &mut io::sink()).map_err(|why| UnpackError::of_entry(&name, why))?;
        last = Some(String::from_utf8_lossy(&name[..name.len().min(MAX_PATH_LENGTH)]).into_owned());
    }
}

/// The limit for the bytes between the contents of two entries: the tar crate keeps long names and extended headers in
/// memory, regardless of their size.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// A reader that fails after this number of bytes.
struct HeaderLimit<'a, R> {
    content: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for HeaderLimit<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header is too long"));
        }
        let length = self.content.read(&mut buffer[..most])?;
        self.left.set(self.left.get() - length as u64);
        Ok(length)
    }
}

/// The modification time with a fraction, from the extended header of the entry (POSIX pax, keyword `mtime`).
fn exact_time(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Option<TimeSpec>> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(None) };
    let times = extensions.flatten().filter(|extension| extension.key() == Ok("mtime"));
    Ok(times.filter_map(|extension| parse_time(extension.value().ok()?)).last())
}

/// Parses seconds with up to nine decimal digits; further digits are ignored.
pub(super) fn parse_time(text: &str) -> Option<TimeSpec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(seconds) || !is_number(fraction) {
        return None;
    }
    let nanoseconds = format!("{:0<9.9}", fraction).parse().ok()?;
    Some(TimeSpec::new(seconds.parse().ok()?, nanoseconds))
}

fn unpack_entry(
    entry: &mut tar::Entry<'_, impl std::io::Read>,
    name: &[u8],
    destination: &Destination<'_>,
    writer: &mut Writer,
) -> Result<(), UnpackError> {
    let fail = |why: &dyn std::fmt::Display| UnpackError::of_entry(name, why);
    let path = relative(name).map_err(|why| fail(&why))?;
    let exact_time = exact_time(entry).map_err(|why| fail(&why))?;
    let header = entry.header();
    let mode = header.mode().map_err(|why| fail(&why))?;
    let mtime = header.mtime().map_err(|why| fail(&why))?;
    let meta = Meta { mode, mtime: exact_time.unwrap_or_else(|| TimeSpec::new(mtime.cast_signed(), 0)) };
    let target = || entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
    let done = match header.entry_type() {
        EntryType::Directory => destination.directory(&path, meta),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            destination.reserve(entry.size()).and_then(|()| destination.file(writer, &path, meta, entry))
        }
        EntryType::Symlink => link_target(target()).and_then(|target| destination.link(path, target, meta.mtime)),
        EntryType::Link => {
            let target = relative(&target()).map_err(|why| fail(&format_args!("as a link: {why}")))?;
            destination.hard_link(writer, &path, &target)
        }
        EntryType::XGlobalHeader => Ok(()),
        _ => {
            destination.warn(format!("{}: skipped: not a file, directory or link", String::from_utf8_lossy(name)));
            Ok(())
        }
    };
    done.map_err(|why| UnpackError::of_io(name, &why))
}
