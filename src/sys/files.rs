//! Opens files at paths that a job may have replaced, and replaces the agent's own files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;

/// Opens `path` below `directory`; follows no symbolic link and never leaves the directory.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    Ok(openat2(directory, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))?)
}

/// Reopens a file that is open with `O_PATH`. The caller has checked the type of the file, because opening a device has
/// side effects.
pub fn reopen(found: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    let own_path = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(nix::fcntl::open(own_path.as_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, nix::sys::stat::Mode::empty())?)
}

/// Opens a regular file at a name that a job may have replaced: follows no link, and does not block on a pipe. Fails if
/// it is not a regular file.
pub fn open_regular(path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = options.custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Replaces a file that only its owner may read, by rename: if this process dies, the file has either the old or the
/// new content.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    create_private(&draft)?.write_all(content)?;
    fs::rename(&draft, path)
}

/// As [`replace_file`], with fsync: a loss of power does not damage the file either.
pub fn replace_file_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = create_private(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

fn create_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn opens_nothing_through_links_or_outside() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("file"), "x").expect("write the file");
        std::os::unix::fs::symlink("/etc", directory.path().join("link")).expect("create the link");
        let root = fs::File::open(directory.path()).expect("open the directory");
        let open = |path: &str| open_beneath(root.as_fd(), Path::new(path), OFlag::O_RDONLY);
        assert!(open("file").is_ok());
        assert!(open("link/passwd").is_err() && open("../x").is_err() && open("/etc/passwd").is_err());
    }
}
