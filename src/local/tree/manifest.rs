//! The record of the files copied into a tree: for each file, the stamps of the original and of the copy.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::stamp::Stamp;

/// The first bytes of a manifest.
const FORMAT: &[u8] = b"mayfly tree 2\n";

/// Stamps by path below the tree.
#[derive(Debug, Default, PartialEq)]
pub struct Manifest(HashMap<PathBuf, (Stamp, Stamp)>);

impl Manifest {
    /// Loads a manifest. If the file is missing or damaged, loads only the readable entries; other files are copied
    /// again.
    pub fn load(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        let mut copies = HashMap::new();
        let mut rest = bytes.strip_prefix(FORMAT).unwrap_or_default();
        while let Some((path, stamps, after)) = parse_entry(rest) {
            copies.insert(path, stamps);
            rest = after;
        }
        Self(copies)
    }

    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(FORMAT.len() + self.0.len() * 160);
        bytes.extend_from_slice(FORMAT);
        for (file, (original, copy)) in &self.0 {
            let name = file.as_os_str().as_bytes();
            bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&original.to_bytes());
            bytes.extend_from_slice(&copy.to_bytes());
        }
        let draft = path.with_extension("new");
        std::fs::write(&draft, bytes)?;
        std::fs::rename(draft, path)
    }

    /// Whether `path` was copied from a file with the stamp `original`, and its copy still has the stamp `copy`.
    pub fn is_current(&self, path: &Path, original: Stamp, copy: Stamp) -> bool {
        self.0.get(path) == Some(&(original, copy))
    }

    /// Records a copy.
    pub fn record(&mut self, path: PathBuf, original: Stamp, copy: Stamp) {
        self.0.insert(path, (original, copy));
    }

    /// Keeps only the entries for which `keep` is true; returns whether one was removed.
    pub fn retain(&mut self, keep: impl Fn(&Path) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|path, _| keep(path));
        self.0.len() != before
    }
}

/// Parses the first entry. Returns it and the remaining bytes. An entry is the length of the path, the path, and the
/// stamps of the original and of the copy.
#[allow(clippy::type_complexity)]
fn parse_entry(bytes: &[u8]) -> Option<(PathBuf, (Stamp, Stamp), &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let (original, rest) = rest.split_first_chunk()?;
    let (copy, rest) = rest.split_first_chunk()?;
    let stamps = (Stamp::from_bytes(original), Stamp::from_bytes(copy));
    Some((PathBuf::from(OsStr::from_bytes(name)), stamps, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_what_was_saved_and_nothing_from_a_damaged_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("manifest");
        let stamp = Stamp::of_metadata(&directory.path().metadata().expect("the file must exist"));
        let mut manifest = Manifest::default();
        manifest.record("a\nb/c d".into(), stamp, Stamp::default());
        manifest.save(&file).expect("save the file");
        let loaded = Manifest::load(&file);
        assert_eq!(loaded, manifest);
        assert!(loaded.is_current(Path::new("a\nb/c d"), stamp, Stamp::default()));
        std::fs::write(&file, "a\x00junk\x001 2 3\x00").expect("write the file");
        assert_eq!(Manifest::load(&file), Manifest::default());
    }
}
