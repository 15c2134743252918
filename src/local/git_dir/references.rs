//! Branches, tags and remote-tracking branches: loose files and the file `packed-refs` (gitrepository-layout(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::{GitDir, is_object_id};

/// The directories of branches, tags and remote-tracking branches.
const DIRECTORIES: [&str; 3] = ["refs/heads", "refs/tags", "refs/remotes"];
/// The depth limit of symbolic references, as in git.
const MAX_DEPTH: usize = 5;

/// The references of a repository.
#[derive(Debug, Default, PartialEq)]
pub struct References {
    /// The commit of `HEAD`.
    pub commit: String,
    /// The current branch.
    pub head: Option<String>,
    /// Object id and, of a symbolic reference, its target, by name.
    pub by_name: BTreeMap<String, (String, Option<String>)>,
}

impl GitDir {
    /// The references; `None` if there is no commit yet, or if only git can read them.
    pub fn references(&self) -> Option<References> {
        let mut raw = BTreeMap::new();
        self.add_packed(&mut raw)?;
        for directory in DIRECTORIES {
            self.add_loose(directory, &mut raw)?;
        }
        let text = fs::read_to_string(self.path.join("HEAD")).ok()?;
        let mut references = References::default();
        match text.trim_end().strip_prefix("ref: ") {
            Some(target) => {
                references.head = Some(target.strip_prefix("refs/heads/")?.to_owned());
                references.commit = resolve(&raw, target, 0)?;
            }
            None => references.commit = Some(text.trim_end()).filter(|id| is_object_id(id))?.to_owned(),
        }
        for (name, value) in &raw {
            // Git skips a symbolic reference whose target does not exist.
            let Some(id) = resolve(&raw, name, 0) else { continue };
            let target = value.strip_prefix("ref: ").map(str::to_owned);
            references.by_name.insert(name.clone(), (id, target));
        }
        Some(references)
    }

    /// Adds the references in `packed-refs`; `None` for a file that only git can read.
    fn add_packed(&self, raw: &mut BTreeMap<String, String>) -> Option<()> {
        let text = match fs::read_to_string(self.path.join("packed-refs")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(()),
            Err(_) => return None,
        };
        for line in text.lines().filter(|line| !line.starts_with(['#', '^'])) {
            let (id, name) = line.split_once(' ').filter(|(id, _)| is_object_id(id))?;
            if name.starts_with("refs/replace/") {
                return None;
            }
            if is_included(name) {
                raw.insert(name.to_owned(), id.to_owned());
            }
        }
        Some(())
    }

    /// Adds the references in files below a directory, which override packed ones.
    fn add_loose(&self, below: &str, raw: &mut BTreeMap<String, String>) -> Option<()> {
        let entries = match fs::read_dir(self.path.join(below)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(()),
            Err(_) => return None,
        };
        for entry in entries {
            let entry = entry.ok()?;
            let name = format!("{below}/{}", entry.file_name().to_str()?);
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                self.add_loose(&name, raw)?;
            } else if !kind.is_file() {
                return None;
            } else if Path::new(&name).extension().is_none_or(|extension| extension != "lock") {
                let text = fs::read_to_string(entry.path()).ok()?;
                let value = text.trim_end();
                if !is_object_id(value) && !value.starts_with("ref: refs/") {
                    return None;
                }
                raw.insert(name, value.to_owned());
            }
        }
        Some(())
    }
}

/// Whether a name is that of a branch, a tag or a remote-tracking branch.
fn is_included(name: &str) -> bool {
    DIRECTORIES.iter().any(|directory| name.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/')))
}

/// The object id of a reference.
fn resolve(raw: &BTreeMap<String, String>, name: &str, depth: usize) -> Option<String> {
    let value = raw.get(name).filter(|_| depth <= MAX_DEPTH)?;
    match value.strip_prefix("ref: ") {
        Some(target) => resolve(raw, target, depth + 1),
        None => Some(value.clone()),
    }
}
