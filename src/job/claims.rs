//! What a job uses of the machine's storage. The agent removes neither the directory nor the volumes of a job until the
//! job releases them.

use std::sync::Arc;

use super::build_dirs::BuildDirInUse;
use super::context::{AfterCleanUp, Job};
use super::storage::{PreparingContainers, Storage};
use crate::executor::docker::cache_volumes::VolumesInUse;
use crate::executor::docker::prepared::PreparedContainer;

/// The build directory and the cache volumes that one job uses.
pub struct JobClaims {
    /// `None` for local runs, which have no limits for storage.
    storage: Option<Arc<Storage>>,
    build_dir: Option<BuildDirInUse>,
    volumes: Option<VolumesInUse>,
}

impl JobClaims {
    /// Claims the job's build directory. If the directory is being removed, waits for the end of the removal.
    pub fn new(job: &Job<'_>) -> Self {
        let storage = job.context.storage.clone();
        let build_dir = || job.context.executor.build_dir(job.context, &job.settings.dirs);
        let build_dir = storage.as_ref().and_then(|storage| Some(storage.build_dirs.claim(build_dir()?)));
        Self { storage, build_dir, volumes: None }
    }

    /// Keeps all images and volumes until the result is dropped, while the job's containers are created.
    pub fn prepare_containers(&self) -> Option<PreparingContainers> {
        self.storage.as_ref().map(|storage| storage.prepare())
    }

    /// Claims the volumes of the job's containers, and records the use of their images.
    pub fn add_containers(&mut self, container: &PreparedContainer) {
        self.volumes = self.storage.as_ref().map(|storage| storage.note_containers(container));
    }

    /// Releases the build directory. The result releases the rest: the engine does not remove volumes while their
    /// container exists, so the volumes are released after the executor's clean-up.
    pub fn release(self) -> AfterCleanUp {
        let Self { storage, build_dir, volumes } = self;
        drop(build_dir);
        Box::new(move || {
            drop(volumes);
            if let Some(storage) = storage {
                storage.job_ended();
            }
        })
    }
}
