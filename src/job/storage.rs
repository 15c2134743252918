//! The build directories and images that jobs leave on the machine, and the thread that enforces their limits.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::build_dirs::BuildDirs;
use crate::config::cache::StorageLimits;
use crate::executor::docker::pulled::PulledImages;
use crate::http::Address;
use crate::sync;

/// The interval of the checks while no job ends.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// The stack of the thread; measuring directories recurses.
const STACK: usize = 1 << 20;

/// The build directories and images that jobs leave on the machine.
pub struct Storage {
    /// The build directories.
    pub build_dirs: Arc<BuildDirs>,
    /// The images that jobs have pulled.
    pub images: Arc<PulledImages>,
    /// Wakes the thread; `None` until it runs.
    wake: Mutex<Option<Sender<()>>>,
}

impl Storage {
    /// Loads the records from the state directory.
    pub fn load(state: &Path) -> Arc<Self> {
        let (build_dirs, images) = (BuildDirs::load(state), PulledImages::load(state));
        Arc::new(Self { build_dirs, images, wake: Mutex::default() })
    }

    /// Sets the limits: for the builds below each root, and for the unused images of each engine. The first limit
    /// starts the thread.
    pub fn limit(&self, builds: &[(PathBuf, StorageLimits)], images: Vec<(Address, Duration)>) {
        builds.iter().for_each(|(root, limits)| self.build_dirs.limit(root, *limits));
        self.images.limit(images);
        let mut wake = sync::lock(&self.wake);
        if wake.is_some() || !(self.build_dirs.has_limits() || self.images.has_limits()) {
            return;
        }
        let (sender, woken) = mpsc::channel();
        let (build_dirs, images) = (Arc::clone(&self.build_dirs), Arc::clone(&self.images));
        match sync::spawn("storage", STACK, move || run(&build_dirs, &images, &woken)) {
            Ok(_) => *wake = Some(sender),
            Err(error) => {
                log::error!("cannot start the thread that removes build directories and images error={error}")
            }
        }
    }

    /// Wakes the thread after the end of a job.
    pub fn job_ended(&self) {
        if let Some(wake) = &*sync::lock(&self.wake) {
            let _ = wake.send(());
        }
    }
}

fn run(build_dirs: &BuildDirs, images: &PulledImages, woken: &Receiver<()>) {
    loop {
        build_dirs.tidy();
        images.tidy();
        if woken.recv_timeout(CHECK_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        // One check is enough for all jobs that ended meanwhile.
        while woken.try_recv().is_ok() {}
    }
}
