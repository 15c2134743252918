//! Cleans the work trees of submodules after a job (`FF_ENABLE_JOB_CLEANUP`).
//!
//! The job may have written hooks and settings into the repositories of its submodules, and the agent keeps none of
//! them for the next job. So the agent makes each repository safe, as it does with the project's repository, uses it
//! once for cleaning, and removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::repository::RepositoryOrigin;
use super::worktree;
use super::{RESET, SourcesError, SourcesPlan, YELLOW, clean, git, remove, repository, submodule_trees, submodules};

/// The directory of a repository in which git keeps the repositories of its submodules.
const MODULES: &str = "modules";

/// The directory for the repositories of submodules, in the job's temporary directory.
const SET_ASIDE: &str = "mayfly.modules";

/// Limit for nested submodules.
const MAX_LEVELS: usize = 32;

/// Moves the repositories of submodules out of the project's repository, because [`repository::prepare`] removes them
/// there. Returns their directory, which need not exist.
pub fn set_aside(plan: &SourcesPlan) -> io::Result<PathBuf> {
    let aside = plan.temporary.join(SET_ASIDE);
    move_modules(&plan.project.join(".git"), &aside)?;
    Ok(aside)
}

fn move_modules(repository: &Path, aside: &Path) -> io::Result<()> {
    remove::remove(aside)?;
    let modules = repository.join(MODULES);
    match is_directory(repository) && is_directory(&modules) {
        true => fs::rename(modules, aside),
        false => Ok(()),
    }
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Cleans the submodules of one repository. The repositories of the submodules are below `modules`. A work tree without
/// a repository is kept for the next job. A work tree that cannot be cleaned is emptied. Errors: a work tree cannot be
/// moved or emptied.
pub fn clean_all(plan: &SourcesPlan, modules: &Path, level: usize) -> Result<(), SourcesError> {
    for (path, name) in submodules::names(plan)? {
        let directory = plan.project.join(&path);
        if !submodule_trees::clear_path_to(&plan.project, &path)? || fs::read_dir(&directory)?.next().is_none() {
            continue;
        }
        // The job ended before git had cloned the submodule: the work tree is that of an earlier job.
        if level == 1 && !is_directory(&modules.join(&name)) {
            submodule_trees::set_aside(plan, &plan.project, &[path])?;
            continue;
        }
        if let Err(error) = clean_one(plan, &directory, modules, &name, level) {
            println!("{YELLOW}WARNING: cannot clean the submodule {} ({error}); emptying it{RESET}", path.display());
            remove::empty(&directory)?;
        }
    }
    Ok(())
}

/// Cleans one submodule, whose repository is at `name` below `modules`.
fn clean_one(
    plan: &SourcesPlan,
    directory: &Path,
    modules: &Path,
    name: &Path,
    level: usize,
) -> Result<(), SourcesError> {
    let (own, moved) = (directory.join(".git"), modules.join(name));
    if !submodule_trees::clear_path_to(modules, name)? {
        return Err(SourcesError::Repository("its repository is missing".to_owned()));
    }
    remove::remove(&own)?;
    fs::rename(&moved, &own)?;
    move_modules(&own, &moved)?;
    let of_submodule = SourcesPlan { project: directory.to_owned(), settings: Vec::new(), ..plan.clone() };
    repository::record_format(&of_submodule)?;
    if repository::prepare(&of_submodule)? == RepositoryOrigin::Created {
        return Err(SourcesError::Repository("its repository is damaged".to_owned()));
    }
    worktree::sanitise(directory)?;
    clean::clean(&of_submodule, directory)?;
    git::run_in(&of_submodule, directory, &["reset", "--hard", "--quiet"])?;
    if level < MAX_LEVELS {
        clean_all(&of_submodule, &moved, level + 1)?;
    }
    Ok(remove::remove(&own)?)
}
