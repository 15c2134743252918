//! Runs jobs in containers: uses the agent's Docker executor with the developer's own engine and Docker logins.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::engine::{self, EngineHost};
use super::screen::{Detail, Screen};
use crate::config::docker::DockerConfig;
use crate::config::{ExecutorKind, Runner};
use crate::decode;
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::console::JobConsole;
use crate::executor::docker::credentials::{LoginSources, RegistryLogins, VARIABLE};
use crate::executor::docker::engine::containers::AnonymousVolumes;
use crate::executor::docker::engine::spec::{CreateContainer, HostConfig};
use crate::executor::docker::engine::{DockerEngine, DockerError};
use crate::executor::docker::images::ImageProvider;
use crate::executor::docker::names::{AGENT_RUN, ContainerOwner, INSTANCE, STATE};
use crate::executor::docker::removal::ContainerRemovals;
use crate::executor::docker::{DockerExecutor, resolved_image};
use crate::failure::JobError;
use crate::http::Address;
use crate::job::context::JobExecutor;
use crate::payload::Image;
use crate::sync;

/// How long the end of a run waits for the removal of containers.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(60);
/// The timeout for one request. A working engine also removes a container within this time.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connected engine and its executor.
pub struct Containers {
    docker: Arc<DockerExecutor>,
    runner: Arc<Runner>,
    engine: Arc<DockerEngine>,
    owner: ContainerOwner,
    /// An image that the engine has, for containers that change the owner of files.
    image: Mutex<Option<String>>,
}

/// Settings for containers.
#[derive(Clone, Debug)]
pub struct ContainerOptions {
    /// The object directories of the developer's repositories; the repository of each tree refers to one.
    pub objects: Vec<PathBuf>,
    /// The directory of the run; labels on its containers refer to it.
    pub run: PathBuf,
}

/// The runner with `[runners.docker]` for the developer's engine. Fails if containers cannot mount the run's directory,
/// or if the address of the engine is invalid.
fn runner_with_engine(template: &Runner, options: &ContainerOptions) -> Result<Runner, String> {
    let run = options.run.display().to_string();
    if run.contains(':') {
        return Err(format!(
            "containers cannot mount {run}, because the path contains `:`; set XDG_CACHE_HOME to another directory"
        ));
    }
    let list = |items: &[&str]| toml::Value::from(items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
    let volumes: Vec<String> =
        options.objects.iter().map(|path| path.display()).map(|path| format!("{path}:{path}:ro")).collect();
    let mut table = toml::Table::new();
    table.insert("pull_policy".to_owned(), list(&["if-not-present"]));
    table.insert("allowed_pull_policies".to_owned(), list(&["always", "if-not-present", "never"]));
    table.insert("volumes".to_owned(), volumes.into());
    if let Some(EngineHost { host, certificates }) = engine::find()? {
        table.insert("host".to_owned(), host.into());
        table.insert("tls_verify".to_owned(), certificates.is_some().into());
        let certificates = certificates.map(|directory| directory.display().to_string().into());
        table.extend(certificates.map(|directory| ("tls_cert_path".to_owned(), directory)));
    }
    let text = table.to_string();
    let mut runner = template.clone();
    runner.executor = ExecutorKind::Docker;
    runner.docker = decode::toml::<DockerConfig>(&text).map_err(|error| error.to_string())?;
    runner.docker_text = text;
    Ok(runner)
}

/// The owner label of a run's containers.
fn owner_of(run: &Path) -> ContainerOwner {
    ContainerOwner {
        instance: "exec".to_owned(),
        state: run.display().to_string(),
        agent_run: run.display().to_string(),
    }
}

impl Containers {
    /// Connects to the engine. Fails if the engine does not answer or its address is invalid.
    pub fn connect(template: &Runner, options: &ContainerOptions) -> Result<Self, String> {
        let runner = runner_with_engine(template, options)?;
        let owner = owner_of(&options.run);
        let docker =
            DockerExecutor::new(&runner, owner.clone(), ContainerRemovals::default(), CgroupParents::default())?;
        let engine = DockerEngine::connect(&docker.address).map_err(|error| engine::advice(&error))?;
        let image = Mutex::default();
        Ok(Self { docker: Arc::new(docker), runner: Arc::new(runner), engine: Arc::new(engine), owner, image })
    }

    pub fn executor(&self) -> Arc<dyn JobExecutor> {
        Arc::clone(&self.docker) as Arc<dyn JobExecutor>
    }

    /// The runner, as the job engine expects it.
    pub fn runner(&self) -> Arc<Runner> {
        Arc::clone(&self.runner)
    }

    /// The builds directory inside containers.
    pub fn builds(&self) -> PathBuf {
        self.docker.builds.clone()
    }

    pub fn address(&self) -> &Address {
        &self.docker.address
    }

    /// Pulls an image before any job runs. `expand` replaces the variables of the job.
    pub fn provide_image(
        &self,
        image: &Value,
        screen: &Screen,
        expand: &dyn Fn(&str) -> String,
    ) -> Result<(), JobError> {
        let image: Image = serde_json::from_value(image.clone()).unwrap_or_default();
        let (resolved, _) = resolved_image::resolve_job_image(&self.runner.docker, &image, expand)?;
        let access =
            LoginSources::for_runner(&self.runner, std::slice::from_ref(&resolved.reference), &self.docker.tokens);
        let of_job = Some(expand(&format!("${VARIABLE}"))).filter(|text| !text.is_empty());
        let logins = RegistryLogins::read(of_job, &[], &access);
        let provided = ImageProvider::new(&self.engine, &logins, &PullReporter(screen)).provide(&resolved)?;
        *sync::lock(&self.image) = Some(provided.pinned);
        Ok(())
    }

    /// Makes the user the owner of all files in a directory. Uses a container, because the files belong to the
    /// users of job containers. Returns false on failure.
    pub fn restore_ownership(&self, directory: &Path) -> bool {
        let image = sync::lock(&self.image).clone();
        image.is_some_and(|image| self.change_owner(directory, image).is_ok_and(|code| code == 0))
    }

    fn change_owner(&self, directory: &Path, image: String) -> Result<i64, DockerError> {
        let (user, group) = (nix::unistd::Uid::effective(), nix::unistd::Gid::effective());
        let labels = [(INSTANCE, &self.owner.instance), (STATE, &self.owner.state), (AGENT_RUN, &self.owner.agent_run)];
        let request = CreateContainer {
            image,
            user: "0".to_owned(),
            entrypoint: Some(vec!["chown".to_owned()]),
            cmd: Some(vec!["-R".to_owned(), format!("{user}:{group}"), "/directory".to_owned()]),
            labels: labels.map(|(key, value)| (key.to_owned(), value.clone())).into(),
            host_config: HostConfig {
                binds: vec![format!("{}:/directory", directory.display())],
                network_mode: "none".to_owned(),
                ..HostConfig::default()
            },
            ..CreateContainer::default()
        };
        let name = format!("mayfly-exec-owner-{}-{:x}", std::process::id(), crate::sys::BootTime::now().as_nanos());
        let (id, _) = self.engine.create_container(&name, None, &request)?;
        let started = self.engine.start_container(&id);
        let exit = started.and_then(|()| self.engine.wait_container_for(&id, REMOVAL_TIMEOUT));
        self.engine.remove_container(&id, AnonymousVolumes::Remove)?;
        exit.map(|exit| exit.status_code)
    }

    /// Waits until the containers of finished jobs are removed. Returns false if the engine does not remove them.
    pub fn wait_for_removals(&self) -> bool {
        let is_unavailable = || self.engine.ping(RESPONSE_TIMEOUT).is_err();
        let until = Instant::now() + REMOVAL_TIMEOUT;
        while !self.docker.removals.are_done_within(RESPONSE_TIMEOUT) {
            if is_unavailable() || Instant::now() > until {
                return false;
            }
        }
        true
    }
}

/// Removes the containers of a run that was killed. Returns false if the engine does not remove them now.
pub fn remove_containers_of_killed_run(address: &Address, run: &Path) -> bool {
    let (removals, is_done) = (ContainerRemovals::default(), Arc::new(AtomicBool::new(false)));
    // The sweep removes the containers that earlier runs of this owner created.
    let owner = ContainerOwner { agent_run: "later".to_owned(), ..owner_of(run) };
    let done = Arc::clone(&is_done);
    removals.sweep(address, &owner, Vec::new(), move || done.store(true, Ordering::Release));
    // The wait also ends if the engine is unavailable.
    removals.are_done_within(REMOVAL_TIMEOUT);
    is_done.load(Ordering::Acquire)
}

/// Reports image pulls on the screen.
struct PullReporter<'a>(&'a Screen);

impl JobConsole for PullReporter<'_> {
    fn line(&self, text: &str) {
        if self.0.options().detail == Detail::Agent || text.starts_with("Pulling") {
            self.0.show_message(text);
        }
    }

    fn warning(&self, text: &str) {
        self.0.show_message(&format!("warning: {text}"));
    }

    fn wait(&self, ready: Option<std::os::fd::BorrowedFd<'_>>, timeout: Duration) -> Result<bool, JobError> {
        crate::executor::docker::console::StdoutConsole.wait(ready, timeout)
    }
}
