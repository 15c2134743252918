//! Work trees of submodules, from one job to the next.
//!
//! Git fetches a submodule into an empty directory only, and the agent has it fetched anew for each job: what an earlier
//! job wrote into the repository of a submodule would be run. The files of the submodule stay all the same, since builds
//! go on from them: the work tree waits below `.git` until the new repository is there, and then takes its place. Until
//! then no git command sees it, and a job that wants no submodules does not find it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use ring::digest::{SHA256, digest};

use super::record::CheckoutRecord;
use super::{RESET, SourcesError, SourcesPlan, YELLOW, clean, git, index, remove, repository};

/// The directory below `.git` where they wait, named by the hashes of their paths.
pub const NAME: &str = "mayfly-submodules";

/// Moves the work trees of submodules of one repository out of the way. `links`: their paths below `directory`. A link on
/// the way to one is removed, and not followed. Errors: a directory cannot be moved.
pub fn set_aside(plan: &SourcesPlan, directory: &Path, links: &[PathBuf]) -> io::Result<()> {
    // A directory is moved only by those who may write to it and to the one above it.
    clean::open_parents(directory, links.iter().map(|link| link.join("any")))?;
    for link in links {
        let place = directory.join(link);
        if !enter(directory, link)? || fs::read_dir(&place)?.next().is_none() {
            continue;
        }
        let waiting = place_of(plan, &place);
        // One that waits already is that of a job that was cut off: since then only its directory was filled.
        if waiting.symlink_metadata().is_ok() {
            remove::empty(&place)?;
            continue;
        }
        if let Some(above) = waiting.parent() {
            fs::create_dir_all(above)?;
        }
        fs::rename(&place, &waiting)?;
        fs::create_dir(&place)?;
    }
    Ok(())
}

/// Puts the waiting work tree of a submodule in the place of the one that git has just made, and makes its tracked files
/// what the commit says. Errors: see [`SourcesError`].
pub fn put_back(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    let waiting = place_of(plan, directory);
    if !waiting.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    remove::remove(&waiting.join(".git"))?;
    fs::rename(directory.join(".git"), waiting.join(".git"))?;
    remove::remove(directory)?;
    fs::rename(&waiting, directory)?;
    match restore(plan, directory) {
        Err(SourcesError::WorkTree(why)) => {
            println!("{YELLOW}WARNING: the files of an earlier job cannot be reused ({why}); starting afresh{RESET}");
            remove::empty_but(directory, ".git")?;
            reset(plan, directory)
        }
        outcome => outcome,
    }
}

/// The repository is new and its index tells of other files: those whose content is that of their objects are entered,
/// the others are written by git.
fn restore(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    let of_submodule = SourcesPlan { project: directory.to_owned(), ..plan.clone() };
    let Some(entries) = index::list(&of_submodule)? else { return reset(plan, directory) };
    let inner = entries.iter().filter(|entry| entry.mode == 0o160_000).filter_map(index::IndexEntry::path_below);
    for link in inner.collect::<Vec<_>>() {
        if enter(directory, &link)? {
            remove::remove(&directory.join(link).join(".git"))?;
        }
    }
    let known = index::find_unchanged(&of_submodule, &entries, &CheckoutRecord::default())?;
    index::write(&of_submodule, &git::directory(plan, directory)?.join("index"), &entries, &known)?;
    if reset(plan, directory).is_err() {
        let tracked = entries.iter().filter_map(index::IndexEntry::path_below);
        clean::warn_of_opened(clean::open_parents(directory, tracked)?);
        reset(plan, directory)?;
    }
    clean::clean(plan, directory)
}

fn reset(plan: &SourcesPlan, directory: &Path) -> Result<(), SourcesError> {
    git::run_in(plan, directory, &["-c", "submodule.recurse=false", "reset", "--hard", "--quiet"])
        .map_err(|_| SourcesError::WorkTree("git reset --hard failed".to_owned()))
}

/// Removes the work trees that wait and are not those of `directories`. Errors: one cannot be removed.
pub fn forget_others(plan: &SourcesPlan, directories: &[PathBuf]) -> io::Result<()> {
    let kept: Vec<PathBuf> = directories.iter().map(|directory| place_of(plan, directory)).collect();
    let all = plan.project.join(".git").join(NAME);
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

/// Whether a name below [`NAME`] is one of ours.
pub fn is_name(name: &str) -> bool {
    repository::is_hex(name, &[64])
}

fn place_of(plan: &SourcesPlan, directory: &Path) -> PathBuf {
    let below = directory.strip_prefix(&plan.project).unwrap_or(directory);
    let hash = digest(&SHA256, below.as_os_str().as_encoded_bytes());
    plan.project.join(".git").join(NAME).join(index::hex(hash.as_ref()))
}

/// Whether the directory of a submodule is there. A link on the way to it is removed, as is a file in its place.
fn enter(directory: &Path, link: &Path) -> io::Result<bool> {
    let mut place = directory.to_owned();
    for part in link.components() {
        let Component::Normal(part) = part else { return Ok(false) };
        place.push(part);
        match place.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                remove::remove(&place)?;
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
