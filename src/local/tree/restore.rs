//! Restores a tree after a job: removes foreign and changed files, and copies the missing ones again.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::parallel::filter_map_all;
use super::stamp::Stamp;
use super::{Tree, TreeSource, copy};
use crate::job::sources::remove::remove;

/// Restores a tree to the state of the source. The manifest is saved before the tree is used.
pub fn restore(source: &TreeSource, tree: &Tree) -> io::Result<()> {
    let file = tree.home.join("manifest");
    let mut manifest = Manifest::load(&file);
    let mut files = Vec::with_capacity(source.files.len());
    remove_foreign_files(source, &tree.project, Path::new(""), &mut files)?;
    let kept = remove_changed_files(source, &tree.project, &files, &manifest)?;
    let missing: Vec<(&Path, Stamp)> = source
        .files
        .iter()
        .filter(|(path, _)| !kept.contains(path))
        .map(|(path, stamp)| (path.as_path(), *stamp))
        .collect();
    for directory in &source.directories {
        // Most directories exist; missing ones are created with their parents.
        if kept.is_empty() || !tree.project.join(directory).is_dir() {
            fs::create_dir_all(tree.project.join(directory))?;
        }
    }
    let has_removed_entries = manifest.retain(|path| source.files.contains_key(path));
    if missing.is_empty() && !has_removed_entries {
        return Ok(());
    }
    for (path, original, copy) in copy::copy_all(&source.root, &tree.project, &missing)? {
        manifest.record(path, original, copy);
    }
    let paths: Vec<&Path> = missing.iter().map(|(path, _)| *path).collect();
    for path in source.skipped.write(&source.root, &tree.project, &tree.home.join("index"), &paths)? {
        let (original, place) = (source.files.get(&path), tree.project.join(&path));
        manifest.record(path, original.copied().unwrap_or_default(), Stamp::of_metadata(&place.symlink_metadata()?));
    }
    manifest.save(&file)
}

/// Removes the files that do not equal the originals, or whose originals have changed. Returns the paths of the files
/// that remain.
fn remove_changed_files<'f>(
    source: &TreeSource,
    project: &Path,
    files: &'f [PathBuf],
    manifest: &Manifest,
) -> io::Result<HashSet<&'f PathBuf>> {
    let mut kept = HashSet::new();
    let checked = filter_map_all(files, |path| {
        let metadata = project.join(path).symlink_metadata();
        let is_kept = metadata.as_ref().is_ok_and(|metadata| {
            source
                .files
                .get(path)
                .is_some_and(|original| manifest.is_current(path, *original, Stamp::of_metadata(metadata)))
        });
        Some((path, is_kept))
    });
    for (path, is_kept) in checked {
        match is_kept {
            true => drop(kept.insert(path)),
            false => remove(&project.join(path))?,
        }
    }
    Ok(kept)
}

/// Removes the files and directories whose paths are not in the source, and collects the paths of the other files.
fn remove_foreign_files(source: &TreeSource, project: &Path, below: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(project.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        // The repositories have their own records.
        if entry.file_name() == ".git" && (below.as_os_str().is_empty() || source.submodules.contains_key(below)) {
            continue;
        }
        let is_directory = entry.file_type()?.is_dir();
        if is_directory && source.directories.contains(&path) {
            let place = project.join(&path);
            make_accessible(&place, &place.symlink_metadata()?)?;
            remove_foreign_files(source, project, &path, files)?;
        } else if is_directory || !source.files.contains_key(&path) {
            remove(&project.join(&path))?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Gives the owner all permissions for a directory, because a job may have removed them.
pub fn make_accessible(directory: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let mode = metadata.permissions().mode();
    match mode & 0o755 == 0o755 {
        true => Ok(()),
        false => fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o755)),
    }
}
