//! The developer's checkout: its location, and the files that a job gets. The checkout is only read.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::git_dir::{self, GitDir};

/// A git work tree and its repository.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// The top of the work tree.
    pub root: PathBuf,
    /// The object directory, which jobs read.
    pub objects: PathBuf,
    /// The index of this work tree.
    pub index: PathBuf,
    /// The file `shallow` of the repository, which lists where a shallow clone ends.
    pub shallow: PathBuf,
}

/// A file that git tracks or, with `--untracked`, does not ignore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// The path below the root of the work tree.
    pub path: PathBuf,
    /// Whether the path is the repository of a submodule.
    pub is_submodule: bool,
    /// Whether the file is left out of the work tree on purpose (a sparse checkout).
    pub is_skipped: bool,
}

/// Which files of a work tree jobs get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSet {
    /// The files in the index.
    Tracked,
    /// The files in the index, and all others that git does not ignore (`--untracked`).
    NotIgnored,
}

/// A git command that takes no locks and does not refresh the index of the developer's repository.
pub fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).env("GIT_OPTIONAL_LOCKS", "0").env("LC_ALL", "C");
    command
}

/// The output of a git command. Fails with the error text of git.
pub fn output(mut command: Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|error| format!("cannot start git: {error}; install git"))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

impl Checkout {
    /// Finds the checkout that contains `directory`.
    pub fn find(directory: &Path) -> Result<Self, String> {
        if let Some(GitDir { root, path }) = GitDir::find(directory) {
            let [objects, index, shallow] = ["objects", "index", "shallow"].map(|name| path.join(name));
            return Ok(Self { root, objects, index, shallow });
        }
        let mut command = git(directory);
        command.args(["rev-parse", "--path-format=absolute", "--show-toplevel"]);
        for name in ["objects", "index", "shallow"] {
            command.args(["--git-path", name]);
        }
        let no_checkout = ["not a git repository", "must be run in a work tree"];
        let answer = output(command).map_err(|why| match no_checkout.iter().any(|known| why.contains(known)) {
            true => format!("{} is not in a git checkout; run `mayfly exec` inside one", directory.display()),
            false => why,
        })?;
        let mut lines = answer.split(|byte| *byte == b'\n').map(|line| PathBuf::from(OsStr::from_bytes(line)));
        let mut next = || lines.next().filter(|path| path.is_absolute());
        let paths = (next(), next(), next(), next());
        let (Some(root), Some(objects), Some(index), Some(shallow)) = paths else {
            return Err(format!("{}: git reports no work tree; a bare repository has none", directory.display()));
        };
        Ok(Self { root, objects, index, shallow })
    }

    /// The files of the work tree.
    pub fn files(&self, set: FileSet) -> Result<Vec<ListedFile>, String> {
        list(&self.root, set)
    }
}

/// The files of the whole work tree that contains `directory`, in the order of the index.
pub fn list(directory: &Path, set: FileSet) -> Result<Vec<ListedFile>, String> {
    let own = GitDir::find(directory).and_then(|found| git_dir::files_in_index(&found.path.join("index")));
    let mut files = own.map_or_else(|| list_by_git(directory), Ok)?;
    if set == FileSet::NotIgnored {
        let mut command = git(directory);
        command.args(["ls-files", "-z", "--others", "--exclude-standard", "--full-name", ":/"]);
        let others = output(command)?;
        let paths = others.split(|byte| *byte == 0).filter(|path| !path.is_empty());
        files.extend(paths.map(|path| ListedFile {
            path: OsStr::from_bytes(path).into(),
            is_submodule: path.ends_with(b"/"),
            is_skipped: false,
        }));
    }
    Ok(files)
}

fn list_by_git(directory: &Path) -> Result<Vec<ListedFile>, String> {
    let mut command = git(directory);
    command.args(["ls-files", "-z", "-s", "-t", "--full-name", ":/"]);
    let staged = output(command)?;
    let mut files: Vec<ListedFile> = staged.split(|byte| *byte == 0).filter_map(staged_file).collect();
    // A file with a merge conflict has up to three entries.
    files.dedup();
    Ok(files)
}

/// Parses `TAG MODE OBJECT STAGE<tab>PATH`.
fn staged_file(line: &[u8]) -> Option<ListedFile> {
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    let path = OsStr::from_bytes(&line[tab + 1..]).into();
    Some(ListedFile {
        path,
        is_submodule: line[..tab].get(2..).is_some_and(|rest| rest.starts_with(b"160000 ")),
        is_skipped: line.starts_with(b"S "),
    })
}
