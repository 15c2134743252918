//! Prepares everything for a job's container before the first script: directories, network, volumes, image, and the
//! container itself, which is started for each script.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::console::{JobConsole, StdoutConsole};
use super::create::{self, ContainerSettings};
use super::credentials::{self, LoginSources, RegistryLogins};
use super::engine::spec::{CreateContainer, CreateNetwork, CreateVolume};
use super::engine::{DockerEngine, DockerError};
use super::images::ImageProvider;
use super::names::CACHE_OF;
use super::network_mode::NetworkMode;
use super::prepared::PreparedContainer;
use super::pulled::UsedImage;
use super::resolved_image::{self, ResolvedImage};
use super::retry::{RETRY_INTERVAL, StopRequest, retry, with_sigterm_delayed};
use super::services::plan::ServicePlan;
use super::services::{self, RunningService, ServiceStarter};
use super::{safe_dirs, script};
use crate::config::docker::DockerConfig;
use crate::decode;
use crate::executor::roots;
use crate::failure::JobError;
use crate::http::Address;
use crate::payload::variables::Variables;
use crate::payload::{self, Payload};

/// The input of the preparation of a job's container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PrepareTask {
    pub address: Address,
    /// The text of `[runners.docker]`.
    pub docker: String,
    /// The payload of the job.
    pub payload: String,
    pub variables: Variables,
    /// The prefix of all names.
    pub prefix: String,
    /// The host name of the container.
    pub host_name: String,
    pub labels: std::collections::BTreeMap<String, String>,
    /// The job's own network, if it has one.
    pub network: Option<CreateNetwork>,
    /// Volumes to create.
    pub volumes: Vec<CreateVolume>,
    /// `source:destination[:mode]`
    pub binds: Vec<String>,
    /// The agent's sources of registry logins.
    pub access: LoginSources,
    /// The runner's `shell`.
    pub shell: Option<String>,
    /// `FF_USE_INIT_WITH_DOCKER_EXECUTOR`.
    pub init: bool,
    /// `FF_USE_NATIVE_CONTAINER_STOP`.
    pub native_stop: bool,
    /// The builds directory of the job on the machine.
    pub root: PathBuf,
    /// The project directory and the directory for temporary files.
    pub directories: [PathBuf; 2],
}

/// Prepares the container; writes its progress to the job's log.
pub fn run(task: &PrepareTask) -> Result<PreparedContainer, JobError> {
    let job = ContainerJob::resolve(task)?;
    let engine = Arc::new(connect(&task.address)?);
    create_network_and_volumes(task, &engine)?;
    let logins = registry_logins(task, &job.payload);
    let images = ImageProvider::new(&engine, &logins, &StdoutConsole);
    let network = NetworkMode::for_job(&job.docker, task.network.as_ref().map(|network| network.name.as_str()));
    let common =
        ContainerSettings { labels: task.labels.clone(), binds: task.binds.clone(), ..ContainerSettings::default() };
    let starter = ServiceStarter {
        engine: &engine,
        docker: &job.docker,
        images: &images,
        console: &StdoutConsole,
        network: &network,
        prefix: &task.prefix,
        common: &common,
        init: task.init,
    };
    create_root(task)?;
    let services = starter.start(&job.services)?;
    let image = images.provide(&job.image)?;
    let user = container_user(&job, &image.config.user, &engine);
    create_directories(task, user)?;
    let name = format!("{}-build", task.prefix);
    let settings = ContainerSettings {
        image: image.pinned,
        hostname: task.host_name.clone(),
        environment: task.variables.exports().into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
        hosts: services::hosts(&services, &network),
        aliases: vec!["build".to_owned(), name.clone()],
        ..common.clone()
    };
    let request = create::job_request(&job.docker, &job.image, &network, settings, engine.revision())?;
    let request = with_script_command(request, task);
    let prepared = job.prepared(task, PreparedParts { name, request, user, services, images: images.used() }, &engine);
    prepared.create(&engine, StopRequest::EndsProcess)?;
    starter.wait(&prepared.services)?;
    Ok(prepared)
}

/// The configuration and the payload of a job, with its images and services resolved.
struct ContainerJob {
    docker: DockerConfig,
    payload: Payload,
    image: ResolvedImage,
    services: Vec<ServicePlan>,
}

/// The results of the steps of a preparation.
struct PreparedParts {
    name: String,
    request: CreateContainer,
    user: ContainerUser,
    services: Vec<RunningService>,
    images: Vec<UsedImage>,
}

impl ContainerJob {
    /// Decodes the task and resolves its images; writes the warnings and the image to the job's log. Fails if an image,
    /// a service or an option is not allowed.
    fn resolve(task: &PrepareTask) -> Result<Self, JobError> {
        let unreadable = |what: &str, why: String| JobError::system(format!("cannot read {what}: {why}"));
        let docker: DockerConfig =
            decode::toml(&task.docker).map_err(|error| unreadable("[runners.docker]", error.to_string()))?;
        let payload = payload::decode(task.payload.as_bytes()).map_err(|error| unreadable("the job", error.why))?;
        let expand = |text: &str| task.variables.expand(text);
        create::check(&docker)?;
        resolved_image::check_options(&payload)?;
        let (image, warnings) = resolved_image::resolve_job_image(&docker, &payload.image, &expand)?;
        let public = task.variables.public_exports();
        let (services, more) = services::plan::plan(&docker, &payload.services, &public, &expand)?;
        warnings.iter().chain(&more).for_each(|warning| StdoutConsole.warning(warning));
        println!("Using Docker executor with image {} ...", image.name);
        Ok(Self { docker, payload, image, services })
    }

    fn prepared(&self, task: &PrepareTask, parts: PreparedParts, engine: &DockerEngine) -> PreparedContainer {
        PreparedContainer {
            engine: engine.engine_address(),
            name: parts.name,
            image: self.image.name.clone(),
            platform: Some(self.image.platform.clone()).filter(|platform| !platform.is_empty()),
            has_own_processes: self.docker.pid_mode.is_empty(),
            native_stop: task.native_stop,
            volume_keep: self.docker.volume_keep,
            is_root: parts.user == ContainerUser::Root,
            services: parts.services,
            images: parts.images,
            cache_volumes: cache_volumes(task),
            request: parts.request,
        }
    }
}

/// Connects to the engine; waits some seconds for one that is restarting.
fn connect(address: &Address) -> Result<DockerEngine, JobError> {
    // An engine that does not respond has already used up the timeout, so there is no retry.
    let may_come_up = |error: &DockerError| error.is_unreachable() && !matches!(error, DockerError::TimedOut { .. });
    let report =
        |error: &DockerError| StdoutConsole.warning(&format!("{error}; retrying in {} s", RETRY_INTERVAL.as_secs()));
    retry(StopRequest::EndsProcess, || DockerEngine::connect(address), may_come_up, report)
        .map_err(|error| JobError::system(error.to_string()))
}

/// The logins that are available to the job. Writes warnings about unreadable sources.
fn registry_logins<'a>(task: &'a PrepareTask, payload: &Payload) -> RegistryLogins<'a> {
    let of_job = task.variables.value(credentials::VARIABLE);
    let logins = RegistryLogins::read(of_job, &payload.credentials, &task.access);
    logins.warnings.iter().for_each(|warning| StdoutConsole.warning(warning));
    logins
}

fn cache_volumes(task: &PrepareTask) -> Vec<String> {
    let lasting = task.volumes.iter().filter(|volume| volume.labels.contains_key(CACHE_OF));
    lasting.map(|volume| volume.name.clone()).collect()
}

/// The request for a container that gets a script on standard input each time it starts.
fn with_script_command(request: CreateContainer, task: &PrepareTask) -> CreateContainer {
    let mut request = CreateContainer {
        cmd: Some(script::command(task.shell.as_deref())),
        attach_stdin: true,
        attach_stdout: true,
        attach_stderr: true,
        open_stdin: true,
        stdin_once: true,
        ..request
    };
    request.host_config.init = task.init.then_some(true);
    request
}

/// The user of the machine as which the container runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ContainerUser {
    /// Root of the machine: no other user needs access to the job's files.
    Root,
    /// Another user, or root of a user namespace.
    Other,
}

fn container_user(job: &ContainerJob, of_image: &str, engine: &DockerEngine) -> ContainerUser {
    let user = if job.image.user.is_empty() { of_image } else { &job.image.user };
    if !matches!(user.split(':').next(), Some("" | "0" | "root")) {
        return ContainerUser::Other;
    }
    let is_mapped = |option: &String| option.contains("name=userns") || option.contains("name=rootless");
    let has_mapped_root = || engine.info().is_ok_and(|info| info.security_options.iter().any(is_mapped));
    match job.docker.userns_mode == "host" || !has_mapped_root() {
        true => ContainerUser::Root,
        false => ContainerUser::Other,
    }
}

/// Creates the directory that containers see as their builds directory; other users of the machine cannot enter it.
fn create_root(task: &PrepareTask) -> Result<(), JobError> {
    let unusable = |error: std::io::Error| {
        JobError::system(format!("cannot create the builds directory {}: {error}", task.root.display()))
    };
    if let Some(above) = task.root.parent() {
        roots::create(above, None, 0o700).map_err(unusable)?;
    }
    roots::create_world_writable(&task.root).map_err(unusable)
}

/// Creates the job's directories so that the container's user can work in them.
fn create_directories(task: &PrepareTask, user: ContainerUser) -> Result<(), JobError> {
    let unusable = |error: std::io::Error| {
        JobError::system(format!("cannot create the job's directories below {}: {error}", task.root.display()))
    };
    let [project, temporary] = &task.directories;
    safe_dirs::create(&task.root, project, 0o777).map_err(unusable)?;
    let mode = if user == ContainerUser::Root { 0o700 } else { 0o777 };
    safe_dirs::create(&task.root, temporary, mode).map_err(unusable)
}

fn create_network_and_volumes(task: &PrepareTask, engine: &DockerEngine) -> Result<(), JobError> {
    let failed = |what: &str, error: DockerError| JobError::system(format!("cannot create {what}: {error}"));
    for volume in &task.volumes {
        with_sigterm_delayed(|| engine.create_volume(volume))
            .map_err(|error| failed(&format!("volume {}", volume.name), error))?;
    }
    if let Some(network) = &task.network {
        // An earlier agent, or an attempt that was killed, may have created the network.
        if engine.network(&network.name).is_err_and(|error| error.is_missing()) {
            match with_sigterm_delayed(|| engine.create_network(network)) {
                Err(error) if !error.is_conflict() => return Err(failed(&format!("network {}", network.name), error)),
                _ => {}
            }
        }
    }
    Ok(())
}
