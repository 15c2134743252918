//! Containers for jobs that ask for one: the agent's Docker executor on the developer's own engine, with the logins of
//! the developer's own Docker configuration.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::screen::Screen;
use crate::config::docker::Docker as Settings;
use crate::config::{ExecutorKind, Runner};
use crate::decode;
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::console::JobConsole;
use crate::executor::docker::credentials::{LoginSources, RegistryLogins};
use crate::executor::docker::engine::spec::{CreateContainer, HostConfig};
use crate::executor::docker::engine::{Engine, Error};
use crate::executor::docker::images::ImageProvider;
use crate::executor::docker::names::{INSTANCE, LIFE, Owner, STATE};
use crate::executor::docker::removal::ContainerRemovals;
use crate::executor::docker::{Docker, resolved_image};
use crate::failure::JobError;
use crate::http::Address;
use crate::job::executors::JobExecutor;
use crate::payload::Image;

/// How long the end of a run waits for containers to be removed.
const REMOVAL: Duration = Duration::from_secs(60);

/// The engine and what is said to it.
pub struct Containers {
    docker: Arc<Docker>,
    runner: Arc<Runner>,
    engine: Arc<Engine>,
    owner: Owner,
    /// An image that is here.
    image: Mutex<Option<String>>,
}

/// What containers are made for.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The objects of the developer's repository, which the repository of a tree reads.
    pub objects: PathBuf,
    /// The directory of the run: its containers are found by it.
    pub run: PathBuf,
}

/// Whose containers those of a run are.
fn owner_of(run: &Path) -> Owner {
    Owner { instance: "exec".to_owned(), state: run.display().to_string(), life: run.display().to_string() }
}

impl Containers {
    /// Connects to the engine. Errors: it is away, or its address is none.
    pub fn connect(template: &Runner, wishes: &Wishes) -> Result<Self, String> {
        let objects = wishes.objects.display().to_string();
        let mut table = toml::Table::new();
        let texts = |list: &[&str]| toml::Value::from(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        table.insert("pull_policy".to_owned(), texts(&["if-not-present"]));
        table.insert("allowed_pull_policies".to_owned(), texts(&["always", "if-not-present", "never"]));
        if !objects.contains(':') {
            table.insert("volumes".to_owned(), texts(&[&format!("{objects}:{objects}:ro")]));
        }
        let text = table.to_string();
        let settings: Settings = decode::toml(&text).map_err(|error| error.to_string())?;
        let mut runner = template.clone();
        runner.executor = ExecutorKind::Docker;
        runner.docker = settings;
        runner.docker_text = text;
        let owner = owner_of(&wishes.run);
        let docker = Docker::new(&runner, owner.clone(), ContainerRemovals::default(), CgroupParents::default())?;
        let engine = Engine::connect(&docker.address).map_err(|error| error.to_string())?;
        let image = Mutex::default();
        Ok(Self { docker: Arc::new(docker), runner: Arc::new(runner), engine: Arc::new(engine), owner, image })
    }

    /// What runs jobs.
    pub fn executor(&self) -> Arc<dyn JobExecutor> {
        Arc::clone(&self.docker) as Arc<dyn JobExecutor>
    }

    /// The runner as the engine knows it.
    pub fn runner(&self) -> Arc<Runner> {
        Arc::clone(&self.runner)
    }

    /// Where containers have their builds.
    pub fn builds(&self) -> PathBuf {
        self.docker.builds.clone()
    }

    /// The engine's address.
    pub fn address(&self) -> &Address {
        &self.docker.address
    }

    /// Has an image on this machine before any job runs. Errors: why it cannot be had.
    pub fn obtain(&self, image: &Value, screen: &Screen, expand: &dyn Fn(&str) -> String) -> Result<(), JobError> {
        let image: Image = serde_json::from_value(image.clone()).unwrap_or_default();
        let (choice, _) = resolved_image::of_job(&self.runner.docker, &image, expand)?;
        let access = LoginSources::of_agent(&self.runner, std::slice::from_ref(&choice.reference), &self.docker.tokens);
        let logins = RegistryLogins::read(None, &[], &access);
        let obtained = ImageProvider::new(&self.engine, &logins, &Teller(screen)).provide(&choice)?;
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = Some(obtained.pinned);
        Ok(())
    }

    /// Makes everything in a directory the user's own, through a container: its files belong to whom the containers of
    /// jobs ran as. False if that cannot be done.
    pub fn give_back(&self, directory: &Path) -> bool {
        let image = self.image.lock().unwrap_or_else(PoisonError::into_inner).clone();
        image.is_some_and(|image| self.change_owner(directory, image).is_ok_and(|code| code == 0))
    }

    fn change_owner(&self, directory: &Path, image: String) -> Result<i64, Error> {
        let (user, group) = (nix::unistd::Uid::effective(), nix::unistd::Gid::effective());
        let labels = [(INSTANCE, &self.owner.instance), (STATE, &self.owner.state), (LIFE, &self.owner.life)];
        let request = CreateContainer {
            image,
            user: "0".to_owned(),
            entrypoint: Some(vec!["chown".to_owned()]),
            cmd: Some(vec!["-R".to_owned(), format!("{user}:{group}"), "/given".to_owned()]),
            labels: labels.map(|(key, value)| (key.to_owned(), value.clone())).into(),
            host_config: HostConfig {
                binds: vec![format!("{}:/given", directory.display())],
                network_mode: "none".to_owned(),
                ..HostConfig::default()
            },
            ..CreateContainer::default()
        };
        let name = format!("mayfly-exec-owner-{}-{:x}", std::process::id(), crate::sys::boottime());
        let (id, _) = self.engine.create_container(&name, None, &request)?;
        let started = self.engine.start_container(&id);
        let exit = started.and_then(|()| self.engine.wait_container_for(&id, REMOVAL));
        self.engine.remove_container(&id, false)?;
        exit.map(|exit| exit.status_code)
    }

    /// Waits until the containers of jobs that have ended are removed.
    pub fn finish(&self) {
        self.docker.removals.wait(REMOVAL);
    }
}

/// Removes the containers of a run that was killed.
pub fn remove_forgotten(address: &Address, run: &Path) {
    let removals = ContainerRemovals::default();
    let owner = Owner { life: "later".to_owned(), ..owner_of(run) };
    removals.sweep(address, &owner, Vec::new(), || {});
    removals.wait(REMOVAL);
}

/// Tells of pulls.
struct Teller<'a>(&'a Screen);

impl JobConsole for Teller<'_> {
    fn line(&self, text: &str) {
        if self.0.look().verbose || text.starts_with("Pulling") {
            self.0.say(text);
        }
    }

    fn warning(&self, text: &str) {
        self.0.say(&format!("warning: {text}"));
    }

    fn wait(&self, ready: Option<std::os::fd::BorrowedFd<'_>>, timeout: Duration) -> Result<bool, JobError> {
        crate::executor::docker::console::StdoutConsole.wait(ready, timeout)
    }
}
