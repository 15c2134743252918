//! Services: containers beside the job's, known by name, waited for, their output shown where they fail.

mod health;
pub mod log;
pub mod plan;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::console::JobConsole;
use super::create::{self, ContainerSettings, NetworkMode};
use super::engine::containers::Container;
use super::engine::{Engine, Error};
use super::images::ImageProvider;
use super::retry::{create_anew, retry_when_disk_full};
use crate::config::docker::Docker;
use crate::failure::JobError;
use plan::ServicePlan;

/// Bytes of a service's output that are shown when it fails.
const OUTPUT_MAX: u64 = 64 << 10;
/// Letters of a container's identifier by which it is known on the network.
const SHORT_ID: usize = 12;

/// A service that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningService {
    /// Its image as the job names it.
    pub name: String,
    /// The container's identifier.
    pub id: String,
    /// Its names on the network.
    pub aliases: Vec<String>,
    /// The container's address in the job's network; empty where it has none of its own.
    pub address: String,
}

/// What services are made with.
pub struct ServiceStarter<'a> {
    /// The engine.
    pub engine: &'a Arc<Engine>,
    /// What is configured.
    pub docker: &'a Docker,
    /// Gets their images.
    pub images: &'a ImageProvider<'a>,
    /// Hears of them.
    pub console: &'a dyn JobConsole,
    /// The network they share with the job.
    pub network: &'a NetworkMode,
    /// What all containers of the job are called at first (`runner-…-project-…`).
    pub prefix: &'a str,
    /// Labels and binds of all of them.
    pub common: &'a ContainerSettings,
    /// Each has the engine's own first process (`FF_USE_INIT_WITH_DOCKER_EXECUTOR`).
    pub init: bool,
}

impl ServiceStarter<'_> {
    /// Starts services, one after the other, so that each finds those before it started. Errors: one cannot be pulled,
    /// made or started; its output is in the job's log.
    pub fn start(&self, planned: &[ServicePlan]) -> Result<Vec<RunningService>, JobError> {
        let start = |(index, planned)| self.start_one(index, planned);
        planned.iter().enumerate().map(start).collect()
    }

    fn start_one(&self, index: usize, planned: &ServicePlan) -> Result<RunningService, JobError> {
        let name = &planned.resolved.name;
        self.console.line(&format!("Starting service {name}..."));
        let image = self.images.provide(&planned.resolved)?;
        let mut settings = self.common.clone();
        settings.image = image.pinned;
        settings.environment.clone_from(&planned.environment);
        settings.aliases.clone_from(&planned.aliases);
        settings.labels.extend(of_service(name));
        let mut request = create::of_service(self.docker, &planned.resolved, self.network, settings)?;
        request.host_config.init = self.init.then_some(true);
        let container_name = format!("{}-{}-{index}", self.prefix, plan::in_a_name(name));
        let platform = Some(planned.resolved.platform.as_str()).filter(|platform| !platform.is_empty());
        let created = create_anew(self.engine, &container_name, platform, &request, false);
        let (id, warnings) = created.map_err(|error| create::create_error(&format!("service {name}"), &error))?;
        warnings.iter().for_each(|warning| self.console.warning(&format!("service {name}: {warning}")));
        if let Err(error) = retry_when_disk_full(|| self.engine.start_container(&id)) {
            return Err(failed(name, &error));
        }
        let container = self.engine.container(&id).map_err(|error| failed(name, &error))?;
        let address = self.address(&container);
        let mut aliases = planned.aliases.clone();
        aliases.extend(id.get(..SHORT_ID).map(str::to_owned));
        Ok(RunningService { name: name.clone(), id, aliases, address })
    }

    fn address(&self, container: &Container) -> String {
        match self.network {
            NetworkMode::Host => "127.0.0.1".to_owned(),
            NetworkMode::Other(_) => String::new(),
            NetworkMode::Bridge | NetworkMode::Named(_) => {
                let networks = container.network_settings.networks.values();
                let addresses = networks.flat_map(|network| [&network.ip_address, &network.ipv6_address]);
                addresses.into_iter().find(|address| !address.is_empty()).cloned().unwrap_or_default()
            }
        }
    }
}

/// `NAME:ADDRESS` of all services, for hosts files in networks that have no names.
pub fn hosts(services: &[RunningService], network: &NetworkMode) -> Vec<String> {
    if matches!(network, NetworkMode::Named(_) | NetworkMode::Other(_)) {
        return Vec::new();
    }
    let known = services.iter().filter(|service| !service.address.is_empty());
    known.flat_map(|service| service.aliases.iter().map(|alias| format!("{alias}:{}", service.address))).collect()
}

fn failed(name: &str, error: &Error) -> JobError {
    JobError::system(format!("service {name} cannot be started: {error}"))
}

/// Labels of services beside those of all containers of a job.
fn of_service(name: &str) -> [(String, String); 3] {
    let version = name.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("latest", |(_, tag)| tag);
    let label = |key: &str, value: &str| (format!("com.gitlab.gitlab-runner.{key}"), value.to_owned());
    [label("type", "service"), label("service", &plan::path_of_image(name)), label("service.version", version)]
}
