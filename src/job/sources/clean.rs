//! Removes files that earlier jobs left in a checkout, with `git clean` and the job's options.
//!
//! Build tools leave directories without write permission (for example Go's module cache). Git cannot empty them unless
//! the job's user is root. The agent makes such directories writable, but only those from which files are removed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use super::git::{Echo, GitOutcome};
use super::{RESET, SourcesError, SourcesPlan, YELLOW, fault, git};
use crate::archive::root::{ArchiveRoot, FileKind, Links};

/// Limit for the list of files, in bytes.
const MAX_LIST_SIZE: u64 = 512 << 20;

/// Cleans a directory of the checkout with `GIT_CLEAN_FLAGS`. Errors: a file cannot be removed.
pub fn clean(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    if plan.clean_flags.is_empty() {
        return Ok(());
    }
    let flags = plan.clean_flags.iter().map(String::as_str);
    let arguments: Vec<&str> = ["clean"].into_iter().chain(flags).collect();
    let first = git::run_with_messages(plan, directory, &arguments, Echo::No)?;
    if first.is_ok() {
        eprint!("{}", first.messages);
        return Ok(());
    }
    let changed =
        make_unreadable_accessible(directory)? + make_parents_accessible(directory, untracked(plan, directory)?)?;
    warn_of_changed_permissions(changed);
    let second = if changed > 0 { git::run_with_messages(plan, directory, &arguments, Echo::No)? } else { first };
    if second.is_ok() { Ok(()) } else { Err(clean_error(&second)) }
}

fn clean_error(outcome: &GitOutcome) -> SourcesError {
    SourcesError::WorkTree(fault::last_line(&outcome.messages))
}

/// Warns once for all directories.
pub fn warn_of_changed_permissions(changed: usize) {
    if changed > 0 {
        println!("{YELLOW}WARNING: made {changed} read-only directories writable to clean the checkout{RESET}");
    }
}

/// The files that `git clean` removes. A path with a slash at its end is another repository with all its files.
fn untracked(plan: &SourcesPlan, directory: &Path) -> Result<Vec<PathBuf>, SourcesError> {
    let arguments = list_arguments(&plan.clean_flags);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = git::command(plan, directory, &arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut list = Vec::new();
    let read = child.stdout.take().map(|stdout| stdout.take(MAX_LIST_SIZE).read_to_end(&mut list));
    if list.len() as u64 == MAX_LIST_SIZE {
        child.kill()?;
    }
    child.wait()?;
    read.transpose()?;
    Ok(git::paths(&list))
}

/// The arguments with which `git ls-files` lists the files that `git clean` removes with these options.
fn list_arguments(flags: &[String]) -> Vec<String> {
    let (mut ignored_too, mut ignored_only, mut excluded, mut paths) = (false, false, Vec::new(), Vec::new());
    let mut words = flags.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            paths.extend(words.by_ref().cloned());
        } else if let Some(long) = word.strip_prefix("--") {
            match long.strip_prefix("exclude") {
                Some("") => excluded.extend(words.next().cloned()),
                Some(value) => excluded.push(value.trim_start_matches('=').to_owned()),
                None => {}
            }
        } else if let Some(letters) = word.strip_prefix('-') {
            let (letters, pattern) = letters.split_once('e').map_or((letters, None), |(l, rest)| (l, Some(rest)));
            ignored_too |= letters.contains('x');
            ignored_only |= letters.contains('X');
            match pattern {
                Some("") => excluded.extend(words.next().cloned()),
                pattern => excluded.extend(pattern.map(str::to_owned)),
            }
        } else {
            paths.push(word.clone());
        }
    }
    let mut arguments: Vec<String> = ["ls-files", "-z", "--others"].map(str::to_owned).to_vec();
    if ignored_only {
        arguments.push("--ignored".to_owned());
    }
    if !ignored_too {
        arguments.push("--exclude-standard".to_owned());
    }
    arguments.extend(excluded.into_iter().map(|pattern| format!("--exclude={pattern}")));
    arguments.push("--".to_owned());
    arguments.extend(paths);
    arguments
}

/// Gives the owner all permissions on the parent directories of these files, up to `top`. Returns the number of
/// directories that were changed. Symbolic links are not followed.
pub fn make_parents_accessible(top: &Path, files: impl IntoIterator<Item = PathBuf>) -> io::Result<usize> {
    let root = ArchiveRoot::open(top)?;
    let mut changed = make_accessible(&root, Path::new("")).map_or(0, usize::from);
    let mut seen = BTreeSet::new();
    let mut repositories = Vec::new();
    for file in files {
        if file.as_os_str().as_encoded_bytes().ends_with(b"/") {
            repositories.push(file.clone());
        }
        let mut above: Vec<&Path> = file.ancestors().skip(1).collect();
        // The outermost directory is first: a directory is accessible only after its parents are.
        above.reverse();
        for directory in above {
            if !directory.as_os_str().is_empty() && seen.insert(directory.to_owned()) {
                changed += make_accessible(&root, directory).map_or(0, usize::from);
            }
        }
    }
    for repository in repositories {
        changed += make_accessible_below(&root, repository, 0o700)?;
    }
    Ok(changed)
}

/// Gives the owner all permissions on directories that cannot be read or entered: git cannot list their files.
fn make_unreadable_accessible(top: &Path) -> io::Result<usize> {
    make_accessible_below(&ArchiveRoot::open(top)?, PathBuf::new(), 0o500)
}

/// Visits the directories below `from` and makes those accessible that lack some of the `wanted` permissions.
fn make_accessible_below(root: &ArchiveRoot, from: PathBuf, wanted: u32) -> io::Result<usize> {
    let mut changed = 0;
    let mut waiting = vec![from];
    while let Some(directory) = waiting.pop() {
        changed += usize::from(ensure_permissions(root, &directory, wanted).unwrap_or(false));
        // A directory that still cannot be listed has a path that is too long, or another owner.
        let Ok(entries) = root.list(&directory) else { continue };
        let inner = entries.into_iter().filter(|(name, kind)| *kind == FileKind::Directory && name != ".git");
        waiting.extend(inner.map(|(name, _)| directory.join(name)));
    }
    Ok(changed)
}

fn make_accessible(root: &ArchiveRoot, directory: &Path) -> io::Result<bool> {
    ensure_permissions(root, directory, 0o700)
}

/// Gives the owner all permissions on a directory that lacks some of the `wanted` ones. Returns whether the permissions
/// were changed.
fn ensure_permissions(root: &ArchiveRoot, directory: &Path, wanted: u32) -> io::Result<bool> {
    let fd = root.open_beneath(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Links::Refused)?;
    let mode = fstat(&fd)?.st_mode & 0o7777;
    if mode & wanted == wanted {
        return Ok(false);
    }
    let own_path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fs::set_permissions(own_path, fs::Permissions::from_mode(mode | 0o700))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_equals_the_files_that_git_would_clean() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let git = |arguments: &[&str]| {
            let output = std::process::Command::new("git").args(arguments).current_dir(directory.path()).output();
            let output = output.expect("run git");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            output.stdout
        };
        git(&["init", "-q"]);
        for name in ["a/b/x.o", "a/b/y", "build/dep/z", "kept/k", "e"] {
            fs::create_dir_all(path(name).parent().expect("a parent")).expect("create the directory");
            fs::write(path(name), "").expect("write the file");
        }
        fs::write(path(".gitignore"), "*.o\n").expect("write the file");
        git(&["add", ".gitignore"]);
        for (flags, expected) in [
            ("-ffdx", "a/b/x.o a/b/y build/dep/z e kept/k"),
            ("-ffd", "a/b/y build/dep/z e kept/k"),
            ("-ffdX", "a/b/x.o"),
            ("-ffdx -e kept/ --exclude=build", "a/b/x.o a/b/y e"),
            ("-ffdxekept", "a/b/x.o a/b/y build/dep/z e"),
            ("-ffdx --exclude kept -- a build", "a/b/x.o a/b/y build/dep/z"),
            ("-q -d -f -x a", "a/b/x.o a/b/y"),
        ] {
            let flags: Vec<String> = flags.split(' ').map(str::to_owned).collect();
            let arguments = list_arguments(&flags);
            let listed = git(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            let listed: Vec<String> = git::paths(&listed).iter().map(|path| path.display().to_string()).collect();
            assert_eq!(listed.join(" "), expected, "{flags:?}");
        }
    }

    #[test]
    fn directories_of_files_become_writable_and_links_are_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let mode = |name: &str| fs::metadata(path(name)).expect("the file must exist").permissions().mode() & 0o777;
        for name in ["top/a/b", "top/other", "top/repo/inner", "outside"] {
            fs::create_dir_all(path(name)).expect("create the directory");
        }
        std::os::unix::fs::symlink("../outside", path("top/link")).expect("create the link");
        for name in ["top/a/b", "top/a", "top/other", "top/repo/inner", "top/repo", "outside"] {
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o555)).expect("set the permissions");
        }
        let files = ["a/b/file", "link/file", "repo/"].map(PathBuf::from);
        assert_eq!(make_parents_accessible(&path("top"), files).expect("open the directories"), 4);
        for (name, expected) in [
            ("top/a/b", 0o755),
            ("top/a", 0o755),
            ("top/other", 0o555),
            ("top/repo", 0o755),
            ("top/repo/inner", 0o755),
            ("outside", 0o555),
        ] {
            assert_eq!(mode(name), expected, "{name}");
        }
    }
}
