//! Creates the `.git` directory, and makes an existing one safe before any git command reads it.
//!
//! An earlier job may have left hooks, a configuration with filters, fsmonitor or includes, alternates of another
//! place, refs that replace objects, endless files, pipes without a writer, or a file or link instead of the directory.
//! The agent removes everything that git reads, except entries that are on a list here and have the format that git
//! writes. The agent never reads the configuration; it only writes it.

use std::fs;
use std::io;
use std::path::Path;

use super::config_file::{quoted, settings_text};
use super::files::{read_small, replace};
use super::{SourcesPlan, kept, object_id, remove};
use crate::digest::is_hex;

/// The entries of `.git` that are kept from an earlier job; all others are removed.
const KEPT_ENTRIES: [&str; 10] = [
    "HEAD",
    "config",
    "index",
    "lfs",
    kept::CHECKOUT_RECORD,
    kept::SUBMODULE_TREES,
    "objects",
    "packed-refs",
    "refs",
    "shallow",
];

/// The directories among them.
const DIRECTORIES: [&str; 4] = ["lfs", kept::SUBMODULE_TREES, "objects", "refs"];

/// The refs that are kept. Others replace objects, or belong to commands that a job did not finish.
const KEPT_REFS: [&str; 7] = ["environments", "heads", "keep-around", "merge-requests", "pipelines", "remotes", "tags"];

/// Limits for files that git reads into memory completely.
const MAX_REF_SIZE: u64 = 1 << 10;
const MAX_SHALLOW_SIZE: u64 = 16 << 20;
const MAX_PACKED_REFS_SIZE: u64 = 256 << 20;
const MAX_INDEX_SIZE: u64 = 1 << 30;

/// The file that holds the object format of the repository.
const FORMAT_FILE: &str = "mayfly-format";

/// The origin of the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryOrigin {
    /// The agent has created the repository for this job.
    Created,
    /// The repository is that of an earlier job.
    Reused,
}

/// Creates the repository or makes it safe. Errors: the directory cannot be written.
pub fn prepare(plan: &SourcesPlan) -> io::Result<RepositoryOrigin> {
    let git = plan.project.join(".git");
    // A repository that cannot be made safe, for example a directory without permissions, is created again.
    let is_usable = is_directory(&git) && sanitise(&git).is_ok() && is_sound(&git, plan);
    let before = if is_usable { RepositoryOrigin::Reused } else { RepositoryOrigin::Created };
    if before == RepositoryOrigin::Created {
        create_again(&git)?;
    }
    replace(&git.join("config"), configuration(plan).as_bytes())?;
    Ok(before)
}

/// Whether a directory has all parts of a repository in this format.
fn is_sound(git: &Path, plan: &SourcesPlan) -> bool {
    let format = read_small(&git.join("objects/info").join(FORMAT_FILE), MAX_REF_SIZE).unwrap_or_default();
    ["objects", "refs", "objects/info", "objects/pack"].iter().all(|name| is_directory(&git.join(name)))
        && format == plan.object_format.as_bytes()
}

/// Removes everything that git would run, follow, block on or trust.
fn sanitise(git: &Path) -> io::Result<()> {
    clear(git, &|name, kind| KEPT_ENTRIES.contains(&name) && kind.fits(&DIRECTORIES, name))?;
    let is_tree = |name: &str, kind| kind == EntryKind::Directory && kept::is_submodule_tree(name);
    clear(&git.join(kept::SUBMODULE_TREES), &is_tree)?;
    for (name, max) in [("index", MAX_INDEX_SIZE), ("packed-refs", MAX_PACKED_REFS_SIZE), ("shallow", MAX_SHALLOW_SIZE)]
    {
        if size_of(&git.join(name)).is_some_and(|size| size > max) {
            remove::remove(&git.join(name))?;
        }
    }
    sanitise_head(git)?;
    sanitise_refs(git)?;
    sanitise_objects(&git.join("objects"))?;
    let lfs = git.join("lfs");
    clear(&lfs, &|name, kind| name == "objects" && kind == EntryKind::Directory)?;
    let large_file =
        |name: &str, kind: EntryKind| kind == EntryKind::Directory || kind == EntryKind::File && is_hex(name, &[64]);
    clear_below(&lfs.join("objects"), 2, u64::MAX, &large_file)
}

/// Keeps the files on which a job without a checkout (`GIT_CHECKOUT=false`) builds, if they have git's format.
fn sanitise_head(git: &Path) -> io::Result<()> {
    let text = read_small(&git.join("HEAD"), MAX_REF_SIZE).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let head = text.trim();
    let is_branch = head.strip_prefix("ref: refs/heads/").is_some_and(|name| {
        !name.is_empty() && !name.contains("..") && name.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let kept = if is_branch || object_id::is_valid(head) { head } else { "ref: refs/heads/none" };
    replace(&git.join("HEAD"), format!("{kept}\n").as_bytes())
}

fn sanitise_refs(git: &Path) -> io::Result<()> {
    let refs = git.join("refs");
    clear(&refs, &|name, kind| KEPT_REFS.contains(&name) && kind == EntryKind::Directory)?;
    for name in KEPT_REFS {
        clear_below(&refs.join(name), MAX_LEVELS, MAX_REF_SIZE, &|name, kind| match kind {
            EntryKind::Directory => true,
            EntryKind::File => !name.ends_with(".lock"),
            EntryKind::Other => false,
        })?;
    }
    let packed = git.join("packed-refs");
    let Some(text) = read_small(&packed, MAX_PACKED_REFS_SIZE) else { return Ok(()) };
    let is_kept = |line: &&[u8]| {
        let name = line.splitn(2, |byte| *byte == b' ').nth(1).unwrap_or_default();
        let of_kept = |kept: &&str| name.starts_with(format!("refs/{kept}/").as_bytes());
        line.starts_with(b"#") || line.starts_with(b"^") || KEPT_REFS.iter().any(of_kept)
    };
    if text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).all(|line| is_kept(&line)) {
        return Ok(());
    }
    // The whole file is removed: without the line of a ref, its `^` line would apply to the ref before it.
    remove::remove(&packed)
}

/// Keeps objects and packs with their indexes. Removes files that name other object directories or repeat the content
/// of commits (alternates, the commit graph, a multi-pack index, bitmaps).
fn sanitise_objects(objects: &Path) -> io::Result<()> {
    let is_fan = |name: &str| is_hex(name, &[2]);
    clear(objects, &|name, kind| kind == EntryKind::Directory && (is_fan(name) || ["info", "pack"].contains(&name)))?;
    clear(&objects.join("info"), &|name, kind| name == FORMAT_FILE && kind == EntryKind::File)?;
    clear(&objects.join("pack"), &|name, kind| {
        let is_pack = [".pack", ".idx", ".promisor"].iter().any(|end| name.ends_with(end));
        kind == EntryKind::File && name.starts_with("pack-") && is_pack
    })?;
    for entry in entries(objects)?.into_iter().filter(|(name, _)| is_fan(name)) {
        clear(&objects.join(entry.0), &|name, kind| kind == EntryKind::File && is_hex(name, &[38, 62]))?;
    }
    Ok(())
}

/// The types of directory entries that matter to git.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    File,
    Directory,
    /// A link, pipe, socket or device.
    Other,
}

impl EntryKind {
    /// Whether the entry has the type that its name requires: a directory if the list contains the name, otherwise a
    /// file.
    fn fits(self, directories: &[&str], name: &str) -> bool {
        self == if directories.contains(&name) { EntryKind::Directory } else { EntryKind::File }
    }
}

/// Limit for nested directories below `.git`.
const MAX_LEVELS: usize = 64;

/// The entries of a directory; none if it does not exist. A name that is not UTF-8 is `\u{fffd}`.
fn entries(directory: &Path) -> io::Result<Vec<(String, EntryKind)>> {
    if !is_directory(directory) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let kind = match () {
            () if kind.is_file() => EntryKind::File,
            () if kind.is_dir() => EntryKind::Directory,
            () => EntryKind::Other,
        };
        match entry.file_name().into_string() {
            Ok(name) => found.push((name, kind)),
            Err(_) => remove::remove(&entry.path())?,
        }
    }
    Ok(found)
}

/// Removes the unwanted entries of a directory.
fn clear(directory: &Path, wanted: &dyn Fn(&str, EntryKind) -> bool) -> io::Result<()> {
    for (name, kind) in entries(directory)? {
        if !wanted(&name, kind) {
            remove::remove(&directory.join(name))?;
        }
    }
    Ok(())
}

/// As [`clear`], for all subdirectories. Also removes files larger than `max` and everything deeper than `levels`.
fn clear_below(directory: &Path, levels: usize, max: u64, wanted: &dyn Fn(&str, EntryKind) -> bool) -> io::Result<()> {
    let mut waiting = vec![(directory.to_owned(), 0)];
    while let Some((next, level)) = waiting.pop() {
        for (name, kind) in entries(&next)? {
            let path = next.join(&name);
            let is_too_much = match kind {
                EntryKind::Directory => level == levels,
                _ => size_of(&path).is_some_and(|size| size > max),
            };
            if !wanted(&name, kind) || is_too_much {
                remove::remove(&path)?;
            } else if kind == EntryKind::Directory {
                waiting.push((path, level + 1));
            }
        }
    }
    Ok(())
}

/// Whether a directory, not a link to one, is at this path.
fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

fn size_of(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|metadata| metadata.len())
}

/// Replaces the repository with an empty one. The work tree and the saved files of submodules stay.
fn create_again(git: &Path) -> io::Result<()> {
    if !is_directory(git) || remove::empty_but(git, kept::SUBMODULE_TREES).is_err() {
        remove::remove(git)?;
    }
    let trees = git.join(kept::SUBMODULE_TREES);
    if trees.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
        remove::remove(&trees)?;
    }
    create(git)
}

/// Makes the next [`prepare`] create the repository again.
pub fn discard(plan: &SourcesPlan) -> io::Result<()> {
    remove::remove(&plan.project.join(".git/objects"))
}

fn create(git: &Path) -> io::Result<()> {
    for directory in ["objects/info", "objects/pack", "refs/heads", "refs/tags"] {
        fs::create_dir_all(git.join(directory))?;
    }
    fs::write(git.join("HEAD"), "ref: refs/heads/none\n")
}

/// Records the object format of the repository, once it has objects.
pub fn record_format(plan: &SourcesPlan) -> io::Result<()> {
    replace(&plan.project.join(".git/objects/info").join(FORMAT_FILE), plan.object_format.as_bytes())
}

/// `.git/config`: no token, the remote without credentials, and an include of the job's own settings.
fn configuration(plan: &SourcesPlan) -> String {
    let sha256 = plan.object_format == "sha256";
    let (version, extension) = if sha256 { (1, "[extensions]\n\tobjectFormat = sha256\n") } else { (0, "") };
    format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         {extension}[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n\
         [fetch]\n\trecurseSubmodules = false\n[credential]\n\tinteractive = never\n[gc]\n\tautoDetach = false\n\
         {}[include]\n\tpath = {}\n",
        quoted(&plan.url),
        settings_text(&plan.settings),
        quoted(&plan.path_in_container(super::EXTERNAL_CONFIG).display().to_string()),
    )
}
