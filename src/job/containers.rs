//! Jobs in containers: what the stages of a job ask of the executor for them.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::context::{Context, Job};
use super::flags::Flags;
use super::outcome::StageResult;
use super::sources::{self, Strategy, remove};
use super::work::Plan;
use crate::executor::docker::credentials::Access;
use crate::executor::docker::engine::spec::CreateNetwork;
use crate::executor::docker::names::{self, Facts};
use crate::executor::docker::{Docker, choice, prepare, script, volumes};
use crate::executor::place::Place;
use crate::failure::JobError;
use crate::journal::Progress;
use crate::payload::Payload;
use crate::payload::variables::Variables;
use crate::shim::spec::{Doors, Rights, Task, Walls};

/// The named pipes of scripts, in the job's temporary directory.
pub(super) const DOORS: [&str; 2] = ["mayfly.stdout", "mayfly.stderr"];

/// The beginning of the names of directories that go with their job.
const OF_ONE_JOB: &str = "job-";

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

/// The preparation of everything that scripts in a container need, as a task. Errors: what the job asks for cannot be had.
pub(super) fn prepare_task(job: &Job<'_>, docker: &Docker) -> StageResult<Task> {
    if let Err(error) = std::fs::create_dir_all(&job.context.caches) {
        let caches = job.context.caches.display();
        return Err(JobError::system(format!("the directory of caches {caches} cannot be made: {error}")).into());
    }
    let plan = Plan::PrepareContainer(Box::new(container_plan(job, docker)?));
    Ok(Task::Work { plan: plan.to_text().map_err(io::Error::other)?, rights: Rights::All, doors: None })
}

fn container_plan(job: &Job<'_>, docker: &Docker) -> Result<prepare::Plan, JobError> {
    let (runner, dirs, variables) = (&job.context.runner, &job.settings.dirs, &job.settings.variables);
    let name = job.name();
    let short_token = runner.token.short();
    let facts = Facts {
        payload: &job.payload,
        concurrent: job.concurrent,
        job: &name,
        runner: &short_token,
        system_id: &job.context.system_id,
    };
    let prefix = facts.prefix(&docker.owner);
    let expand = |text: &str| variables.expand(text);
    let volumes = volumes::of_job(&volumes::Facts {
        docker: &runner.docker,
        builds: &docker.builds,
        project: &dirs.seen(&dirs.project),
        host_builds: &dirs.builds,
        owner: format!(
            "{}-{}-{}-{}",
            runner.token.reveal(),
            job.context.system_id,
            job.payload.job_info.project_id,
            job.concurrent.1
        ),
        prefix: &prefix,
        protected: is_protected(&job.payload),
        labels: &facts.labels(&docker.owner, "cache"),
        expand: &expand,
    })?;
    let mut labels = facts.labels(&docker.owner, "build");
    labels.extend(runner.docker.container_labels.iter().map(|(key, value)| (key.clone(), expand(value))));
    if runner.docker.volume_keep {
        labels.insert(names::VOLUME_KEEP.to_owned(), "true".to_owned());
    }
    let flags = &job.settings.flags;
    Ok(prepare::Plan {
        address: docker.address.clone(),
        docker: runner.docker_text.clone(),
        payload: job.payload_text.clone(),
        variables: variables.clone(),
        host_name: facts.host_name(),
        labels,
        network: network(job, &facts, docker),
        volumes: volumes.made,
        binds: volumes.binds,
        access: Access::of_agent(runner, &choice::references(&runner.docker, &job.payload, &expand), &docker.tokens),
        shell: runner.shell.clone(),
        init: flags.is_on("FF_USE_INIT_WITH_DOCKER_EXECUTOR"),
        native_stop: flags.is_on("FF_USE_NATIVE_CONTAINER_STOP"),
        root: dirs.builds.clone(),
        directories: [dirs.project.clone(), dirs.temporary.clone()],
        prefix,
    })
}

/// What a file task sees of the machine. The caches are those of all projects, so only tasks about caches see them.
pub(super) fn walls(job: &Job<'_>, plan: &Plan) -> Walls {
    let caches = matches!(plan, Plan::RestoreCache(_) | Plan::SaveCache(_)).then(|| job.context.caches.clone());
    let tls = &job.context.runner.tls;
    let files = [&tls.ca_file, &tls.cert_file, &tls.key_file];
    Walls {
        writable: [job.settings.dirs.builds.clone()].into_iter().chain(caches).collect(),
        readable: files.into_iter().flatten().cloned().collect(),
        open: !job.settings.flags.is_on("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR"),
    }
}

fn network(job: &Job<'_>, facts: &Facts<'_>, docker: &Docker) -> Option<CreateNetwork> {
    let configured = &job.context.runner.docker;
    let mtu = configured.network_mtu;
    let mtu = (mtu > 0).then(|| ("com.docker.network.driver.mtu".to_owned(), mtu.to_string()));
    let name = job.context.network_of_job(&job.payload, &job.settings.flags, job.concurrent.1)?;
    Some(CreateNetwork {
        name,
        driver: "bridge".to_owned(),
        enable_ipv6: configured.enable_ipv6,
        options: mtu.into_iter().collect(),
        labels: facts.labels(&docker.owner, "network"),
        check_duplicate: true,
    })
}

/// A script as a task in the job's container.
pub(super) fn script_task(job: &Job<'_>, progress: &Progress, text: String, merge: bool) -> Task {
    let Some(container) = progress.container.clone() else {
        // Scripts run only after the container was made.
        return Task::Work { plan: String::new(), rights: Rights::All, doors: None };
    };
    let dirs = &job.settings.dirs;
    let below = dirs.temporary.strip_prefix(&dirs.builds).map(PathBuf::from).unwrap_or_default();
    let seen = |name: &str| dirs.seen(&dirs.temporary.join(name)).display().to_string();
    let [output, error] = DOORS;
    let doors =
        Doors { root: dirs.builds.clone(), output: below.join(output), error: (!merge).then(|| below.join(error)) };
    let hand_over = job.settings.flags.is_on("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR").then(|| script::HandOver {
        root: dirs.builds.clone(),
        directories: vec![dirs.project.clone(), dirs.temporary.clone()],
    });
    let plan = Plan::ContainerScript(Box::new(script::Plan {
        container: *container,
        renew: progress.container_spent,
        attempts: job.settings.variables.attempts("EXECUTOR_JOB_SECTION_ATTEMPTS"),
        mark: format!("mayfly-{}-{}", job.name(), progress.steps),
        script: text,
        doors: (seen(output), (!merge).then(|| seen(error))),
        grace: job.context.runner.kill_grace,
        hand_over,
    }));
    // A plan that cannot be serialized cannot be read either, and the step fails with that.
    Task::Work { plan: plan.to_text().unwrap_or_default(), rights: Rights::All, doors: Some(doors) }
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
