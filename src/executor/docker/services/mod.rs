//! Services: containers beside the job's container, reachable by name, checked for health, their output shown on
//! failure.

mod health;
pub mod log;
pub mod plan;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::console::JobConsole;
use super::create::{self, ContainerSettings};
use super::engine::containers::{AnonymousVolumes, Container};
use super::engine::{DockerEngine, DockerError};
use super::images::ImageProvider;
use super::network_mode::NetworkMode;
use super::retry::{ContainerToCreate, StopRequest, retry_when_disk_full};
use crate::config::docker::DockerConfig;
use crate::failure::JobError;
use plan::ServicePlan;

/// The part of a failed service's output that is shown, in bytes.
const MAX_OUTPUT: u64 = 64 << 10;
/// The length of a short container id, which is also a network alias.
const SHORT_ID: usize = 12;

/// A running service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningService {
    /// The image, as named by the job.
    pub name: String,
    /// The container id.
    pub id: String,
    /// Its network aliases.
    pub aliases: Vec<String>,
    /// The container's address in the job's network; empty if it has none.
    pub address: String,
}

/// Starts services.
pub struct ServiceStarter<'a> {
    pub engine: &'a Arc<DockerEngine>,
    pub docker: &'a DockerConfig,
    /// Provides their images.
    pub images: &'a ImageProvider<'a>,
    pub console: &'a dyn JobConsole,
    /// The network shared with the job.
    pub network: &'a NetworkMode,
    /// The prefix of the names of the job's containers (`runner-…-project-…`).
    pub prefix: &'a str,
    /// The settings that all containers of the job share.
    pub common: &'a ContainerSettings,
    /// Whether each service runs an init process (`FF_USE_INIT_WITH_DOCKER_EXECUTOR`).
    pub init: bool,
}

impl ServiceStarter<'_> {
    /// Starts services one after another, so that each can reach the earlier ones. Fails if one cannot be pulled,
    /// created or started; its output is then in the job's log.
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
        settings.labels.extend(service_labels(name));
        let mut request = create::service_request(self.docker, &planned.resolved, self.network, settings)?;
        request.host_config.init = self.init.then_some(true);
        let container_name = format!("{}-{}-{index}", self.prefix, plan::container_name_part(name));
        let platform = Some(planned.resolved.platform.as_str()).filter(|platform| !platform.is_empty());
        let container = ContainerToCreate {
            name: &container_name,
            platform,
            request: &request,
            old_volumes: AnonymousVolumes::Remove,
        };
        let created = container.create(self.engine, StopRequest::EndsProcess);
        let (id, warnings) = created.map_err(|error| create::create_error(&format!("service {name}"), &error))?;
        warnings.iter().for_each(|warning| self.console.warning(&format!("service {name}: {warning}")));
        if let Err(error) = retry_when_disk_full(StopRequest::EndsProcess, || self.engine.start_container(&id)) {
            return Err(start_error(name, &error));
        }
        let container = self.engine.container(&id).map_err(|error| start_error(name, &error))?;
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

/// `NAME:ADDRESS` entries of all services, for hosts files in networks without DNS.
pub fn hosts(services: &[RunningService], network: &NetworkMode) -> Vec<String> {
    if matches!(network, NetworkMode::Named(_) | NetworkMode::Other(_)) {
        return Vec::new();
    }
    let known = services.iter().filter(|service| !service.address.is_empty());
    known.flat_map(|service| service.aliases.iter().map(|alias| format!("{alias}:{}", service.address))).collect()
}

fn start_error(name: &str, error: &DockerError) -> JobError {
    JobError::system(format!("cannot start service {name}: {error}"))
}

/// Additional labels of services.
fn service_labels(name: &str) -> [(String, String); 3] {
    let version = name.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("latest", |(_, tag)| tag);
    let label = |key: &str, value: &str| (format!("com.gitlab.gitlab-runner.{key}"), value.to_owned());
    [label("type", "service"), label("service", &plan::path_of_image(name)), label("service.version", version)]
}
