//! The build directories and images that jobs leave on the machine, and the thread that enforces their limits.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::build_dirs::{BuildDirs, Remove};
use crate::config::cache::StorageLimits;
use crate::executor::docker::cache_volumes::{self, CacheVolumes, VolumeRecord};
use crate::executor::docker::prepared::PreparedContainer;
use crate::executor::docker::pulled::{ImageRecord, PulledImages};
use crate::executor::docker::removal_gate::Preparing;
use crate::http::Address;
use crate::sync;

/// The interval of the checks while no job ends.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// The delay of the first check. Until then, resumed jobs have claimed the directories and images that they use.
const FIRST_CHECK_DELAY: Duration = Duration::from_secs(60);
/// The stack of the thread; measuring directories recurses.
const STACK: usize = 1 << 20;

/// The build directories and images that jobs leave on the machine.
pub struct Storage {
    /// The build directories.
    pub build_dirs: Arc<BuildDirs>,
    /// The images that jobs have pulled.
    pub images: Arc<PulledImages>,
    /// The volumes with caches of containers.
    pub cache_volumes: Arc<CacheVolumes>,
    /// Wakes the thread; `None` until it runs.
    wake: Mutex<Option<Sender<()>>>,
}

/// Prevents the removal of images and volumes while a job's containers are created, until it is dropped.
pub struct PreparingContainers {
    _images: Preparing<ImageRecord>,
    _cache_volumes: Preparing<VolumeRecord>,
}

impl Storage {
    /// Loads the records from the state directory.
    pub fn load(state: &Path) -> Arc<Self> {
        Arc::new(Self {
            build_dirs: BuildDirs::load(state),
            images: PulledImages::load(state),
            cache_volumes: CacheVolumes::load(state),
            wake: Mutex::default(),
        })
    }

    /// Sets the limits: for the builds below each root, and for the unused images and the cache volumes of each engine.
    /// The first limit starts the thread.
    pub fn limit(
        self: &Arc<Self>,
        builds: Vec<(PathBuf, StorageLimits, Remove)>,
        images: Vec<(Address, Duration)>,
        cache_volumes: Vec<(Address, StorageLimits)>,
    ) {
        builds.into_iter().for_each(|(root, limits, remove)| self.build_dirs.limit(&root, limits, remove));
        self.images.limit(images);
        self.cache_volumes.limit(cache_volumes);
        let has_limits = self.build_dirs.has_limits() || self.images.has_limits() || self.cache_volumes.has_limits();
        let mut wake = sync::lock(&self.wake);
        if wake.is_some() || !has_limits {
            return;
        }
        let (sender, woken) = mpsc::channel();
        let storage = Arc::clone(self);
        match sync::spawn("storage", STACK, move || storage.tidy_when_woken(&woken)) {
            Ok(_) => *wake = Some(sender),
            Err(error) => {
                log::error!("cannot start the thread that removes what jobs left on the machine error={error}")
            }
        }
    }

    /// Keeps all images and volumes while a job's containers are created.
    pub fn prepare(&self) -> PreparingContainers {
        PreparingContainers { _images: self.images.prepare(), _cache_volumes: self.cache_volumes.prepare() }
    }

    /// Records the images of a job's containers, and keeps their volumes until the result is dropped.
    pub fn note_containers(&self, container: &PreparedContainer) -> cache_volumes::VolumesInUse {
        self.images.record_use(&container.engine.address, &container.images);
        self.cache_volumes.claim(&container.engine.address, &container.cache_volumes)
    }

    /// Wakes the thread after the end of a job.
    pub fn job_ended(&self) {
        if let Some(wake) = &*sync::lock(&self.wake) {
            let _ = wake.send(());
        }
    }

    fn tidy_when_woken(&self, woken: &Receiver<()>) {
        let mut wait = FIRST_CHECK_DELAY;
        loop {
            if woken.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            // One check is enough for all jobs that ended since the last one.
            while woken.try_recv().is_ok() {}
            self.build_dirs.tidy();
            self.images.tidy();
            self.cache_volumes.tidy();
            wait = CHECK_INTERVAL;
        }
    }
}
