//! Runs the stages of a job in containers.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::agent_task::AgentTask;
use super::build_dir::BuildDir;
use super::context::{CleanUp, Job, JobExecutor, RunnerContext};
use super::file_task::FileTask;
use super::flags;
use super::limits::limits;
use super::removal::DirectoryRemoval;
use super::script::GITLAB_ENV_FILE;
use super::sources::{self, GitStrategy};
use super::stage_result::StageResult;
use crate::config::feature_flags::JobHost;
use crate::executor::docker::credentials::LoginSources;
use crate::executor::docker::engine::spec::CreateNetwork;
use crate::executor::docker::names::{self, JobNames};
use crate::executor::docker::{DockerExecutor, prepare, resolved_image, script, volumes};
use crate::executor::job_dirs::{JobDirs, is_job_dir, job_dir_name};
use crate::executor::roots;
use crate::failure::JobError;
use crate::journal::{ContainerCondition, Progress};
use crate::payload::Payload;
use crate::payload::variables::Variables;
use crate::shim::spec::{OutputFifos, OutputStreams, Rights, Sandbox, StepProgram};

/// The named pipes for the output of scripts, in the job's temporary directory.
pub(super) const OUTPUT_FIFOS: [&str; 2] = ["mayfly.stdout", "mayfly.stderr"];

impl JobExecutor for DockerExecutor {
    /// A directory for the job's project; protected and unprotected jobs have separate ones. It is removed with the job
    /// unless the job reuses sources (`GIT_STRATEGY: fetch`). A configured mount replaces it.
    fn dirs(
        &self,
        context: &RunnerContext,
        payload: &Payload,
        concurrent: u32,
        variables: &dyn Fn(&JobDirs) -> Variables,
    ) -> JobDirs {
        let (runner, caches) = (&context.runner, &context.caches);
        let short_token = runner.token.short();
        if let Some(host_builds) = volumes::configured_builds(&runner.docker, &self.builds) {
            let dirs = JobDirs::on_host(&host_builds, caches, &short_token, concurrent, payload);
            return JobDirs { container_builds: Some(self.builds.clone()), ..dirs };
        }
        let protected = if payload.is_protected() { "-protected" } else { "" };
        let own = format!("project-{}-{concurrent}{protected}", payload.job_info.project_id);
        let below = context.builds.join(short_token);
        let at = |own: &str| JobDirs::in_container(&below.join(own), &self.builds, caches, payload);
        let lasting = at(&own);
        match sources::strategy(payload, &variables(&lasting)) {
            Ok(GitStrategy::Fetch) | Err(_) => lasting,
            Ok(_) => at(&job_dir_name(&payload.id)),
        }
    }

    fn shares_builds(&self, context: &RunnerContext) -> bool {
        volumes::configured_builds(&context.runner.docker, &self.builds).is_some()
    }

    fn build_dir(&self, context: &RunnerContext, dirs: &JobDirs) -> Option<BuildDir> {
        if self.shares_builds(context) {
            return BuildDir::of_project(dirs, None, None);
        }
        // The agent created this directory, and everything in it belongs to the job.
        let (root, trusted) = (context.builds.clone(), dirs.builds.clone());
        (!is_job_dir(&dirs.builds)).then(|| BuildDir { root, trusted, below: PathBuf::new(), user: None })
    }

    fn job_host(&self) -> JobHost {
        JobHost::Containers
    }

    fn has_services(&self, job: &Job<'_>) -> bool {
        !(job.payload.services.is_empty() && job.context.runner.docker.services.is_empty())
    }

    fn image<'a>(&self, context: &'a RunnerContext, payload: &'a Payload) -> Option<&'a str> {
        let own = payload.image.name.as_str();
        Some(if own.is_empty() { &context.runner.docker.image } else { own })
    }

    fn own_network(&self, context: &RunnerContext, payload: &Payload, concurrent: u32) -> Option<String> {
        let runner = &context.runner;
        let project = payload.job_info.project_id;
        let is_free = runner.docker.network_mode.is_empty();
        is_free.then(|| format!("runner-{}-{project}-{concurrent}-{}", runner.token.short(), payload.id))
    }

    fn prepare(&self, job: &Job<'_>) -> StageResult<Option<StepProgram>> {
        roots::create(&job.context.caches, None, 0o700).map_err(|error| {
            let caches = job.context.caches.display();
            JobError::system(format!("cannot create the directory of caches {caches}: {error}"))
        })?;
        let task = AgentTask::PrepareContainer(Box::new(prepare_task(job, self)?));
        let task = task.to_text().map_err(io::Error::other)?;
        Ok(Some(StepProgram::AgentTask { task, rights: Rights::All }))
    }

    /// The user of the container is not known outside it, so the script creates the file.
    fn reset_env_file(&self, job: &Job<'_>) {
        job.settings.dirs.remove_temporary(&[GITLAB_ENV_FILE.to_owned()], None);
    }

    fn script(&self, job: &Job<'_>, progress: &Progress, text: String, streams: OutputStreams) -> StepProgram {
        script_program(job, progress, text, streams)
    }

    fn file_task_rights(&self, job: &Job<'_>, task: &FileTask) -> Rights {
        Rights::Sandboxed(sandbox(job, task))
    }

    fn clean_up(&self, context: &RunnerContext, job: String, builds: Option<&Path>) -> Option<CleanUp> {
        let (removals, address, owner) = (self.removals.clone(), self.address.clone(), self.owner.clone());
        let builds = builds.filter(|builds| is_job_dir(builds)).map(Path::to_owned);
        let removal = DirectoryRemoval::new(&context.runner, self.parents.clone());
        let remove_builds = move || builds.iter().for_each(|directory| removal.remove(directory));
        Some(Box::new(move |then| {
            removals.start(&address, &owner, &job, move || {
                remove_builds();
                then();
            });
        }))
    }
}

/// The task that creates the job's container.
fn prepare_task(job: &Job<'_>, docker: &DockerExecutor) -> Result<prepare::PrepareTask, JobError> {
    let (runner, dirs, variables) = (&job.context.runner, &job.settings.dirs, &job.settings.variables);
    let name = job.name();
    let short_token = runner.token.short();
    let names = JobNames {
        payload: &job.payload,
        concurrent: job.concurrent,
        job: &name,
        runner: &short_token,
        system_id: &job.context.system_id,
    };
    let expand = |text: &str| variables.expand(text);
    let volumes = job_volumes(job, docker, &names)?;
    let flags = &job.settings.flags;
    Ok(prepare::PrepareTask {
        address: docker.address.clone(),
        docker: runner.docker_text.clone(),
        payload: job.payload_text.clone(),
        variables: variables.clone(),
        host_name: names.host_name(),
        labels: container_labels(job, docker, &names),
        network: network(job, &names, docker),
        volumes: volumes.to_create,
        binds: volumes.binds,
        access: LoginSources::for_runner(
            runner,
            &resolved_image::references(&runner.docker, &job.payload, &expand),
            &docker.tokens,
        ),
        shell: runner.shell.clone(),
        init: flags.is_on(flags::FF_USE_INIT_WITH_DOCKER_EXECUTOR),
        native_stop: flags.is_on(flags::FF_USE_NATIVE_CONTAINER_STOP),
        root: dirs.builds.clone(),
        directories: [dirs.project.clone(), dirs.temporary.clone()],
        prefix: names.prefix(&docker.owner),
    })
}

/// The volumes of the job's containers. Cache volumes belong to one project, one runner and one concurrent id.
fn job_volumes(job: &Job<'_>, docker: &DockerExecutor, names: &JobNames<'_>) -> Result<volumes::Volumes, JobError> {
    let (runner, dirs) = (&job.context.runner, &job.settings.dirs);
    let (project, concurrent) = (job.payload.job_info.project_id, job.concurrent.of_project);
    let cache_owner = format!("{}-{}-{project}-{concurrent}", runner.key().reveal(), job.context.system_id);
    volumes::plan_volumes(&volumes::VolumeSettings {
        docker: &runner.docker,
        builds: &docker.builds,
        project: &dirs.as_seen_by_job(&dirs.project),
        host_builds: &dirs.builds,
        owner: cache_owner,
        prefix: &names.prefix(&docker.owner),
        is_protected: job.payload.is_protected(),
        labels: &names.labels(&docker.owner, "cache"),
        expand: &|text: &str| job.settings.variables.expand(text),
    })
}

/// The labels of the job's container: those of the agent, and those of the configuration.
fn container_labels(job: &Job<'_>, docker: &DockerExecutor, names: &JobNames<'_>) -> BTreeMap<String, String> {
    let configured = &job.context.runner.docker;
    let mut labels = names.labels(&docker.owner, "build");
    let expanded = |value: &String| job.settings.variables.expand(value);
    labels.extend(configured.container_labels.iter().map(|(key, value)| (key.clone(), expanded(value))));
    if configured.volume_keep {
        labels.insert(names::VOLUME_KEEP.to_owned(), "true".to_owned());
    }
    labels
}

/// The sandbox of a file task. Caches belong to all projects, so only cache tasks see the directory of caches.
pub(super) fn sandbox(job: &Job<'_>, task: &FileTask) -> Sandbox {
    let caches = matches!(task, FileTask::RestoreCache(_) | FileTask::SaveCache(_)).then(|| job.context.caches.clone());
    let is_transfer = matches!(task, FileTask::DownloadArtifacts(_) | FileTask::UploadArtifacts(_));
    let artifacts = job.context.local.as_ref().filter(|_| is_transfer).map(|local| local.artifacts.clone());
    let runner = &job.context.runner;
    Sandbox {
        writable: [job.settings.dirs.builds.clone()].into_iter().chain(caches).chain(artifacts).collect(),
        readable: runner.tls.ca_file.iter().cloned().collect(),
        world_writable: !job.settings.flags.is_on(flags::FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR),
        uid: runner.confined.uid,
        network: task.network(&[&runner.url, runner.clone_url.as_deref().unwrap_or_default()]),
        ambient_capabilities: task.reuses_files(),
        limits: limits(runner),
    }
}

/// The job's own network (`FF_NETWORK_PER_BUILD`).
fn network(job: &Job<'_>, names: &JobNames<'_>, docker: &DockerExecutor) -> Option<CreateNetwork> {
    if !job.settings.flags.is_on(flags::FF_NETWORK_PER_BUILD) {
        return None;
    }
    let configured = &job.context.runner.docker;
    let mtu = configured.network_mtu;
    let mtu = (mtu > 0).then(|| ("com.docker.network.driver.mtu".to_owned(), mtu.to_string()));
    let name = docker.own_network(job.context, &job.payload, job.concurrent.of_project)?;
    Some(CreateNetwork {
        name,
        driver: "bridge".to_owned(),
        enable_ipv6: configured.enable_ipv6,
        options: mtu.into_iter().collect(),
        labels: names.labels(&docker.owner, "network"),
        check_duplicate: true,
    })
}

/// A script in the job's container.
fn script_program(job: &Job<'_>, progress: &Progress, text: String, streams: OutputStreams) -> StepProgram {
    let Some(container) = progress.container.clone() else {
        // This is not reached: scripts run only after the container was created.
        return StepProgram::AgentTask { task: String::new(), rights: Rights::All };
    };
    let dirs = &job.settings.dirs;
    let below = dirs.temporary.strip_prefix(&dirs.builds).map(PathBuf::from).unwrap_or_default();
    let seen = |name: &str| dirs.as_seen_by_job(&dirs.temporary.join(name)).display().to_string();
    let [output, error] = OUTPUT_FIFOS;
    let error = (streams == OutputStreams::Separate).then_some(error);
    let output_fifos = OutputFifos {
        root: dirs.builds.clone(),
        output: below.join(output),
        error: error.map(|error| below.join(error)),
    };
    let chown = job.settings.flags.is_on(flags::FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR).then(|| script::ChownDirs {
        root: dirs.builds.clone(),
        directories: vec![dirs.project.clone(), dirs.temporary.clone()],
    });
    let task = AgentTask::ContainerScript(Box::new(script::ContainerScript {
        container: *container.prepared,
        recreate_container: container.condition == ContainerCondition::Interrupted,
        attempts: job.settings.variables.attempts("EXECUTOR_JOB_SECTION_ATTEMPTS"),
        start_marker: format!("mayfly-{}-{}", job.name(), progress.steps),
        script: text,
        output_fifos: (seen(output), error.map(seen)),
        grace: job.context.runner.kill_grace,
        chown,
    }));
    // A task that cannot be serialised cannot be parsed either, which fails the step.
    StepProgram::ContainerScript { task: task.to_text().unwrap_or_default(), output_fifos }
}
