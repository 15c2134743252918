//! One attempt of a job: takes a tree, creates the payload, and runs the agent's job engine.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::containers::Containers;
use super::payload;
use super::project::{LocalProject, Submodules};
use super::record::{CoverageFinder, LogExtract, Recorder};
use super::screen::Screen;
use super::tree::{Tree, TreeContent};
use crate::config::Runner;
use crate::coordinator::{Coordinator, JobState};
use crate::executor::ConcurrentIds;
use crate::executor::job_dirs::JobDirs;
use crate::executor::shell::Shell;
use crate::failure::FailureReason;
use crate::instance::Identity;
use crate::job::artifacts::local_archive;
use crate::job::context::{JobExecutor, LocalRun, RunnerContext};
use crate::job::control::JobControl;
use crate::job::run::{self, JobOutcome};
use crate::journal::{self, Progress, Record, SlotDirectory};
use crate::local::dotenv;
use crate::local::facts::now_in_seconds;
use crate::pipeline::JobRun;
use crate::pipeline::plan::{EnvVariable, Job, Plan};
use crate::sys::BootTime;

/// The parts that all jobs of a run share.
pub struct RunContext {
    /// The project of the checkout.
    pub project: Arc<LocalProject>,
    /// The directory of this run: journals, file variables.
    pub scratch: PathBuf,
    /// The artifacts of jobs, by job id.
    pub artifacts: PathBuf,
    /// The runner, as the job engine expects it.
    pub runner: Arc<Runner>,
    /// Runs scripts on this machine.
    pub shell: Arc<Shell>,
    /// Runs scripts in containers, if a job needs one.
    pub containers: Option<Containers>,
    /// The identity of this machine.
    pub identity: Identity,
    pub screen: Arc<Screen>,
    /// Whether an attempt returns the tree of a failed job, for a shell or to keep it, instead of releasing it.
    pub returns_failed_trees: bool,
    /// The directory for kept trees.
    pub kept: PathBuf,
}

/// The job to run.
pub struct Attempt {
    /// The project that the job belongs to.
    pub project: Arc<LocalProject>,
    pub plan: Arc<Plan>,
    /// The index of the job in the plan.
    pub job: usize,
    /// `CI_JOB_ID`
    pub id: i64,
    /// The key of the job on the screen.
    pub key: usize,
    /// Jobs whose artifacts the job downloads.
    pub dependencies: Vec<(i64, String)>,
    /// Variables from the dotenv reports of those jobs.
    pub dotenv: Vec<(String, String)>,
    /// The image of the job; `None` for the shell.
    pub image: Option<serde_json::Value>,
    /// The file for the job's output.
    pub log: Option<PathBuf>,
    /// Finds the coverage in the output.
    pub coverage: Option<CoverageFinder>,
    /// A message to show before the output: why mayfly retries the job.
    pub notice: Option<String>,
}

/// The result of an attempt.
pub struct AttemptResult {
    /// `None`: the job succeeded.
    pub failure: Option<(FailureReason, Option<i32>)>,
    /// Data extracted from the log.
    pub extracted: LogExtract,
    /// The state of the job, if it failed and its state is kept.
    pub failed_job: Option<FailedJob>,
}

/// The kept state of a failed job.
pub struct FailedJob {
    pub tree: Tree,
    pub exports: Vec<(String, String)>,
    /// The image, if the job ran in a container.
    pub image: Option<String>,
    /// The object directories that the repositories of the tree refer to.
    pub objects: Vec<PathBuf>,
}

/// Runs an attempt to its end.
pub fn run(context: &RunContext, attempt: Attempt, control: &Arc<JobControl>) -> AttemptResult {
    let screen = Arc::clone(&context.screen);
    let recorder = Arc::new(Recorder::new(screen, attempt.key, attempt.log.as_deref(), attempt.coverage));
    if let Some(notice) = attempt.notice {
        recorder.notice(notice);
    }
    let job = &attempt.plan.jobs[attempt.job];
    let inputs = AttemptInputs {
        project: &attempt.project,
        plan: &attempt.plan,
        job,
        id: attempt.id,
        dependencies: &attempt.dependencies,
        variables: variables(&attempt.plan, job, attempt.id, attempt.dotenv),
        image: attempt.image,
    };
    let (outcome, tree) = match inputs.take_tree(context) {
        Ok(tree) => (inputs.run(context, &tree, Arc::clone(&recorder), control), Some(tree)),
        Err(error) => (Err(io::Error::new(error.kind(), format!("cannot copy the checkout: {error}"))), None),
    };
    let mut extracted = recorder.extracted();
    let failure = match outcome {
        Ok(JobOutcome::Reported { state: JobState::Failed { reason, exit_code }, .. }) => Some((reason, exit_code)),
        Ok(JobOutcome::Reported { .. }) => reason_to_refuse_dotenv(context, attempt.id).map(|why| {
            recorder.notice(why.clone());
            extracted.message = Some(why);
            (FailureReason::ScriptFailure, Some(1))
        }),
        Ok(JobOutcome::Dropped) => Some((FailureReason::RunnerInterrupted, None)),
        Err(error) => {
            extracted.message = Some(error.to_string());
            Some((FailureReason::RunnerSystemFailure, None))
        }
    };
    let kept = tree.filter(|_| failure.is_some() && context.returns_failed_trees);
    let failed_job = kept.map(|tree| inputs.failed_job(tree));
    AttemptResult { failure, extracted, failed_job }
}

/// Why GitLab would refuse the dotenv report of the job, and so fail the job.
fn reason_to_refuse_dotenv(context: &RunContext, id: i64) -> Option<String> {
    let read = dotenv::read(&local_archive(&context.artifacts, &id.into(), "dotenv"));
    read.err().filter(|error| error.kind() == io::ErrorKind::InvalidData).map(|error| error.to_string())
}

/// The inputs of an attempt, with the variables of the job.
struct AttemptInputs<'a> {
    project: &'a LocalProject,
    plan: &'a Plan,
    job: &'a Job,
    id: i64,
    dependencies: &'a [(i64, String)],
    variables: Vec<EnvVariable>,
    image: Option<serde_json::Value>,
}

fn variables(plan: &Plan, job: &Job, id: i64, dotenv: Vec<(String, String)>) -> Vec<EnvVariable> {
    let predefined = payload::runner_variables();
    plan.env(job, &JobRun { id: id.cast_unsigned(), started_at: now_in_seconds(), dotenv, predefined })
}

impl AttemptInputs<'_> {
    /// The state of the failed job, for a shell or for the directory of kept trees.
    fn failed_job(&self, tree: Tree) -> FailedJob {
        let exports = self.variables.iter().filter(|variable| !variable.file);
        FailedJob {
            exports: exports.map(|variable| (variable.key.to_string(), variable.value.clone())).collect(),
            image: self
                .image
                .as_ref()
                .and_then(|image| image["name"].as_str())
                .map(|name| self.plan.expand(self.job, name)),
            objects: self.project.objects.clone(),
            tree,
        }
    }

    /// Takes a tree for the job.
    fn take_tree(&self, context: &RunContext) -> io::Result<Tree> {
        let value = |key: &str| {
            let found = self.variables.iter().rev().find(|variable| &*variable.key == key);
            found.map(|variable| variable.value.as_str()).unwrap_or_default()
        };
        let content = match value("GIT_STRATEGY") {
            "none" | "empty" => TreeContent::Nothing,
            _ => TreeContent::Sources,
        };
        let submodules = match value("GIT_SUBMODULE_STRATEGY") {
            "normal" | "recursive" => Submodules::Included,
            _ => Submodules::Excluded,
        };
        let source = self.project.source(submodules)?;
        let restore_ownership = |directory: &Path| match &context.containers {
            Some(containers) => containers.restore_ownership(directory),
            None => false,
        };
        let tree = self.project.trees.take(source, content, &restore_ownership)?;
        // Without the directory for temporary files, the script would start two programs to create it. In a container,
        // the job's user must own the directory, so only the script can create it.
        if self.image.is_none() {
            tree.make_temporary()?;
        }
        Ok(tree)
    }

    fn run(
        &self,
        context: &RunContext,
        tree: &Tree,
        recorder: Arc<Recorder>,
        control: &Arc<JobControl>,
    ) -> io::Result<JobOutcome> {
        let text = payload::encode(
            self.job,
            &payload::PayloadFacts {
                id: self.id,
                variables: &self.variables,
                dependencies: self.dependencies,
                image: self.image.clone(),
                project: &self.project.name,
                is_in_container: self.image.is_some(),
            },
        )?;
        let payload = crate::payload::decode(text.as_bytes()).map_err(|error| io::Error::other(error.why))?;
        let job_context = self.job_context(context, tree, recorder);
        let record = Record {
            version: journal::VERSION,
            identity: job_context.identity.clone(),
            url: String::new(),
            tls: Default::default(),
            short_token: String::new(),
            configuration: String::new(),
            key: None,
            payload: text,
            request_id: String::new(),
            concurrent: ConcurrentIds::default(),
            began: BootTime::now(),
            number: 0,
            offer: None,
            progress: Progress::default(),
        };
        let directory = SlotDirectory::at_path(context.scratch.join(format!("job-{}", self.id)));
        directory.create()?;
        run::run(&job_context, directory, record, payload, control)
    }

    fn job_context(&self, context: &RunContext, tree: &Tree, recorder: Arc<Recorder>) -> RunnerContext {
        let containers = context.containers.as_ref().filter(|_| self.image.is_some());
        let (executor, runner): (Arc<dyn JobExecutor>, _) = match containers {
            Some(containers) => (containers.executor(), containers.runner()),
            None => (Arc::clone(&context.shell) as Arc<dyn JobExecutor>, Arc::clone(&context.runner)),
        };
        let dirs = JobDirs {
            builds: tree.builds.clone(),
            project: tree.project.clone(),
            temporary: tree.temporary.clone(),
            cache: self.project.caches.clone(),
            container_builds: containers.map(|containers| containers.builds()),
        };
        RunnerContext {
            runner,
            // A job of a local run is never resumed.
            carried: "".into(),
            storage: None,
            system_id: "local".to_owned(),
            builds: tree.builds.clone(),
            caches: self.project.caches.clone(),
            store: None,
            local: Some(LocalRun { dirs, artifacts: context.artifacts.clone() }),
            coordinator: recorder as Arc<dyn Coordinator>,
            executor,
            identity: context.identity.clone(),
            metadata_block: None,
        }
    }
}
