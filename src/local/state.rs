//! Where local runs keep things: below the user's cache directory, for each project apart.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::executor::user;

/// The directory for a project (by the path of its checkout), made for the user alone. Errors: the disk.
pub fn of_project(root: &Path) -> Result<PathBuf, String> {
    let home = || user::current().home.join(".cache");
    let given = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    let directory = given.unwrap_or_else(home).join("mayfly/exec").join(format!("{name}-{:016x}", hasher.finish()));
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}
