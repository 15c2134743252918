//! A container with all that belongs to it, as the journal keeps it.

use serde::{Deserialize, Serialize};

use super::console::{JobConsole, StdoutConsole};
use super::create;
use super::engine::spec::CreateContainer;
use super::engine::{Engine, EngineAddress, Error};
use super::retry::create_anew;
use super::services::RunningService;
use crate::failure::JobError;

/// A container that is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreparedContainer {
    /// Its engine.
    pub engine: EngineAddress,
    /// Its name.
    pub name: String,
    /// The image as the job names it.
    pub image: String,
    /// For another machine than this one.
    pub platform: Option<String>,
    /// How it is made.
    pub request: CreateContainer,
    /// What runs beside it.
    pub services: Vec<RunningService>,
    /// Its processes are its own, not those of the machine or of another container.
    pub has_own_processes: bool,
    /// Only its first process is asked to end.
    pub native_stop: bool,
    /// Its anonymous volumes outlive it.
    pub volume_keep: bool,
    /// It runs as root: nobody else has to reach the job's secrets.
    pub is_root: bool,
}

impl PreparedContainer {
    /// Makes the container; one that an earlier try left is removed. Errors: the engine does not make it.
    pub fn create(&self, engine: &Engine) -> Result<(), JobError> {
        match create_anew(engine, &self.name, self.platform.as_deref(), &self.request, self.volume_keep) {
            Ok((_, warnings)) => {
                warnings.iter().for_each(|warning| StdoutConsole.warning(warning));
                Ok(())
            }
            Err(error) => Err(create::create_error("the job", &error)),
        }
    }

    /// Removes the container, if there is one.
    pub fn remove(&self, engine: &Engine) -> Result<(), Error> {
        engine.remove_container(&self.name, self.volume_keep)
    }

    /// Bytes of memory it may use; 0 for all.
    pub fn memory_limit(&self) -> i64 {
        self.request.host_config.memory
    }
}
