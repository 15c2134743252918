//! Git LFS: the agent fetches large files after the checkout, for the repository and its submodules.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use super::{SourcesError, SourcesPlan, environment, git};

/// Replaces the pointer files in a directory of the checkout with their content if the job requests it. Errors: the
/// exit status of git; an error never means that the checkout is damaged.
pub fn pull(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    if !is_wanted(plan) || !are_used(plan, directory) {
        return Ok(());
    }
    let mut command = git::command(plan, directory, &["lfs", "pull"]);
    if plan.temporary_in_container.is_some() {
        for name in environment::LFS_TRACE_VARIABLES {
            command.env_remove(name);
        }
    }
    match git::code(command.status()?) {
        0 => Ok(()),
        code => Err(SourcesError::Git(code)),
    }
}

/// As [`pull`], for a submodule. Its large files are stored with those of the repository, so that the next job finds
/// them.
pub fn pull_of_submodule(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    if !is_wanted(plan) || !are_used(plan, directory) {
        return Ok(());
    }
    let own = git::directory(plan, directory)?;
    if let Ok(below) = own.strip_prefix(fs::canonicalize(plan.project.join(".git"))?) {
        let up = "../".repeat(below.components().count());
        git::run_in(plan, directory, &["config", "lfs.storage", &format!("{up}lfs")])?;
    }
    pull(plan, directory)
}

fn is_wanted(plan: &SourcesPlan) -> bool {
    plan.lfs && crate::executor::shell::find_program("git-lfs").is_some()
}

/// Whether an attribute file of the checkout uses Git LFS. This check is much faster than `git lfs`.
fn are_used(plan: &SourcesPlan, directory: &Path) -> bool {
    let patterns = ["grep", "-q", "filter=lfs", "HEAD", "--", ":(glob)**/.gitattributes"];
    git::command(plan, directory, &patterns).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}
