//! Code that artifacts and caches share: log lines, progress, names with variables, the project directory.

mod expansion;
mod messages;
mod meter;
mod retry;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use expansion::expand_like_shell;
pub use messages::{error, fatal, heading, notes, notice, warning};
pub use meter::{Meter, bytes, meter_frequency};
pub use retry::{ARTIFACT_RETRY_TIMEOUT, CACHE_RETRY_TIMEOUT, wait_before_retry};

use crate::archive::root::ArchiveRoot;
use crate::random;

/// The project directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectDir {
    /// `CI_BUILDS_DIR`; below it no link is followed.
    pub builds: PathBuf,
    /// `CI_PROJECT_DIR` on the machine.
    pub directory: PathBuf,
    /// The same as the job sees it, possibly in a container.
    pub seen: PathBuf,
}

impl ProjectDir {
    /// Opens the project directory, below the builds directory; creates it for a job without sources. The error names
    /// the directory that cannot be opened.
    pub fn open(&self) -> Result<ArchiveRoot, String> {
        let opened = match self.directory.strip_prefix(&self.builds) {
            Ok(below) => ArchiveRoot::open(&self.builds).and_then(|builds| builds.descend(below)),
            // The work tree of a user who runs a job by hand.
            Err(_) => ArchiveRoot::open(&self.directory),
        };
        opened.map(|root| root.with_known_path(&self.seen)).map_err(|why| format!("{}: {why}", self.seen.display()))
    }
}

/// An unnamed temporary file, for data that must be complete before it is used.
pub fn scratch_file(directory: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = directory.join(format!("transfer-{}-{:08x}", std::process::id(), random::number()));
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
