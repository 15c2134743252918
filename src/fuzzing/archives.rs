//! Targets for archives: each archive is unpacked into a directory, and nothing may be written outside of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::archive::root::ArchiveRoot;
use crate::archive::unpack;

/// The directory for temporary files: in memory, or `/tmp` if it does not exist.
const MEMORY: &str = "/dev/shm";
/// The maximum size of an archive. Larger archives only take longer.
const MAX_INPUT_SIZE: usize = 64 << 10;
/// The content of a file beside the project.
const UNTOUCHED: &str = "untouched";

/// Unpacks the input as a zip archive.
pub fn zip(archive: &[u8]) {
    // Archives of other formats have their own targets.
    if !archive.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) && !archive.starts_with(&[0x1f, 0x8b]) {
        unpacked(archive);
    }
}

/// Compresses the input and unpacks it as a tar archive: few mutations of compressed data reach a tar header.
pub fn tar(archive: &[u8]) {
    if let Ok(compressed) = zstd::encode_all(archive, 1) {
        unpacked(&compressed);
    }
}

/// Unpacks the input as a tar archive that is compressed with zstd.
pub fn tar_zstd(archive: &[u8]) {
    begun_with(&[0x28, 0xb5, 0x2f, 0xfd], archive);
}

/// Unpacks the input as gzip members.
pub fn gzip(archive: &[u8]) {
    begun_with(&[0x1f, 0x8b], archive);
}

fn begun_with(magic: &[u8], archive: &[u8]) {
    let mut archive = archive.to_vec();
    if archive.len() >= magic.len() {
        archive[..magic.len()].copy_from_slice(magic);
        unpacked(&archive);
    }
}

fn unpacked(archive: &[u8]) {
    if archive.len() > MAX_INPUT_SIZE {
        return;
    }
    let ground = Ground::new().expect("a directory");
    let mut file = File::from(memfd_create(c"archive", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(archive).expect("write all bytes");
    let root = ArchiveRoot::open(&ground.project()).expect("open the directory");
    if let Err(error) = unpack::unpack(&file, &root) {
        assert!(!error.why.is_empty());
    }
    ground.check();
}

/// A directory with a project and a file beside the project, which unpacking must not change.
struct Ground(PathBuf);

impl Ground {
    fn new() -> io::Result<Self> {
        let memory = Path::new(MEMORY);
        let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let ground =
            Self(above.join(format!("mayfly-archives-{}-{:?}", std::process::id(), std::thread::current().id())));
        fs::create_dir(&ground.0)?;
        fs::create_dir(ground.project())?;
        fs::write(ground.beside(), UNTOUCHED)?;
        Ok(ground)
    }

    fn project(&self) -> PathBuf {
        self.0.join("project")
    }

    fn beside(&self) -> PathBuf {
        self.0.join("beside")
    }

    fn check(&self) {
        let names = |path: &Path| fs::read_dir(path).expect("a directory").flatten().map(|entry| entry.path());
        assert_eq!(names(&self.0).count(), 2, "something was made beside the project");
        assert_eq!(fs::read_to_string(self.beside()).expect("read the file"), UNTOUCHED);
        let mut left = vec![self.project()];
        while let Some(directory) = left.pop() {
            for path in names(&directory) {
                let metadata = path.symlink_metadata().expect("the file must exist");
                let kind = metadata.file_type();
                assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "a special file");
                assert_eq!(metadata.permissions().mode() & 0o6000, 0, "a program that runs as its owner");
                left.extend(kind.is_dir().then_some(path));
            }
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
