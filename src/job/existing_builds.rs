//! Finds build directories that the agent has not recorded: those of gitlab-runner, of an earlier version, or of an
//! agent whose state directory no longer exists.
//!
//! Only directories with the names that agents give them are found. A directory that a job chose (`GIT_CLONE_PATH`) has
//! no such name; the agent records it when the next job uses it. No link is followed, because jobs can change
//! everything below the root.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::build_dir::BuildDir;
use crate::archive::root::{ArchiveRoot, FileKind};

/// The maximum depth below a directory with a concurrent id: GitLab allows 20 nested groups.
const MAX_DEPTH: usize = 24;
/// The maximum number of directories that are found below one root.
const MAX_FOUND: usize = 10_000;

/// Where the jobs of a runner have their build directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Container jobs: `TOKEN/project-ID-N` below the root.
    Containers,
    /// Jobs in the shell: `TOKEN/N/GROUP/PROJECT` below each of these directories, with the user of the jobs.
    Shell(Vec<(PathBuf, Option<String>)>),
}

/// The build directories below `root`, with the time of their last change in seconds since the epoch.
pub fn find(root: &Path, layout: &Layout) -> Vec<(BuildDir, u64)> {
    let mut found = Vec::new();
    match layout {
        Layout::Containers => find_of_containers(root, &mut found),
        Layout::Shell(places) => {
            for (trusted, user) in places {
                find_of_shell(root, trusted, user.as_ref(), &mut found);
            }
        }
    }
    found
}

fn find_of_containers(root: &Path, found: &mut Vec<(BuildDir, u64)>) {
    let Ok(opened) = ArchiveRoot::open(root) else { return };
    for token in directories(&opened, Path::new("")) {
        for name in directories(&opened, Path::new(&token)).iter().filter(|name| is_of_project(name)) {
            let below = Path::new(&token).join(name);
            let dir = BuildDir { root: root.to_owned(), trusted: root.join(&below), below: PathBuf::new(), user: None };
            add(&opened, dir, &below, found);
        }
    }
}

fn find_of_shell(root: &Path, trusted: &Path, user: Option<&String>, found: &mut Vec<(BuildDir, u64)>) {
    let Ok(opened) = ArchiveRoot::open(trusted) else { return };
    for token in directories(&opened, Path::new("")) {
        let numbers = directories(&opened, Path::new(&token)).into_iter().filter(|name| is_concurrent_id(name));
        let mut waiting: Vec<(PathBuf, usize)> = numbers.map(|number| (Path::new(&token).join(number), 0)).collect();
        while let Some((directory, depth)) = waiting.pop() {
            let names = directories(&opened, &directory);
            for name in names.iter().filter(|name| Path::new(name).extension() != Some(OsStr::new("tmp"))) {
                let below = directory.join(name);
                let temporary = temporary_name(name);
                // A directory is a project if a directory for its temporary files is beside it.
                if names.contains(&temporary) {
                    let (root, trusted) = (root.to_owned(), trusted.to_owned());
                    let dir = BuildDir { root, trusted, below, user: user.cloned() };
                    add(&opened, dir, &directory.join(temporary), found);
                } else if depth < MAX_DEPTH {
                    waiting.push((below, depth + 1));
                }
            }
        }
    }
}

/// Adds a directory with the time at which the directory `changed` was last changed.
fn add(opened: &ArchiveRoot, dir: BuildDir, changed: &Path, found: &mut Vec<(BuildDir, u64)>) {
    if found.len() < MAX_FOUND
        && let Ok(stat) = opened.stat(changed)
    {
        found.push((dir, u64::try_from(stat.st_mtime).unwrap_or(0)));
    }
}

/// The names of the directories in a directory; none if it cannot be listed.
fn directories(opened: &ArchiveRoot, directory: &Path) -> BTreeSet<OsString> {
    let entries = opened.list(directory).unwrap_or_default();
    entries.into_iter().filter(|(_, kind)| *kind == FileKind::Directory).map(|(name, _)| name).collect()
}

/// The name of the directory beside a project for its temporary files.
fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    temporary
}

/// Whether a directory has the name of a concurrent id: `0`, `12-protected`.
fn is_concurrent_id(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    is_number(name.strip_suffix("-protected").unwrap_or(name))
}

/// Whether a directory has the name of a container job's project: `project-9-0`, `project-9-0-protected`.
fn is_of_project(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.strip_prefix("project-")).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(project, number)| is_number(project) && is_concurrent_id(OsStr::new(number)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn finds_the_directories_of_projects_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        for path in [
            "token/0/group/app/src/inner",
            "token/0/group/app/src/inner.tmp",
            "token/0/group/app.tmp",
            "token/0/group/deep/er/lib",
            "token/0/group/deep/er/lib.tmp",
            "token/0-protected/group/app",
            "token/0-protected/group/app.tmp",
            "token/0/group/without",
            "token/data/group/app",
            "token/data/group/app.tmp",
            "token/project-9-0/group/app",
            "token/project-9-1-protected/group/app",
            "token/project-x-0",
            "token/job-7/group/app",
            "outside/0/group/app",
            "outside/0/group/app.tmp",
        ] {
            fs::create_dir_all(root.join("builds").join(path)).expect("create the directory");
        }
        fs::rename(root.join("builds/outside"), root.join("outside")).expect("rename the file");
        symlink("../outside", root.join("builds/link")).expect("the link");
        let builds = root.join("builds");
        let mut of_shell: Vec<PathBuf> = find(&builds, &Layout::Shell(vec![(builds.clone(), Some("ci".to_owned()))]))
            .into_iter()
            .map(|(dir, changed)| {
                assert!(dir.user.as_deref() == Some("ci") && changed > 0, "{dir:?}");
                dir.below
            })
            .collect();
        of_shell.sort_unstable();
        let expected = ["token/0/group/app", "token/0/group/deep/er/lib", "token/0-protected/group/app"];
        assert_eq!(of_shell, expected.map(PathBuf::from));
        let mut of_containers: Vec<PathBuf> =
            find(&builds, &Layout::Containers).into_iter().map(|(dir, _)| dir.trusted).collect();
        of_containers.sort_unstable();
        assert_eq!(of_containers, ["token/project-9-0", "token/project-9-1-protected"].map(|name| builds.join(name)));
        assert!(find(&root.join("missing"), &Layout::Containers).is_empty());
    }
}
