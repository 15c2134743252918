//! What jobs leave on the machine for later jobs, and the thread that keeps it within its limits.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::build_dirs::BuildDirs;
use crate::config::cache::StorageLimits;
use crate::executor::docker::pulled::PulledImages;
use crate::http::Address;
use crate::sync;

/// How often the limits are checked while no job ends.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// Directories are measured to some depth.
const STACK: usize = 1 << 20;

/// What jobs leave on the machine.
pub struct Storage {
    /// The build directories.
    pub build_dirs: Arc<BuildDirs>,
    /// The images that jobs have pulled.
    pub images: Arc<PulledImages>,
    /// Wakes the thread, once it runs.
    wake: Mutex<Option<Sender<()>>>,
}

impl Storage {
    /// What is noted in the state directory.
    pub fn load(state: &Path) -> Arc<Self> {
        let (build_dirs, images) = (BuildDirs::load(state), PulledImages::load(state));
        Arc::new(Self { build_dirs, images, wake: Mutex::default() })
    }

    /// Applies limits: of the builds below each root, and of the unused images of each engine. The thread starts with the
    /// first limit.
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

    /// A job has ended: the limits are checked.
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
        // Several jobs that ended meanwhile are one reason.
        while woken.try_recv().is_ok() {}
    }
}
