//! The status file of a step, which is reserved before the step starts.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::shim::running;
use crate::shim::spec::StepStatus;

/// Size of the file in bytes, reserved at the start.
const FILE_SIZE: usize = 4096;

/// Creates the status file at its full size. The file marks the step as started: without a status and without a shim,
/// the step is lost. The reserved space lets the shim write the status even if the step fills the disk.
pub fn reserve(path: &Path) -> io::Result<()> {
    fs::write(running::started_marker(path), [b' '; FILE_SIZE])
}

/// Writes the status into the reserved file.
pub fn write(path: &Path, status: &StepStatus) -> io::Result<()> {
    let reserved = running::started_marker(path);
    let mut text = serde_json::to_vec(status)?;
    text.resize(text.len().max(FILE_SIZE), b' ');
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&reserved)?;
    file.write_all(&text)?;
    fs::rename(&reserved, path)
}
