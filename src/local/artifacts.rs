//! Unpacks artifacts for the user (`--artifacts`).

use std::fs::{self, File};
use std::path::Path;

use crate::archive::root::ArchiveRoot;
use crate::archive::unpack::unpack as unpack_archive;

/// Unpacks all archives of a job, including reports, into a directory, with their paths in the project.
pub fn unpack(artifacts: &Path, job: i64, directory: &Path) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(artifacts.join(job.to_string())) else { return Ok(()) };
    fs::create_dir_all(directory).map_err(|error| error.to_string())?;
    let root = ArchiveRoot::open(directory).map_err(|error| error.to_string())?;
    for entry in entries.flatten().filter(|entry| entry.file_name() != "dotenv") {
        let file = File::open(entry.path()).map_err(|error| error.to_string())?;
        unpack_archive(&file, &root).map_err(|error| error.to_string())?;
    }
    Ok(())
}
