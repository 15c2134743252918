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
use super::resolved_image::{self, ResolvedImage};
use super::retry::{RETRY_INTERVAL, retry, with_sigterm_delayed};
use super::services::{self, ServiceStarter};
use super::{safe_dirs, script};
use crate::config::docker::DockerConfig;
use crate::decode;
use crate::executor::roots;
use crate::failure::JobError;
use crate::http::Address;
use crate::payload;
use crate::payload::variables::Variables;

/// The input of the preparation.
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
pub fn run(plan: &PrepareTask) -> Result<PreparedContainer, JobError> {
    let unread = |what: &str, why: String| JobError::system(format!("cannot read {what}: {why}"));
    let docker: DockerConfig =
        decode::toml(&plan.docker).map_err(|error| unread("[runners.docker]", error.to_string()))?;
    let payload = payload::decode(plan.payload.as_bytes()).map_err(|error| unread("the job", error.why))?;
    let expand = |text: &str| plan.variables.expand(text);
    create::check(&docker)?;
    resolved_image::check_options(&payload)?;
    let (resolved, warnings) = resolved_image::of_job(&docker, &payload.image, &expand)?;
    let (planned, more) = services::plan::plan(&docker, &payload.services, &plan.variables.public_exports(), &expand)?;
    warnings.iter().chain(&more).for_each(|warning| StdoutConsole.warning(warning));
    println!("Using Docker executor with image {} ...", resolved.name);
    let engine = Arc::new(connect(&plan.address)?);
    create_network_and_volumes(plan, &engine)?;
    let of_job = plan.variables.value(credentials::VARIABLE);
    let logins = RegistryLogins::read(of_job, &payload.credentials, &plan.access);
    logins.warnings.iter().for_each(|trouble| StdoutConsole.warning(trouble));
    let images = ImageProvider::new(&engine, &logins, &StdoutConsole);
    let network = NetworkMode::of(&docker, plan.network.as_ref().map(|network| network.name.as_str()));
    let common =
        ContainerSettings { labels: plan.labels.clone(), binds: plan.binds.clone(), ..ContainerSettings::default() };
    let starter = ServiceStarter {
        engine: &engine,
        docker: &docker,
        images: &images,
        console: &StdoutConsole,
        network: &network,
        prefix: &plan.prefix,
        common: &common,
        init: plan.init,
    };
    create_root(plan)?;
    let started = starter.start(&planned)?;
    let image = images.provide(&resolved)?;
    let is_root = is_root(&docker, &resolved, &image.config.user, &engine);
    create_directories(plan, is_root)?;
    let name = format!("{}-build", plan.prefix);
    let settings = ContainerSettings {
        image: image.pinned,
        hostname: plan.host_name.clone(),
        environment: plan.variables.exports().into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
        hosts: services::hosts(&started, &network),
        aliases: vec!["build".to_owned(), name.clone()],
        ..common.clone()
    };
    let request = create::of_job(&docker, &resolved, &network, settings, engine.revision())?;
    let prepared = PreparedContainer {
        engine: engine.engine_address(),
        name,
        image: resolved.name.clone(),
        platform: Some(resolved.platform.clone()).filter(|platform| !platform.is_empty()),
        has_own_processes: docker.pid_mode.is_empty(),
        native_stop: plan.native_stop,
        volume_keep: docker.volume_keep,
        is_root,
        services: started,
        images: images.used(),
        cache_volumes: cache_volumes(plan),
        request: with_script_command(request, plan),
    };
    prepared.create(&engine)?;
    starter.wait(&prepared.services)?;
    Ok(prepared)
}

/// Connects to the engine; waits some seconds for one that is restarting.
fn connect(address: &Address) -> Result<DockerEngine, JobError> {
    // An engine that does not respond has already used up the timeout, so there is no retry.
    let may_come_up = |error: &DockerError| error.is_unreachable() && !matches!(error, DockerError::Silent { .. });
    let tell =
        |error: &DockerError| StdoutConsole.warning(&format!("{error}; retrying in {} s", RETRY_INTERVAL.as_secs()));
    retry(|| DockerEngine::connect(address), may_come_up, tell).map_err(|error| JobError::system(error.to_string()))
}

fn cache_volumes(plan: &PrepareTask) -> Vec<String> {
    let lasting = plan.volumes.iter().filter(|volume| volume.labels.contains_key(CACHE_OF));
    lasting.map(|volume| volume.name.clone()).collect()
}

/// The request for a container that gets a script on standard input each time it starts.
fn with_script_command(request: CreateContainer, plan: &PrepareTask) -> CreateContainer {
    let mut request = CreateContainer {
        cmd: Some(script::command(plan.shell.as_deref())),
        attach_stdin: true,
        attach_stdout: true,
        attach_stderr: true,
        open_stdin: true,
        stdin_once: true,
        ..request
    };
    request.host_config.init = plan.init.then_some(true);
    request
}

/// Whether the container runs as root of the machine. Then no other user needs access to the job's files.
fn is_root(docker: &DockerConfig, resolved: &ResolvedImage, of_image: &str, engine: &DockerEngine) -> bool {
    let user = if resolved.user.is_empty() { of_image } else { &resolved.user };
    if !matches!(user.split(':').next(), Some("" | "0" | "root")) {
        return false;
    }
    let is_mapped = |option: &String| option.contains("name=userns") || option.contains("name=rootless");
    docker.userns_mode == "host" || !engine.info().is_ok_and(|info| info.security_options.iter().any(is_mapped))
}

/// Creates the directory that containers see as their builds directory; other users of the machine cannot enter it.
fn create_root(plan: &PrepareTask) -> Result<(), JobError> {
    let unusable = |error: std::io::Error| {
        JobError::system(format!("cannot create the builds directory {}: {error}", plan.root.display()))
    };
    if let Some(above) = plan.root.parent() {
        roots::make(above, None, 0o700).map_err(unusable)?;
    }
    roots::make_open(&plan.root).map_err(unusable)
}

/// Creates the job's directories so that the container's user can work in them.
fn create_directories(plan: &PrepareTask, is_root: bool) -> Result<(), JobError> {
    let unusable = |error: std::io::Error| {
        JobError::system(format!("cannot create the job's directories below {}: {error}", plan.root.display()))
    };
    let [project, temporary] = &plan.directories;
    safe_dirs::create(&plan.root, project, 0o777).map_err(unusable)?;
    safe_dirs::create(&plan.root, temporary, if is_root { 0o700 } else { 0o777 }).map_err(unusable)
}

fn create_network_and_volumes(plan: &PrepareTask, engine: &DockerEngine) -> Result<(), JobError> {
    let failed = |what: &str, error: DockerError| JobError::system(format!("cannot create {what}: {error}"));
    for volume in &plan.volumes {
        with_sigterm_delayed(|| engine.create_volume(volume))
            .map_err(|error| failed(&format!("volume {}", volume.name), error))?;
    }
    if let Some(network) = &plan.network {
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
