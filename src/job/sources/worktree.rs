//! Files of the work tree that git reads before it has replaced them.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::index::{self, IndexEntry};
use super::{SourcesPlan, remove};
use crate::archive::root::{ArchiveRoot, FileKind};

/// Files that git and Git LFS read from the work tree.
const FILES_READ_BY_GIT: [&str; 4] = [".gitattributes", ".gitignore", ".gitmodules", ".lfsconfig"];

/// Files that git reads from other repositories in the work tree, or from directories that look like one.
const REPOSITORY_FILES: [&str; 4] = [".git", "HEAD", "commondir", "config"];

/// Git's own limit for the size of an attributes file.
const MAX_ATTRIBUTES_SIZE: i64 = 100 << 20;

/// Removes pipes, sockets and devices that would block git, and files that are too large for memory. Symbolic links
/// stay, because git does not follow them. Returns the directories below the project that contain a `.git`.
pub fn sanitise(project: &Path) -> io::Result<Vec<PathBuf>> {
    let root = ArchiveRoot::open(project)?;
    let mut nested = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        // Git cannot enter a directory that cannot be listed or whose path is too long.
        let Ok(entries) = root.list(&directory) else { continue };
        for (name, kind) in entries {
            let path = directory.join(&name);
            let is_read = FILES_READ_BY_GIT.iter().any(|read| name == *read) || name == "commondir";
            if name == ".git" && !directory.as_os_str().is_empty() {
                nested.push(directory.clone());
                if kind == FileKind::Directory {
                    sanitise_nested(&root, &path)?;
                }
            }
            let is_huge = || root.stat(&path).is_ok_and(|stat| stat.st_size > MAX_ATTRIBUTES_SIZE);
            match kind {
                FileKind::Directory if name != ".git" => waiting.push(path),
                FileKind::Special if is_read || REPOSITORY_FILES.iter().any(|read| name == *read) => {
                    root.remove(&path, kind)?
                }
                FileKind::File if is_read && is_huge() => root.remove(&path, kind)?,
                _ => {}
            }
        }
    }
    Ok(nested)
}

/// Removes `.git` from directories of the checkout itself: no tool creates a checkout there, and the job's git would
/// use a `.git` that an earlier job planted as the repository. `nested`: the directories that [`sanitise`] returned.
pub fn remove_planted(plan: &SourcesPlan, nested: &[PathBuf]) -> io::Result<()> {
    if nested.is_empty() {
        return Ok(());
    }
    let entries = index::list(plan)?.unwrap_or_default();
    let files = entries.iter().filter(|entry| entry.mode != 0o160_000).filter_map(IndexEntry::path_below);
    let tracked: HashSet<PathBuf> =
        files.flat_map(|path| path.ancestors().skip(1).map(Path::to_owned).collect::<Vec<_>>()).collect();
    for directory in nested.iter().filter(|directory| tracked.contains(*directory)) {
        remove::remove(&plan.project.join(directory).join(".git"))?;
    }
    Ok(())
}

/// Another tool's checkout below the project stays, except for entries that would block git when it checks whether this
/// is a repository.
fn sanitise_nested(root: &ArchiveRoot, git: &Path) -> io::Result<()> {
    for (name, kind) in root.list(git).unwrap_or_default() {
        let path = git.join(&name);
        let is_huge = || name == "commondir" && root.stat(&path).is_ok_and(|stat| stat.st_size > MAX_ATTRIBUTES_SIZE);
        if kind == FileKind::Special || kind == FileKind::File && is_huge() {
            root.remove(&path, kind)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn files_that_would_block_git_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("a/b")).expect("create the directory");
        fs::write(path(".gitignore"), "x").expect("write the file");
        fs::create_dir_all(path("a/nested/.git")).expect("create the directory");
        fs::write(path("a/nested/.git/config"), "x").expect("write the file");
        for name in [".gitattributes", "a/b/.gitignore", "a/pipe", "a/nested/.git/HEAD", "a/HEAD"] {
            nix::unistd::mkfifo(&path(name), nix::sys::stat::Mode::S_IRWXU).expect("create the named pipe");
        }
        File::create(path("a/.lfsconfig")).and_then(|file| file.set_len(4 << 30)).expect("create the file");
        File::create(path("a/nested/.git/commondir")).and_then(|file| file.set_len(4 << 30)).expect("create the file");
        assert_eq!(sanitise(directory.path()).expect("sanitise the worktree"), [PathBuf::from("a/nested")]);
        for (name, stays) in [
            (".gitignore", true),
            (".gitattributes", false),
            ("a/b/.gitignore", false),
            ("a/.lfsconfig", false),
            ("a/pipe", true),
            ("a/nested/.git/HEAD", false),
            ("a/nested/.git/commondir", false),
            ("a/nested/.git/config", true),
            ("a/HEAD", false),
        ] {
            assert_eq!(path(name).symlink_metadata().is_ok(), stays, "{name}");
        }
    }
}
