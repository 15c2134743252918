//! The `.git` directory, made and made safe by ourselves before any git command reads it.
//!
//! An earlier job may have left hooks, a configuration with filters, fsmonitor or includes, alternates that point
//! elsewhere, or no directory at all but a file or a link. The configuration is therefore never read, only written, and
//! everything that git would run or follow is removed.

use std::fs;
use std::io;
use std::path::Path;

use super::Plan;
use super::remove;

/// What a repository may hold below `.git` from an earlier job; all else is removed.
const KEPT: [&str; 10] =
    ["FETCH_HEAD", "HEAD", "ORIG_HEAD", "config", "index", "lfs", "objects", "packed-refs", "refs", "shallow"];

/// Whether there was a repository to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Made now.
    Fresh,
    /// From an earlier job.
    Reused,
}

/// Makes `.git` what it should be. Errors: the directory cannot be written.
pub fn prepare(plan: &Plan) -> io::Result<Before> {
    let git = plan.project.join(".git");
    let before = if is_sound(&git, plan) { Before::Reused } else { Before::Fresh };
    match before {
        Before::Reused => sanitise(&git)?,
        Before::Fresh => {
            remove::remove(&git)?;
            create(&git)?;
        }
    }
    fs::write(git.join("config"), configuration(plan))?;
    Ok(before)
}

/// True for a directory whose parts are what they should be: nothing is reached through a link.
fn is_sound(git: &Path, plan: &Plan) -> bool {
    let is_directory = |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let is_file_or_none = |path: &Path| match path.symlink_metadata() {
        Ok(metadata) => metadata.is_file(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let files = ["config", "index", "packed-refs", "shallow", "FETCH_HEAD", "ORIG_HEAD"];
    let head = fs::read_to_string(git.join("HEAD")).unwrap_or_default();
    let written_by = fs::read_to_string(git.join("objects/info/mayfly-format")).unwrap_or_default();
    is_directory(git)
        && is_file_or_none(&git.join("HEAD"))
        && !head.trim().is_empty()
        && ["objects", "refs", "objects/info", "objects/pack"].iter().all(|name| is_directory(&git.join(name)))
        && files.iter().all(|name| is_file_or_none(&git.join(name)))
        && written_by == plan.object_format
}

/// Removes whatever git would run, follow or wait for.
fn sanitise(git: &Path) -> io::Result<()> {
    for entry in fs::read_dir(git)? {
        let entry = entry?;
        if !KEPT.iter().any(|kept| entry.file_name() == *kept) || entry.file_type()?.is_symlink() {
            remove::remove(&entry.path())?;
        }
    }
    for name in ["alternates", "http-alternates"] {
        remove::remove(&git.join("objects/info").join(name))?;
    }
    remove_below(&git.join("refs"), &|name, is_link| is_link || name.ends_with(".lock"))?;
    remove_below(&git.join("objects"), &|_, is_link| is_link)?;
    remove_below(&git.join("lfs"), &|_, is_link| is_link)
}

/// Removes the git directories and links of submodules from a work tree: they are fetched anew, since what an earlier
/// job wrote into them would be run.
pub fn forget_submodules(project: &Path) -> io::Result<()> {
    for entry in fs::read_dir(project)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != ".git" {
            remove_below(&entry.path(), &|name, _| name == ".git")?;
        }
    }
    Ok(())
}

/// Empties the directories of submodules, whose repositories are gone: git makes none where files are. A link on the way
/// to one is removed, and not followed.
pub fn empty_submodules<'a>(project: &Path, paths: impl Iterator<Item = &'a Path>) -> io::Result<()> {
    for path in paths {
        let mut place = project.to_owned();
        let mut exists = true;
        for part in path.components() {
            place.push(part);
            exists = match place.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => true,
                Ok(_) => remove::remove(&place).map(|()| false)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if !exists {
                break;
            }
        }
        if exists {
            remove::empty(&place)?;
        }
    }
    Ok(())
}

/// Removes everything below `directory` that `unwanted` names; directories that stay are entered, links never.
fn remove_below(directory: &Path, unwanted: &dyn Fn(&str, bool) -> bool) -> io::Result<()> {
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if unwanted(&entry.file_name().to_string_lossy(), kind.is_symlink()) {
                remove::remove(&entry.path())?;
            } else if kind.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}

fn create(git: &Path) -> io::Result<()> {
    for directory in ["objects/info", "objects/pack", "refs/heads", "refs/tags"] {
        fs::create_dir_all(git.join(directory))?;
    }
    fs::write(git.join("HEAD"), "ref: refs/heads/none\n")
}

/// Marks the repository with its object format, once it holds something.
pub fn mark(plan: &Plan) -> io::Result<()> {
    fs::write(plan.project.join(".git/objects/info/mayfly-format"), &plan.object_format)
}

/// `.git/config`: no token, the remote without credentials, and the file with the job's own settings included.
fn configuration(plan: &Plan) -> String {
    let sha256 = plan.object_format == "sha256";
    let (version, extension) = if sha256 { (1, "[extensions]\n\tobjectFormat = sha256\n") } else { (0, "") };
    format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         {extension}[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
         [fetch]\n\trecurseSubmodules = false\n[credential]\n\tinteractive = never\n[gc]\n\tautoDetach = false\n\
         [include]\n\tpath = {}\n",
        value(&plan.url),
        value(&plan.seen(super::EXTERNAL_CONFIG).display().to_string()),
    )
}

/// A value of a git configuration file.
pub fn value(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}
