//! Keeps the work trees of submodules for the next job.
//!
//! Git clones a submodule only into an empty directory, and the agent clones it again for each job, because git would
//! run hooks and settings that an earlier job wrote into the submodule's repository. But the files of the submodule
//! must stay, since incremental builds use them. So the agent moves the work tree below `.git` and moves it back after
//! the clone. In between no git command sees it, and a job without submodules does not find it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::index::{self, IndexEntry};
use super::record::CheckoutRecord;
use super::{RESET, SourcesError, SourcesPlan, YELLOW, clean, git, kept, remove, unchanged};
use crate::digest::sha256;

/// Moves the work trees of one repository's submodules below `.git`. `submodules`: their paths below `directory`. A
/// symbolic link on the way to a work tree is removed, not followed. Errors: a directory cannot be moved.
pub fn set_aside(plan: &SourcesPlan, directory: &Path, submodules: &[PathBuf]) -> io::Result<()> {
    // Moving a directory requires write permission on it and on its parent.
    clean::make_parents_accessible(directory, submodules.iter().map(|submodule| submodule.join("any")))?;
    for submodule in submodules {
        let work_tree = directory.join(submodule);
        if !clear_path_to(directory, submodule)? || fs::read_dir(&work_tree)?.next().is_none() {
            continue;
        }
        let saved = saved_tree(plan, &work_tree);
        // An interrupted job has left a saved work tree. The files that were written to the new directory since then
        // are discarded.
        if saved.symlink_metadata().is_ok() {
            remove::empty(&work_tree)?;
            continue;
        }
        if let Some(above) = saved.parent() {
            fs::create_dir_all(above)?;
        }
        fs::rename(&work_tree, &saved)?;
        fs::create_dir(&work_tree)?;
    }
    Ok(())
}

/// Moves the saved work tree of a submodule back, in place of the one that git has just made, and resets its tracked
/// files to the commit. Errors: see [`SourcesError`].
pub fn put_back(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    let saved = saved_tree(plan, directory);
    if !saved.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    remove::remove(&saved.join(".git"))?;
    fs::rename(directory.join(".git"), saved.join(".git"))?;
    remove::remove(directory)?;
    fs::rename(&saved, directory)?;
    match restore(plan, directory) {
        Err(SourcesError::WorkTree(why)) => {
            println!(
                "{YELLOW}WARNING: the files of an earlier job cannot be reused ({why}); starting with an empty \
                 directory{RESET}"
            );
            remove::empty_but(directory, ".git")?;
            reset(plan, directory)
        }
        outcome => outcome,
    }
}

/// After a failure, moves the saved work trees back unchanged. They replace the directories that git has created for
/// these submodules. `directories`: parents first. Errors: a directory cannot be moved.
pub fn restore_all(plan: &SourcesPlan, directories: &[PathBuf]) -> io::Result<()> {
    for directory in directories {
        let saved = saved_tree(plan, directory);
        let Ok(below) = directory.strip_prefix(&plan.project) else { continue };
        let is_saved = saved.symlink_metadata().is_ok_and(|found| found.is_dir());
        if is_saved && below.parent().is_some_and(|above| clear_path_to(&plan.project, above).unwrap_or(false)) {
            remove::remove(directory)?;
            fs::rename(&saved, directory)?;
        }
    }
    Ok(())
}

/// The repository of the submodule is new, so its index does not describe the files of the saved work tree. Adds the
/// files whose content is that of their objects to the index; git writes the others.
fn restore(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    let of_submodule = SourcesPlan { project: directory.to_owned(), ..plan.clone() };
    let Some(entries) = index::list(&of_submodule)? else { return reset(plan, directory) };
    let inner = entries.iter().filter(|entry| entry.mode == 0o160_000).filter_map(IndexEntry::path_below);
    for submodule in inner.collect::<Vec<_>>() {
        if clear_path_to(directory, &submodule)? {
            remove::remove(&directory.join(submodule).join(".git"))?;
        }
    }
    let known = unchanged::find(&of_submodule, &entries, &CheckoutRecord::default())?;
    index::write(&of_submodule, &git::directory(plan, directory)?.join("index"), &entries, &known)?;
    if reset(plan, directory).is_err() {
        let tracked = entries.iter().filter_map(IndexEntry::path_below);
        clean::warn_of_changed_permissions(clean::make_parents_accessible(directory, tracked)?);
        reset(plan, directory)?;
    }
    clean::clean(plan, directory)
}

fn reset(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    git::run_in(plan, directory, &["-c", "submodule.recurse=false", "reset", "--hard", "--quiet"])
        .map_err(|_| SourcesError::WorkTree("git reset --hard failed".to_owned()))
}

/// Removes saved work trees except those of `directories`. Errors: a work tree cannot be removed.
pub fn forget_others(plan: &SourcesPlan, directories: &[PathBuf]) -> io::Result<()> {
    let kept: Vec<PathBuf> = directories.iter().map(|directory| saved_tree(plan, directory)).collect();
    let all = plan.project.join(".git").join(kept::SUBMODULE_TREES);
    if !all.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    for entry in fs::read_dir(all)? {
        let path = entry?.path();
        if !kept.contains(&path) {
            remove::remove(&path)?;
        }
    }
    Ok(())
}

/// The path below `.git` where the work tree of the submodule at `directory` is saved.
fn saved_tree(plan: &SourcesPlan, directory: &Path) -> PathBuf {
    let below = directory.strip_prefix(&plan.project).unwrap_or(directory);
    let name = sha256(below.as_os_str().as_encoded_bytes());
    plan.project.join(".git").join(kept::SUBMODULE_TREES).join(name)
}

/// Removes a symbolic link or a file on the way to the directory of a submodule. Returns whether the directory exists.
pub fn clear_path_to(directory: &Path, submodule: &Path) -> io::Result<bool> {
    let mut path = directory.to_owned();
    for part in submodule.components() {
        let Component::Normal(part) = part else { return Ok(false) };
        path.push(part);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                remove::remove(&path)?;
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
