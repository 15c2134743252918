//! Unpacks into a project directory. For any archive: nothing is written outside, no device is created, no set-user-id
//! bit is restored, and the disk does not fill up.

mod destination;
mod gzip;
mod inflate;
mod tar;
mod zip;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Warnings;
use super::root::ArchiveRoot;
use destination::Destination;

/// The longest path, and the longest link target, that the kernel accepts (`PATH_MAX`), in bytes.
const MAX_PATH_LENGTH: usize = 4096;

/// The result of unpacking.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// The number of files, directories and links.
    pub entries: u64,
    /// Skipped entries, one line each.
    pub warnings: Warnings,
}

/// Why an archive could not be unpacked completely.
#[derive(Debug)]
pub struct UnpackError {
    /// The entry that failed.
    pub entry: Option<String>,
    /// The cause.
    pub why: String,
    /// Whether the archive or the destination is at fault.
    pub fault: UnpackFault,
}

/// The side at fault. It decides whether a retry with the same archive can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackFault {
    /// The archive is damaged or malicious.
    Archive,
    /// The destination: the disk is full, or another file is in the way.
    Destination,
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(entry) => write!(f, "{entry}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

impl std::error::Error for UnpackError {}

impl UnpackError {
    fn of_archive(why: impl fmt::Display) -> Self {
        Self { entry: None, why: why.to_string(), fault: UnpackFault::Archive }
    }

    fn of_destination(why: impl fmt::Display) -> Self {
        Self { fault: UnpackFault::Destination, ..Self::of_archive(why) }
    }

    fn of_entry(name: &[u8], why: impl fmt::Display) -> Self {
        // A malicious archive may contain names of any length.
        let name = &name[..name.len().min(MAX_PATH_LENGTH)];
        Self { entry: Some(String::from_utf8_lossy(name).into_owned()), ..Self::of_archive(why) }
    }

    /// The error of an entry that could not be read or written.
    fn of_io(name: &[u8], why: &io::Error) -> Self {
        let fault =
            if why.kind() == io::ErrorKind::InvalidData { UnpackFault::Archive } else { UnpackFault::Destination };
        Self { fault, ..Self::of_entry(name, describe(why)) }
    }
}

/// Unpacks zip, tar+zstd or gzip; the first bytes tell the format.
pub fn unpack(archive: &File, root: &ArchiveRoot) -> Result<Unpacked, UnpackError> {
    let mut magic = [0; 4];
    let length = archive.read_at(&mut magic, 0).map_err(UnpackError::of_archive)?;
    let destination = Destination::new(root).map_err(UnpackError::of_destination)?;
    match &magic[..length] {
        [0x28, 0xb5, 0x2f, 0xfd] => tar::unpack(archive, &destination)?,
        [0x1f, 0x8b, ..] => gzip::unpack(archive, &destination)?,
        [] => return Err(UnpackError::of_archive("the archive is empty")),
        _ => zip::unpack(archive, &destination)?,
    }
    destination.finish()
}

/// Whether a file begins like a cache archive: zip (possibly empty) or tar+zstd.
pub fn looks_like_cache(file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    let length = file.read_at(&mut magic, 0)?;
    Ok(matches!(&magic[..length], [b'P', b'K', 3, 4] | [b'P', b'K', 5, 6] | [0x28, 0xb5, 0x2f, 0xfd]))
}

/// Marks an error of the archive's content, as opposed to one of the destination.
fn unreadable(why: io::Error) -> io::Error {
    match why.kind() {
        io::ErrorKind::StorageFull => why,
        _ => io::Error::new(io::ErrorKind::InvalidData, why.to_string()),
    }
}

/// The target of a link; any valid path is accepted.
fn link_target(target: Vec<u8>) -> io::Result<OsString> {
    if target.is_empty() || target.len() > MAX_PATH_LENGTH || target.contains(&0) {
        return Err(unreadable(io::Error::other("its target is not a valid path")));
    }
    Ok(OsString::from_vec(target))
}

/// The name of an entry as a path below the project directory; empty for the directory itself.
fn relative(name: &[u8]) -> Result<PathBuf, &'static str> {
    use std::os::unix::ffi::OsStrExt;

    if name.starts_with(b"/") {
        return Err("its name is absolute");
    }
    if name.contains(&0) || name.len() > MAX_PATH_LENGTH {
        return Err("its name is not a valid file name");
    }
    let mut path = PathBuf::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("its name leads out of the project directory"),
            _ => path.push(std::ffi::OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

/// Describes a read or write error of an entry for the author of the job.
fn describe(why: &io::Error) -> String {
    match why.raw_os_error() {
        Some(nix::libc::ENOSPC) => "the disk is full".to_owned(),
        Some(nix::libc::EDQUOT) => "the disk quota is used up".to_owned(),
        Some(nix::libc::EXDEV) => "a link leads out of the project directory".to_owned(),
        _ => why.to_string(),
    }
}

#[cfg(test)]
mod tests;
