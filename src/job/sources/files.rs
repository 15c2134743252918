//! Access to single files in `.git`, which an earlier job may have replaced with a file of any kind.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::remove;

/// Opens a regular file for reading. Symbolic links are not followed, and opening a pipe does not block.
pub fn open(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path).ok()?;
    file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(file)
}

/// The content of a regular file of at most `max` bytes; `None` if there is no such file.
pub fn read_small(path: &Path, max: u64) -> Option<Vec<u8>> {
    let file = open(path)?;
    let mut content = Vec::new();
    file.take(max + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= max).then_some(content)
}

/// Writes a file and replaces any file of another kind at its path.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    create(path)?.write_all(content)
}

/// As [`replace`], but returns the open file.
pub fn create(path: &Path) -> io::Result<File> {
    remove::remove(path)?;
    OpenOptions::new().write(true).create_new(true).custom_flags(O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("file"), "text").expect("write the file");
        std::os::unix::fs::symlink("file", path("link")).expect("create the link");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("create the named pipe");
        File::create(path("huge")).and_then(|file| file.set_len(4 << 30)).expect("create the file");
        assert_eq!(read_small(&path("file"), 4).as_deref(), Some(&b"text"[..]));
        for name in ["file", "link", "pipe", "huge", "none"] {
            assert_eq!(read_small(&path(name), 3), None, "{name}");
        }
        replace(&path("pipe"), b"x").expect("replace the file");
        assert_eq!(read_small(&path("pipe"), 3).as_deref(), Some(&b"x"[..]));
    }
}
