//! Directory trees for the tests of packing and unpacking.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::entry::ArchiveEntry;
use super::root::ArchiveRoot;
use super::select::{SelectionRequest, select};

/// A temporary project directory with room for archives and secrets beside it.
pub struct Project {
    temp: tempfile::TempDir,
}

/// The properties of a file that an archive preserves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File { mode: u32, mtime: i64, size: usize, checksum: u32 },
    Directory { mode: u32, mtime: i64 },
    Link(PathBuf),
}

impl Project {
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// A project on another file system.
    pub fn new_in(parent: &Path) -> Self {
        let temp = tempfile::tempdir_in(parent).unwrap();
        fs::create_dir(temp.path().join("project")).unwrap();
        Self { temp }
    }

    /// A new project with a copy of another project's archive beside it.
    pub fn new_with(other: &Self, archive: &str) -> Self {
        let project = Self::new();
        fs::copy(other.beside(archive), project.beside(archive)).unwrap();
        project
    }

    pub fn path(&self) -> PathBuf {
        self.temp.path().join("project")
    }

    /// A path outside the project.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn root(&self) -> ArchiveRoot {
        ArchiveRoot::open(&self.path()).unwrap()
    }

    pub fn write(&self, name: &str, content: &[u8]) -> &Self {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub fn mode(&self, name: &str, mode: u32) -> &Self {
        fs::set_permissions(self.path().join(name), Permissions::from_mode(mode)).unwrap();
        self
    }

    pub fn mtime(&self, name: &str, seconds: u64) -> &Self {
        let times = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(seconds));
        File::open(self.path().join(name)).unwrap().set_times(times).unwrap();
        self
    }

    /// Sets the modification time of a file, in nanoseconds since 1970.
    pub fn mtime_nanoseconds(&self, name: &str, nanoseconds: u64) -> &Self {
        let times = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_nanos(nanoseconds));
        File::open(self.path().join(name)).unwrap().set_times(times).unwrap();
        self
    }

    /// Sets the modification time of a symbolic link itself, in nanoseconds since 1970.
    pub fn link_mtime_nanoseconds(&self, name: &str, nanoseconds: u64) -> &Self {
        let time = TimeSpec::from_duration(Duration::from_nanos(nanoseconds));
        utimensat(AT_FDCWD, &self.path().join(name), &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
        self
    }

    pub fn link(&self, name: &str, target: &str) -> &Self {
        symlink(target, self.path().join(name)).unwrap();
        self
    }

    pub fn entries(&self) -> Vec<ArchiveEntry> {
        select(&self.root(), &SelectionRequest { paths: vec!["**".to_owned()], ..SelectionRequest::default() }).entries
    }

    pub fn snapshot(&self) -> BTreeMap<PathBuf, Node> {
        snapshot(&self.path())
    }
}

/// A project with every kind of entry.
pub fn sample() -> Project {
    let project = Project::new();
    let text: Vec<u8> = (0..60_000).flat_map(|n| format!("{n} bottles of beer on the wall\n").into_bytes()).collect();
    project
        .write("empty", b"")
        .write("small.txt", b"hello\n")
        .write("deep/er/and deeper/large.txt", &text)
        .write("bin/tool", b"#!/bin/sh\n")
        .mode("bin/tool", 0o755)
        .write("private", b"x")
        .mode("private", 0o400)
        .write("日本語/ファイル.txt", "語".as_bytes())
        .write("odd: näme..", b"odd")
        .write(".hidden/.file", b".")
        .link("link", "small.txt")
        .link("dangling", "/no/such/place")
        .link("deep/up", "../bin");
    fs::create_dir(project.path().join("hollow")).unwrap();
    project.mode("hollow", 0o700);
    project.mtime("small.txt", 1_000_000_000).mtime("bin", 1_234_567_890).mtime("hollow", 1_500_000_001);
    project
}

pub fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Node> {
    fn visit(base: &Path, directory: &Path, nodes: &mut BTreeMap<PathBuf, Node>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let (mode, mtime) = (meta.mode() & 0o7777, meta.mtime());
            let node = if meta.is_symlink() {
                Node::Link(fs::read_link(&path).unwrap())
            } else if meta.is_dir() {
                visit(base, &path, nodes);
                Node::Directory { mode, mtime }
            } else {
                let content = fs::read(&path).unwrap();
                Node::File { mode, mtime, size: content.len(), checksum: crc32fast::hash(&content) }
            };
            nodes.insert(path.strip_prefix(base).unwrap().to_owned(), node);
        }
    }
    let mut nodes = BTreeMap::new();
    visit(directory, directory, &mut nodes);
    nodes
}

/// Asserts that two trees are equal, and names the differences.
pub fn assert_same(left: &BTreeMap<PathBuf, Node>, right: &BTreeMap<PathBuf, Node>, what: &str) {
    let names: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    for name in names {
        assert_eq!(left.get(name), right.get(name), "{what}: {}", name.display());
    }
}

/// Runs a tool, which must succeed, and returns its output.
pub fn tool(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C.UTF-8").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed:\n{out}{err}");
    out.into_owned()
}
