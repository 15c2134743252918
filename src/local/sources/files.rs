//! Reads files of directories.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use crate::pipeline::request::SourceError;
use crate::pipeline::syntax::MAX_FILE_SIZE;

/// Opens a regular file; never blocks on a pipe or device.
pub fn open_file(path: &Path) -> Result<File, String> {
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC).open(path);
    let file = file.map_err(|error| error.to_string())?;
    match file.metadata().map_err(|error| error.to_string())?.is_file() {
        true => Ok(file),
        false => Err("not a regular file".to_owned()),
    }
}

/// Reads a file, up to one byte more than the planner's limit.
pub fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let limit = MAX_FILE_SIZE as u64 + 1;
    open_file(path)?.take(limit).read_to_end(&mut content).map_err(|error| error.to_string())?;
    Ok(content)
}

/// Reads a file below a directory; the path cannot leave the directory.
pub fn read_below(root: &Path, path: &str) -> Result<Vec<u8>, SourceError> {
    let path = path.trim_start_matches('/');
    let outside = Path::new(path).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
    let place = root.join(path);
    if outside || path.is_empty() {
        return Err(SourceError::Missing(format!("`{path}` is not a path inside the project")));
    }
    match place.canonicalize() {
        Ok(real) if root.canonicalize().is_ok_and(|root| real.starts_with(root)) => {}
        Ok(_) => return Err(SourceError::Failed(format!("`{path}` is a link that leads out of the project"))),
        Err(_) => return Err(SourceError::Missing("the file does not exist".to_owned())),
    }
    read_file(&place).map_err(|why| SourceError::Failed(format!("`{path}`: {why}")))
}

/// All files below a directory, except those of a repository (`.git`).
pub fn files_below(root: &Path) -> Result<Vec<String>, SourceError> {
    let mut files = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        let failed = |error: std::io::Error| SourceError::Failed(format!("{}: {error}", root.join(&below).display()));
        for entry in std::fs::read_dir(root.join(&below)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = below.join(entry.file_name());
            match entry.file_type().map_err(failed)?.is_dir() {
                true if entry.file_name() == ".git" => {}
                true => waiting.push(path),
                false => files.push(path.to_string_lossy().into_owned()),
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}
