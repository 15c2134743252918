//! Reads a developer's repository without git, because starting git takes longer than all other work before the first
//! job.
//!
//! Reads only plain repositories. In all other cases (work trees of `git worktree`, submodules, format
//! extensions, settings that redirect git, damaged files) the functions return `None`, and the caller runs git.

mod commit;
mod index;
mod references;
mod settings;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

pub use commit::Commit;
pub use index::files as files_in_index;
pub use settings::effective;

/// Environment variables that make git use other files.
const REDIRECTIONS: [&str; 13] = [
    "GIT_CEILING_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];
/// Parts of a repository's configuration that change its format or the place of its work tree.
const UNUSUAL_SETTINGS: [&str; 4] = ["[extensions", "[include", "worktree", "bare = true"];

/// The repository of a plain checkout: the directory `.git` at its top.
pub struct GitDir {
    /// The top of the work tree.
    pub root: PathBuf,
    /// The repository.
    pub path: PathBuf,
}

impl GitDir {
    /// Finds the repository of the checkout that contains `directory`, by the rules of git.
    pub fn find(directory: &Path) -> Option<Self> {
        if REDIRECTIONS.iter().any(|name| std::env::var_os(name).is_some()) {
            return None;
        }
        let directory = directory.canonicalize().ok()?;
        let device = directory.metadata().ok()?.dev();
        for root in directory.ancestors() {
            let metadata_of_root = root.metadata().ok()?;
            if metadata_of_root.dev() != device || is_git_dir(root) {
                return None;
            }
            let path = root.join(".git");
            match path.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(metadata) if metadata.is_dir() => {
                    // Git trusts a repository of another user only if the configuration names it.
                    let own = Uid::effective().as_raw();
                    let is_own = metadata.uid() == own && metadata_of_root.uid() == own;
                    let is_usable = is_own && is_git_dir(&path) && is_plain(&path);
                    return is_usable.then(|| Self { root: root.to_owned(), path });
                }
                _ => return None,
            }
        }
        None
    }
}

/// Whether git would take a directory for a repository.
fn is_git_dir(place: &Path) -> bool {
    place.join("HEAD").exists() && place.join("objects").is_dir() && place.join("refs").is_dir()
}

/// Whether the repository has none of the features that only git can read.
fn is_plain(repository: &Path) -> bool {
    let Ok(config) = fs::read_to_string(repository.join("config")) else { return false };
    let config = config.to_ascii_lowercase();
    let features = ["commondir", "info/grafts", "refs/replace"].map(|name| repository.join(name));
    !UNUSUAL_SETTINGS.iter().any(|part| config.contains(part)) && !features.iter().any(|path| path.exists())
}

/// Whether a text is an object id (SHA-1; other formats are an extension).
fn is_object_id(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}
