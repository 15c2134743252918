//! The object directories that the repositories of a checkout's trees refer to. Containers mount them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::checkout::{Checkout, FileSet, ListedFile, list};
use crate::digest;

/// The depth to which git follows `objects/info/alternates`.
const MAX_ALTERNATES_DEPTH: usize = 5;

/// The object directories of a checkout and of its submodules, and the directories that they borrow objects from.
/// `state` is the directory of the project's state.
pub fn directories(checkout: &Checkout, listed: &[ListedFile], state: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = BTreeSet::from([checkout.objects.clone()]);
    add_alternates(&checkout.objects, MAX_ALTERNATES_DEPTH, &mut found);
    let mut waiting = submodule_roots(&checkout.root, listed);
    while let Some(root) = waiting.pop() {
        let Some(submodule) = submodule_checkout(&root, state)? else { continue };
        add_alternates(&submodule.objects, MAX_ALTERNATES_DEPTH, &mut found);
        found.insert(submodule.objects);
        if root.join(".gitmodules").exists() {
            waiting.extend(submodule_roots(&root, &list(&root, FileSet::Tracked)?));
        }
    }
    // The engine creates a directory for a mount whose source does not exist.
    Ok(found.into_iter().filter(|directory| directory.is_dir()).collect())
}

/// The directories of the submodules among the files of the work tree at `root`. As for git, a submodule behind a
/// symbolic link is not checked out: a link to a directory above would make the walk over nested submodules endless.
pub fn submodule_roots(root: &Path, listed: &[ListedFile]) -> Vec<PathBuf> {
    let Ok(real_root) = root.canonicalize() else { return Vec::new() };
    let is_real = |path: &Path| root.join(path).canonicalize().is_ok_and(|real| real == real_root.join(path));
    let submodules = listed.iter().filter(|file| file.is_submodule && is_real(&file.path));
    submodules.map(|file| root.join(&file.path)).collect()
}

/// Adds the directories that `objects` borrows objects from. Git looks for them under their own paths, so directories
/// that containers cannot mount under these paths are left out.
fn add_alternates(objects: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
    let text = fs::read(objects.join("info/alternates")).unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !matches!(line[0], b'#' | b'"'));
    for line in lines.take(if depth > 0 { usize::MAX } else { 0 }) {
        let Ok(place) = objects.canonicalize() else { continue };
        let Ok(directory) = place.join(OsStr::from_bytes(line)).canonicalize() else { continue };
        if is_mountable(&directory) && found.insert(directory.clone()) {
            add_alternates(&directory, depth - 1, found);
        }
    }
}

/// The checkout of a submodule at `root`; `None` if the submodule is not checked out. `state` is the directory of the
/// project's state.
pub fn submodule_checkout(root: &Path, state: &Path) -> Result<Option<Checkout>, String> {
    let dot = root.join(".git");
    let path = match fs::read(&dot) {
        Ok(text) => match text.strip_prefix(b"gitdir: ") {
            Some(place) => root.join(OsStr::from_bytes(place.trim_ascii_end())),
            None => return Ok(None),
        },
        Err(_) if dot.is_dir() => dot,
        Err(_) => return Ok(None),
    };
    let Ok(path) = path.canonicalize() else { return Ok(None) };
    let [objects, index, shallow] = ["objects", "index", "shallow"].map(|name| path.join(name));
    with_mountable_objects(&Checkout { root: root.to_owned(), objects, index, shallow }, state).map(Some)
}

/// The checkout, with a path of its object directory that containers can mount. `state` is the directory of the
/// project's state.
pub fn with_mountable_objects(checkout: &Checkout, state: &Path) -> Result<Checkout, String> {
    Ok(Checkout { objects: mountable_path(&checkout.objects, state)?, ..checkout.clone() })
}

/// Whether containers can mount a directory under its path.
fn is_mountable(path: &Path) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || "/-_.,+@~= ".contains(c);
    path.to_str().is_some_and(|text| text.chars().all(is_plain))
}

/// A path of a directory that containers can mount and that `objects/info/alternates` can contain: its own path, or, if
/// that contains special characters (`:`, `$`, a line feed), a link below `state`.
fn mountable_path(path: &Path, state: &Path) -> Result<PathBuf, String> {
    if is_mountable(path) {
        return Ok(path.to_owned());
    }
    let link = state.join(format!("link-{}", &digest::sha256(path.as_os_str().as_bytes())[..16]));
    let failed = |error: io::Error| format!("{}: {error}", link.display());
    match std::os::unix::fs::symlink(path, &link) {
        // An existing link has this target, because its name is the digest of the target.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(link),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_of_a_path_are_hidden_behind_a_link() {
        let state = tempfile::tempdir().expect("a directory");
        let mountable = |path: &Path| mountable_path(path, state.path()).expect("a name");
        assert_eq!(mountable(Path::new("/home/d\u{e9}v/my app")), Path::new("/home/d\u{e9}v/my app"));
        for special in [&b"/a:b"[..], b"/a\nb", b"/a$b", b"/a\xffb"] {
            let path = Path::new(OsStr::from_bytes(special));
            let link = mountable(path);
            assert!(link.starts_with(state.path()) && fs::read_link(&link).expect("a link") == path);
            assert_eq!(mountable(path), link);
        }
    }

    #[test]
    fn submodules_behind_links_are_not_checked_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        fs::create_dir_all(root.join("real/lib")).expect("create the directory");
        for (target, link) in [(".", "loop"), ("real", "above")] {
            std::os::unix::fs::symlink(target, root.join(link)).expect("create a link");
        }
        let submodule = |path: &str| ListedFile { path: path.into(), is_submodule: true, is_skipped: false };
        let listed = ["real/lib", "loop", "above/lib", "loop/real", "missing"].map(submodule);
        assert_eq!(submodule_roots(root, &listed), [root.join("real/lib")]);
    }

    #[test]
    fn borrowed_objects_are_found_in_chains_and_loops() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().canonicalize().expect("a path");
        for (name, alternate) in [("a", "../b\n# comment\n/nonexistent\n"), ("b", "../c\n"), ("c", "../a\n../b\n")] {
            fs::create_dir_all(root.join(name).join("info")).expect("create the directory");
            fs::write(root.join(name).join("info/alternates"), alternate).expect("write a file");
        }
        let mut found = BTreeSet::new();
        add_alternates(&root.join("a"), MAX_ALTERNATES_DEPTH, &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "c"].map(|name| root.join(name)));
    }
}
