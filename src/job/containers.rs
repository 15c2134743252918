//! Jobs in containers: what the stages of a job ask of the executor for them.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::context::Context;
use super::engine::Engine;
use super::flags::Flags;
use super::sources::{self, Strategy, remove};
use super::steps::StopsFor;
use super::work::{Plan, Report};
use crate::executor::docker::credentials::Access;
use crate::executor::docker::engine::containers::From;
use crate::executor::docker::engine::spec::CreateNetwork;
use crate::executor::docker::names::{self, Facts};
use crate::executor::docker::{Docker, choice, prepare, script, volumes};
use crate::executor::place::Place;
use crate::failure::JobError;
use crate::journal::Record;
use crate::payload::Payload;
use crate::payload::variables::Variables;
use crate::shim::spec::{Doors, Rights, Task, Walls};

/// The named pipes of scripts, in the job's temporary directory.
pub(super) const DOORS: [&str; 2] = ["mayfly.stdout", "mayfly.stderr"];

/// The beginning of the names of directories that go with their job.
const OF_ONE_JOB: &str = "job-";

/// How much longer than the script's own grace the shim waits for a child that speaks with an engine.
const ENGINE_PATIENCE: Duration = Duration::from_secs(60);

/// A job's name for its containers: no other job has it.
pub fn name_of(payload: &Payload, record: &Record) -> String {
    format!("{}-{:x}", payload.id, record.began)
}

/// Whether a job is for a protected branch or tag; older servers say it in a variable, or in the name of a cache.
fn is_protected(payload: &Payload) -> bool {
    let by_variable =
        || payload.variables.iter().any(|one| one.key == "CI_COMMIT_REF_PROTECTED" && one.value == "true");
    payload.git_info.protected || by_variable() || payload.cache.iter().any(|cache| cache.key.ends_with("-protected"))
}

impl Context {
    /// Where a job in a container works: in a directory of its project alone, which no unprotected job shares with a
    /// protected one, and which goes with the job unless that reuses the sources of an earlier one; or where the
    /// configuration mounts something else.
    pub(super) fn place_in_container(
        &self,
        docker: &Docker,
        payload: &Payload,
        concurrent: u32,
        variables: &dyn Fn(&Place) -> Variables,
    ) -> Place {
        let short_token = self.runner.token.short();
        if let Some(host_builds) = volumes::configured_builds(&self.runner.docker, &docker.builds) {
            let place = Place::usual(&host_builds, &self.caches, &short_token, concurrent, payload);
            return Place { inside: Some(docker.builds.clone()), ..place };
        }
        let protected = if is_protected(payload) { "-protected" } else { "" };
        let own = format!("project-{}-{concurrent}{protected}", payload.job_info.project_id);
        let below = self.builds.join(short_token);
        let at = |own: &str| Place::in_container(&below.join(own), &docker.builds, &self.caches, payload);
        let lasting = at(&own);
        match sources::strategy(payload, &variables(&lasting)) {
            Ok(Strategy::Fetch) | Err(_) => lasting,
            Ok(_) => at(&format!("{OF_ONE_JOB}{}", payload.id)),
        }
    }

    /// The name of a network of the job's own (`FF_NETWORK_PER_BUILD`), unless one is configured for all jobs.
    pub(super) fn network_of_job(&self, payload: &Payload, flags: &Flags, concurrent: u32) -> Option<String> {
        let wanted = flags.is_on("FF_NETWORK_PER_BUILD") && self.runner.docker.network_mode.is_empty();
        let project = payload.job_info.project_id;
        wanted.then(|| format!("runner-{}-{project}-{concurrent}-{}", self.runner.token.short(), payload.id))
    }

    /// What removes everything that was made for a job, and its directory if that goes with it.
    pub(super) fn removal(&self, job: String, builds: Option<PathBuf>) -> Option<impl FnOnce() + use<>> {
        let docker = self.executor.containers()?;
        let (removals, address, owner) = (docker.removals.clone(), docker.address.clone(), docker.owner.clone());
        let builds = builds.filter(|builds| goes_with_job(builds));
        let remove_builds = move || {
            if let Some(Err(error)) = builds.as_deref().map(remove::remove) {
                let directory = builds.unwrap_or_default();
                log::warn!("the directory of a job is not removed directory={} error={error}", directory.display());
            }
        };
        Some(move || removals.start(&address, &owner, &job, remove_builds))
    }

    /// The image of a job as it is named, with variables in it.
    pub(super) fn image<'a>(&'a self, payload: &'a Payload) -> &'a str {
        let own = payload.image.name.as_str();
        if own.is_empty() { &self.runner.docker.image } else { own }
    }
}

impl Engine<'_> {
    /// Everything that scripts in a container need.
    pub(super) fn prepare_container(&mut self, docker: &Docker) -> io::Result<Result<(), JobError>> {
        if let Err(error) = std::fs::create_dir_all(&self.context.caches) {
            let caches = self.context.caches.display();
            return Ok(Err(JobError::system(format!("the directory of caches {caches} cannot be made: {error}"))));
        }
        let plan = match self.container_plan(docker) {
            Ok(plan) => Plan::PrepareContainer(Box::new(plan)),
            Err(error) => return Ok(Err(error)),
        };
        let plan = plan.to_text().map_err(io::Error::other)?;
        let limit = self.prepare_limit();
        self.step(Task::Work { plan, rights: Rights::All, doors: None }, &limit, StopsFor::Any)
    }

    fn container_plan(&self, docker: &Docker) -> Result<prepare::Plan, JobError> {
        let (runner, place, variables) = (&self.context.runner, &self.prepared.place, &self.prepared.variables);
        let job = name_of(&self.payload, &self.record);
        let short_token = runner.token.short();
        let facts = Facts {
            payload: &self.payload,
            concurrent: self.record.concurrent,
            job: &job,
            runner: &short_token,
            system_id: &self.context.system_id,
        };
        let prefix = facts.prefix(&docker.owner);
        let expand = |text: &str| variables.expand(text);
        let volumes = volumes::of_job(&volumes::Facts {
            docker: &runner.docker,
            builds: &docker.builds,
            project: &place.seen(&place.project),
            host_builds: &place.builds,
            owner: format!(
                "{}-{}-{}-{}",
                runner.token.reveal(),
                self.context.system_id,
                self.payload.job_info.project_id,
                self.record.concurrent.1
            ),
            prefix: &prefix,
            protected: is_protected(&self.payload),
            labels: &facts.labels(&docker.owner, "cache"),
            expand: &expand,
        })?;
        let mut labels = facts.labels(&docker.owner, "build");
        labels.extend(runner.docker.container_labels.iter().map(|(key, value)| (key.clone(), expand(value))));
        if runner.docker.volume_keep {
            labels.insert(names::VOLUME_KEEP.to_owned(), "true".to_owned());
        }
        let flags = &self.prepared.flags;
        Ok(prepare::Plan {
            address: docker.address.clone(),
            docker: runner.docker_text.clone(),
            payload: self.record.payload.clone(),
            variables: variables.clone(),
            host_name: facts.host_name(),
            labels,
            network: self.network_of_job(&facts, docker),
            volumes: volumes.made,
            binds: volumes.binds,
            access: Access::of_agent(
                runner,
                &choice::references(&runner.docker, &self.payload, &expand),
                &docker.tokens,
            ),
            shell: runner.shell.clone(),
            init: flags.is_on("FF_USE_INIT_WITH_DOCKER_EXECUTOR"),
            native_stop: flags.is_on("FF_USE_NATIVE_CONTAINER_STOP"),
            root: place.builds.clone(),
            directories: [place.project.clone(), place.temporary.clone()],
            prefix,
        })
    }

    /// What work on the job's files sees of the machine: caches, which are those of all projects, only where it is about
    /// them.
    pub(super) fn walls(&self, plan: &Plan) -> Walls {
        let caches = matches!(plan, Plan::RestoreCache(_) | Plan::SaveCache(_)).then(|| self.context.caches.clone());
        let tls = &self.context.runner.tls;
        let files = [&tls.ca_file, &tls.cert_file, &tls.key_file];
        Walls {
            writable: [self.prepared.place.builds.clone()].into_iter().chain(caches).collect(),
            readable: files.into_iter().flatten().cloned().collect(),
            open: !self.prepared.flags.is_on("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR"),
        }
    }

    fn network_of_job(&self, facts: &Facts<'_>, docker: &Docker) -> Option<CreateNetwork> {
        let (configured, concurrent) = (&self.context.runner.docker, self.record.concurrent.1);
        let mtu = configured.network_mtu;
        let mtu = (mtu > 0).then(|| ("com.docker.network.driver.mtu".to_owned(), mtu.to_string()));
        self.context.network_of_job(&self.payload, &self.prepared.flags, concurrent).map(|name| CreateNetwork {
            name,
            driver: "bridge".to_owned(),
            enable_ipv6: configured.enable_ipv6,
            options: mtu.into_iter().collect(),
            labels: facts.labels(&docker.owner, "network"),
            check_duplicate: true,
        })
    }

    /// A script as a task in the job's container.
    pub(super) fn container_script(&self, text: String, merge: bool) -> Task {
        let Some(container) = self.record.progress.container.clone() else {
            // Scripts run only after the container was made.
            return Task::Work { plan: String::new(), rights: Rights::All, doors: None };
        };
        let place = &self.prepared.place;
        let below = place.temporary.strip_prefix(&place.builds).map(PathBuf::from).unwrap_or_default();
        let seen = |name: &str| place.seen(&place.temporary.join(name)).display().to_string();
        let [output, error] = DOORS;
        let doors = Doors {
            root: place.builds.clone(),
            output: below.join(output),
            error: (!merge).then(|| below.join(error)),
        };
        let hand_over = self.prepared.flags.is_on("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR").then(|| script::HandOver {
            root: place.builds.clone(),
            directories: vec![place.project.clone(), place.temporary.clone()],
        });
        let plan = Plan::ContainerScript(Box::new(script::Plan {
            container: *container,
            renew: self.record.progress.container_spent,
            attempts: self.prepared.variables.attempts("EXECUTOR_JOB_SECTION_ATTEMPTS"),
            mark: format!("mayfly-{}-{:x}-{}", self.payload.id, self.record.began, self.record.progress.steps),
            script: text,
            doors: (seen(output), (!merge).then(|| seen(error))),
            grace: self.context.runner.kill_grace,
            hand_over,
        }));
        // A plan that cannot be written is one that cannot be read, and the step says so.
        Task::Work { plan: plan.to_text().unwrap_or_default(), rights: Rights::All, doors: Some(doors) }
    }

    /// From TERM to KILL for the process of a task: one that speaks with an engine has its own patience with the script.
    pub(super) fn grace_of(&self, task: &Task) -> Duration {
        match task {
            Task::Work { doors: Some(_), .. } => self.context.runner.kill_grace + ENGINE_PATIENCE,
            _ => self.context.runner.kill_grace,
        }
    }

    /// What work has to tell beside its exit status.
    pub(super) fn hear_report(&mut self, report: &str) -> Option<Result<(), JobError>> {
        match Report::of_text(report)? {
            Report::Failed(error) => Some(Err(error)),
            Report::Prepared(container) => {
                self.record.progress.container = Some(container);
                self.follow_services(From::Start);
                Some(Ok(()))
            }
        }
    }

    /// What removes everything that was made for the job, beside whatever comes next.
    pub(super) fn removal(&self) -> Option<impl FnOnce() + use<>> {
        self.record.progress.stage?;
        self.context.removal(name_of(&self.payload, &self.record), Some(self.prepared.place.builds.clone()))
    }
}

fn goes_with_job(builds: &Path) -> bool {
    builds.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(OF_ONE_JOB))
}

/// The directories of jobs that nobody knows any more, below the root of builds in containers.
pub fn forgotten(builds: &Path, kept: &[PathBuf]) -> Vec<PathBuf> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = entries(builds).flat_map(|of_runner| entries(&of_runner));
    all.filter(|directory| goes_with_job(directory) && !kept.contains(directory)).collect()
}

/// Removes them.
pub fn remove_forgotten(directories: &[PathBuf]) {
    for directory in directories {
        if let Err(error) = remove::remove(directory) {
            log::warn!("the directory of an old job is not removed directory={} error={error}", directory.display());
        }
    }
}
