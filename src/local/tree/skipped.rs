//! The files that a sparse checkout leaves out of the work tree. Jobs get them, as on GitLab: git writes them from the
//! objects of the repository.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::stamp::Stamp;
use crate::job::sources::remove::remove;
use crate::local::checkout::{git, output};

/// The entries of the index for the files that are left out, by path: `MODE OBJECT STAGE<tab>PATH`.
#[derive(Debug, Default)]
pub struct SkippedFiles(HashMap<PathBuf, Vec<u8>>);

impl SkippedFiles {
    /// Asks git for the files that are not in the work tree.
    pub fn list(root: &Path) -> Result<Self, String> {
        let mut command = git(root);
        command.args(["ls-files", "-z", "-s", "-t", "--full-name", ":/"]);
        let staged = output(command)?;
        let entries = staged.split(|byte| *byte == 0).filter_map(|line| {
            let entry = line.strip_prefix(b"S ").filter(|entry| !entry.starts_with(b"160000 "))?;
            let tab = entry.iter().position(|byte| *byte == b'\t')?;
            let path = PathBuf::from(OsStr::from_bytes(&entry[tab + 1..]));
            (!root.join(&path).exists()).then(|| (path, entry.to_vec()))
        });
        Ok(Self(entries.collect()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The paths, with a stamp that changes with the content.
    pub fn stamps(&self) -> impl Iterator<Item = (&Path, Stamp)> {
        self.0.iter().map(|(path, entry)| (path.as_path(), Stamp::of_content(entry)))
    }

    /// Writes the files among `missing` below `project`, whose directories exist. `scratch` is the path of a temporary
    /// index. Returns the paths of the written files.
    pub fn write(&self, root: &Path, project: &Path, scratch: &Path, missing: &[&Path]) -> io::Result<Vec<PathBuf>> {
        let wanted: Vec<(&Path, &Vec<u8>)> =
            missing.iter().filter_map(|path| Some((*path, self.0.get(*path)?))).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        remove(scratch)?;
        let entries = wanted.iter().flat_map(|(_, entry)| entry.iter().copied().chain([0])).collect::<Vec<u8>>();
        let run_on_index = |arguments: &[&OsStr], input: Option<&[u8]>| {
            let mut command = git(root);
            command.args(["-c", "core.sparseCheckout=false"]).args(arguments).env("GIT_INDEX_FILE", scratch);
            run(command, input, scratch)
        };
        run_on_index(&["update-index", "-z", "--index-info"].map(OsStr::new), Some(&entries))?;
        let mut prefix = OsStr::new("--prefix=").to_owned();
        prefix.push(project);
        prefix.push("/");
        run_on_index(&["checkout-index".as_ref(), "-a".as_ref(), "-f".as_ref(), "-q".as_ref(), &prefix], None)?;
        remove(scratch)?;
        let paths = wanted.into_iter().map(|(path, _)| path);
        Ok(paths.filter(|path| project.join(path).symlink_metadata().is_ok()).map(Path::to_owned).collect())
    }

    /// Marks the files as present in the index of the repository of `project`, so that git sees a job's changes to
    /// them.
    pub fn mark_as_present(&self, project: &Path, scratch: &Path) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let paths = self.0.keys().flat_map(|path| path.as_os_str().as_bytes().iter().copied().chain([0]));
        let mut command = git(project);
        command.args(["update-index", "-z", "--no-skip-worktree", "--stdin"]);
        run(command, Some(&paths.collect::<Vec<u8>>()), scratch)
    }
}

/// Runs a git command with this input. The input is a file beside `scratch`, not a pipe: git may write output before it
/// has read all input, so a pipe could block both sides.
fn run(mut command: std::process::Command, input: Option<&[u8]>, scratch: &Path) -> io::Result<()> {
    let file = scratch.with_extension("input");
    if let Some(input) = input {
        fs::write(&file, input)?;
        command.stdin(File::open(&file)?);
    }
    let done = output(command).map(drop).map_err(io::Error::other);
    remove(&file)?;
    done
}
