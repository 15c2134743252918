//! The context of a job (agent, runner, machine), and the interface of executors for jobs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::build_dir::BuildDir;
use super::cache::s3::S3Store;
use super::control::JobControl;
use super::deadlines::Deadlines;
use super::file_task::FileTask;
use super::flags::Flags;
use super::stage_result::StageResult;
use super::storage::Storage;
use crate::config::Runner;
use crate::config::feature_flags::JobHost;
use crate::coordinator::Coordinator;
use crate::executor::job_dirs::JobDirs;
use crate::executor::{ConcurrentIds, Executor};
use crate::instance::Identity;
use crate::instance::metadata_block::MetadataBlock;
use crate::journal::{Progress, Resumption};
use crate::monitor::metrics::RunnerLabels;
use crate::payload::Payload;
use crate::payload::variables::Variables;
use crate::shim::spec::{OutputStreams, Rights, StepProgram};
use crate::sys::BootTime;
use crate::trace::FilterSpec;

/// The context of the jobs of one runner.
#[derive(Clone)]
pub struct RunnerContext {
    pub runner: Arc<Runner>,
    /// The configuration that an agent needs to resume a job of this runner; see [`crate::config::carried`].
    pub carried: Arc<str>,
    /// The files and images that jobs leave on this machine; `None` for local runs.
    pub storage: Option<Arc<Storage>>,
    /// The machine's `system_id`.
    pub system_id: String,
    /// The directory for builds, absolute.
    pub builds: PathBuf,
    /// The directory for local caches, absolute.
    pub caches: PathBuf,
    /// The object store for caches, if one is configured.
    pub store: Option<Arc<S3Store>>,
    /// Set for jobs of `mayfly exec`.
    pub local: Option<LocalRun>,
    /// Receives the log and the states of jobs.
    pub coordinator: Arc<dyn Coordinator>,
    /// Runs scripts.
    pub executor: Arc<dyn JobExecutor>,
    /// The identity of the machine and its boot.
    pub identity: Identity,
    /// Blocks access of jobs to the machine's credentials, if configured.
    pub metadata_block: Option<Arc<MetadataBlock>>,
}

/// The settings of a job that apply only to a local run.
#[derive(Clone)]
pub struct LocalRun {
    /// The directories of the job: a copy of the developer's checkout, which already contains the sources.
    pub dirs: JobDirs,
    /// The local artifacts directory.
    pub artifacts: PathBuf,
}

/// The settings of a job, within the limits of the runner.
pub struct JobSettings {
    pub dirs: JobDirs,
    /// All variables except `CI_JOB_STATUS`, whose value depends on the stage.
    pub variables: Variables,
    pub flags: Flags,
    /// How output is turned into log text.
    pub filters: FilterSpec,
    /// `CI_DEBUG_TRACE`, if allowed.
    pub debug: bool,
    /// `CI_DEBUG_SERVICES`, if allowed.
    pub debug_services: bool,
    /// Warnings for the beginning of the log.
    pub warnings: Vec<String>,
    /// The server's certificate chain, PEM.
    pub ca_certificates: Option<String>,
}

/// A job. Its progress is in the journal.
pub struct Job<'a> {
    pub context: &'a RunnerContext,
    /// The payload, with job inputs interpolated.
    pub payload: Payload,
    /// The original payload.
    pub payload_text: String,
    /// The settings derived from the payload.
    pub settings: JobSettings,
    /// Stop requests to the job.
    pub control: Arc<JobControl>,
    pub deadlines: Deadlines,
    /// When the job began.
    pub began: BootTime,
    pub concurrent: ConcurrentIds,
    /// The id of the poll that returned the job.
    pub request_id: String,
    /// The bytes of log that a manager wrote before the agent got the job.
    pub log_prefix: u64,
}

/// Removes everything that was created for a job, in the background, and then calls its argument.
pub type CleanUp = Box<dyn FnOnce(AfterCleanUp)>;

/// The function that a [`CleanUp`] calls when it has finished.
pub type AfterCleanUp = Box<dyn FnOnce() + Send>;

/// Runs the stages of a job. Each executor has one implementation.
pub trait JobExecutor: Executor {
    /// The default directories of the job. `variables` returns the variables of a job with the given directories.
    fn dirs(
        &self,
        context: &RunnerContext,
        payload: &Payload,
        concurrent: u32,
        variables: &dyn Fn(&JobDirs) -> Variables,
    ) -> JobDirs;

    /// The image name as written, with unexpanded variables; `None` without containers.
    fn image<'a>(&self, context: &'a RunnerContext, payload: &'a Payload) -> Option<&'a str>;

    /// The name of the network that a job with `FF_NETWORK_PER_BUILD` gets; `None` if the runner's network replaces it.
    fn own_network(&self, context: &RunnerContext, payload: &Payload, concurrent: u32) -> Option<String>;

    /// Creates the job's directories on the machine. Returns the program that prepares the job's container, if the
    /// executor uses containers.
    fn prepare(&self, job: &Job<'_>) -> StageResult<Option<StepProgram>>;

    /// Empties the file of `GITLAB_ENV`, which may contain variables of an earlier job.
    fn reset_env_file(&self, job: &Job<'_>);

    /// The program that runs the text of a script.
    fn script(&self, job: &Job<'_>, progress: &Progress, text: String, streams: OutputStreams) -> StepProgram;

    /// The permissions of a file task.
    fn file_task_rights(&self, job: &Job<'_>, task: &FileTask) -> Rights;

    /// Whether protected and unprotected jobs can use the same directory.
    fn shares_builds(&self, _: &RunnerContext) -> bool {
        true
    }

    /// The build directory that a later job would reuse; `None` if it is removed with the job.
    fn build_dir(&self, context: &RunnerContext, dirs: &JobDirs) -> Option<BuildDir>;

    /// Where scripts run: some feature flags have an effect only there.
    fn job_host(&self) -> JobHost;

    /// Whether the job has services, which could change files of the checkout while git works on it.
    fn has_services(&self, _: &Job<'_>) -> bool {
        false
    }

    /// The executor for the jobs of one slot, if slots have separate users.
    fn for_slot(&self, _slot: usize) -> Option<Arc<dyn JobExecutor>> {
        None
    }

    /// The function that removes everything that was created for the job with this name, and its builds directory if it
    /// is temporary.
    fn clean_up(&self, context: &RunnerContext, job: String, builds: Option<&Path>) -> Option<CleanUp>;
}

impl<'a> Job<'a> {
    /// The unique name of the job for its steps and containers; see [`job_name`].
    pub fn name(&self) -> String {
        job_name(&self.payload, self.began)
    }

    /// `CI_PROJECT_DIR`.
    pub fn project_directory(&self) -> String {
        self.settings.dirs.as_seen_by_job(&self.settings.dirs.project).display().to_string()
    }
}

/// A name that is unique on this machine: jobs of different servers can have the same id.
pub fn job_name(payload: &Payload, began: BootTime) -> String {
    format!("{}-{:x}", payload.id, began.as_nanos())
}

impl RunnerContext {
    /// The context of a job in this slot. If slots have separate users, each has its own builds directory.
    pub fn in_slot(self, slot: usize) -> Self {
        match self.executor.for_slot(slot) {
            None => self,
            Some(executor) => {
                let user = executor.user().map(|user| user.name.clone()).unwrap_or_default();
                Self { builds: self.builds.join(user), executor, ..self }
            }
        }
    }

    /// Whether another process may resume the job.
    pub fn resumption(&self) -> Resumption {
        if self.local.is_some() { Resumption::Never } else { Resumption::Possible }
    }

    /// The runner's labels in metrics.
    pub fn runner_labels(&self) -> RunnerLabels {
        RunnerLabels::from(&*self.runner)
    }
}
