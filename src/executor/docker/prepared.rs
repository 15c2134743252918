//! A prepared container with its network, volumes and services, as stored in the journal.

use serde::{Deserialize, Serialize};

use super::console::{JobConsole, StdoutConsole};
use super::create;
use super::engine::containers::AnonymousVolumes;
use super::engine::spec::CreateContainer;
use super::engine::{DockerEngine, DockerError, EngineAddress};
use super::pulled::UsedImage;
use super::retry::{ContainerToCreate, StopRequest};
use super::services::RunningService;
use crate::failure::JobError;

/// A prepared container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreparedContainer {
    pub engine: EngineAddress,
    pub name: String,
    /// The image as named by the job.
    pub image: String,
    /// The platform, if it is not the machine's.
    pub platform: Option<String>,
    /// The request that creates the container.
    pub request: CreateContainer,
    /// The services of the job.
    pub services: Vec<RunningService>,
    /// Whether the container has its own PID namespace.
    pub has_own_processes: bool,
    /// Whether only the first process of the container gets SIGTERM.
    pub native_stop: bool,
    /// Whether the container's anonymous volumes are kept.
    pub volume_keep: bool,
    /// Whether the container runs as root. Then no other user needs access to the job's secrets.
    pub is_root: bool,
    /// The images of the job's containers.
    #[serde(default)]
    pub images: Vec<UsedImage>,
    /// The names of the volumes with caches for later jobs.
    #[serde(default)]
    pub cache_volumes: Vec<String>,
}

impl PreparedContainer {
    /// Creates the container; removes one that an earlier attempt left.
    pub fn create(&self, engine: &DockerEngine, stop: StopRequest<'_>) -> Result<(), JobError> {
        let container = ContainerToCreate {
            name: &self.name,
            platform: self.platform.as_deref(),
            request: &self.request,
            old_volumes: self.anonymous_volumes(),
        };
        match container.create(engine, stop) {
            Ok((_, warnings)) => {
                warnings.iter().for_each(|warning| StdoutConsole.warning(warning));
                Ok(())
            }
            Err(error) => Err(create::create_error("the job", &error)),
        }
    }

    /// Removes the container if it exists.
    pub fn remove(&self, engine: &DockerEngine) -> Result<(), DockerError> {
        engine.remove_container(&self.name, self.anonymous_volumes())
    }

    fn anonymous_volumes(&self) -> AnonymousVolumes {
        if self.volume_keep { AnonymousVolumes::Keep } else { AnonymousVolumes::Remove }
    }

    /// The container's memory limit in bytes; 0 for no limit.
    pub fn memory_limit(&self) -> i64 {
        self.request.host_config.memory
    }
}
