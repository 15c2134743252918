//! Reading tar, compressed with zstd.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::os::unix::ffi::OsStringExt;

use tar::EntryType;

use super::place::{Meta, Parent, Place};
use super::{UnpackError, describe, relative};

/// Unpacks a tar archive compressed with zstd.
pub fn unpack(mut file: &File, place: &Place<'_>) -> Result<(), UnpackError> {
    file.rewind().map_err(UnpackError::of_archive)?;
    let decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(256 * 1024, file));
    let mut archive = tar::Archive::new(decoder.map_err(UnpackError::of_archive)?);
    let mut parent = Parent::default();
    let mut last = None;
    for entry in archive.entries().map_err(UnpackError::of_archive)? {
        let mut entry = entry.map_err(|why| match &last {
            Some(name) => UnpackError::of_archive(format_args!("it is broken after {name}: {why}")),
            None => UnpackError::of_archive(format_args!("it is no tar archive that can be read: {why}")),
        })?;
        let name = entry.path_bytes().into_owned();
        unpack_entry(&mut entry, &name, place, &mut parent)?;
        last = Some(String::from_utf8_lossy(&name).into_owned());
    }
    Ok(())
}

fn unpack_entry(
    entry: &mut tar::Entry<'_, impl std::io::Read>,
    name: &[u8],
    place: &Place<'_>,
    parent: &mut Parent,
) -> Result<(), UnpackError> {
    let fail = |why: &dyn std::fmt::Display| UnpackError::of_entry(name, why);
    let path = relative(name).map_err(|why| fail(&why))?;
    let header = entry.header();
    let mode = header.mode().map_err(|why| fail(&why))?;
    let mtime = header.mtime().map_err(|why| fail(&why))?;
    let meta = Meta { mode, mtime: mtime.cast_signed() };
    let target = || entry.link_name_bytes().map(|target| target.into_owned()).unwrap_or_default();
    let done = match header.entry_type() {
        EntryType::Directory => place.directory(&path, meta),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            place.reserve(entry.size()).and_then(|()| place.file(parent, &path, meta, entry))
        }
        EntryType::Symlink => {
            place.link(path, OsString::from_vec(target()));
            Ok(())
        }
        EntryType::Link => {
            let target = relative(&target()).map_err(|why| fail(&format_args!("as a link: {why}")))?;
            place.hard_link(parent, &path, &target)
        }
        EntryType::XGlobalHeader => Ok(()),
        _ => {
            place.warn(format!("{}: neither file, directory nor link; left out", String::from_utf8_lossy(name)));
            Ok(())
        }
    };
    done.map_err(|why| fail(&describe(&why)))
}
