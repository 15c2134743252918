//! The context of a job (agent, runner, machine), and the interface of executors for jobs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::build_dir::BuildDir;
use super::cache::s3::S3Store;
use super::control::JobControl;
use super::deadlines::Deadlines;
use super::file_task::FileTask;
use super::flags::{self, Flags};
use super::stage_result::StageResult;
use super::storage::Storage;
use super::{inputs, settings, sources};
use crate::config::Runner;
use crate::coordinator::Coordinator;
use crate::executor::job_dirs::{JobDirs, is_job_dir};
use crate::executor::{ConcurrentIds, Executor};
use crate::failure::JobError;
use crate::instance::Identity;
use crate::instance::metadata_block::MetadataBlock;
use crate::journal::{Progress, Record, Resumption};
use crate::monitor::metrics::RunnerLabels;
use crate::payload::variables::Variables;
use crate::payload::{Payload, Variable};
use crate::shim::spec::{OutputStreams, Rights, StepProgram};
use crate::sys::BootTime;
use crate::trace::FilterSpec;
use crate::version::{REVISION, VERSION, architecture};

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

    /// Creates the job's directories on the machine. Returns the task that prepares the job's container, if the
    /// executor uses containers.
    fn prepare(&self, job: &Job<'_>) -> StageResult<Option<StepProgram>>;

    /// Empties the file of `GITLAB_ENV`, which may contain variables of an earlier job.
    fn reset_env_file(&self, job: &Job<'_>);

    /// A script as a task.
    fn script(&self, job: &Job<'_>, progress: &Progress, text: String, streams: OutputStreams) -> StepProgram;

    /// The permissions of a file task.
    fn file_task_rights(&self, job: &Job<'_>, task: &FileTask) -> Rights;

    /// Whether protected and unprotected jobs can use the same directory.
    fn shares_builds(&self, _: &RunnerContext) -> bool {
        true
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
    /// Creates a job from the journal. The second result is an error if the payload requests something that is not
    /// allowed: the job then fails in its first stage.
    pub fn new(
        context: &'a RunnerContext,
        record: &Record,
        mut payload: Payload,
        control: &Arc<JobControl>,
    ) -> (Self, Result<(), JobError>) {
        let filled_in = context.fill_in_inputs(&mut payload);
        let (settings, allowed) = context.settings(&payload, record.concurrent, record.progress.dirs.as_ref());
        let deadlines = Deadlines::new(record.began, &context.runner, &payload, &settings.variables);
        let job = Self {
            context,
            payload,
            payload_text: record.payload.clone(),
            settings,
            control: Arc::clone(control),
            deadlines,
            began: record.began,
            concurrent: record.concurrent,
            request_id: record.request_id.clone(),
            log_prefix: record.offer.as_ref().map_or(0, |offered| offered.offer.trace.text.len() as u64),
        };
        (job, filled_in.and(allowed))
    }

    /// The unique name of the job for its steps and containers; see [`job_name`].
    pub fn name(&self) -> String {
        job_name(&self.payload, self.began)
    }

    /// The directory that a later job would reuse; `None` if it is removed with this job.
    pub fn build_dir(&self) -> Option<BuildDir> {
        let (context, dirs) = (self.context, &self.settings.dirs);
        let executor = &context.executor;
        if dirs.container_builds.is_some() && !executor.shares_builds(context) {
            // The agent created this directory, and everything in it belongs to the job.
            let (root, trusted) = (context.builds.clone(), dirs.builds.clone());
            let dir = BuildDir { root, trusted, below: PathBuf::new(), user: None };
            return (!is_job_dir(&dirs.builds)).then_some(dir);
        }
        let below = dirs.project.strip_prefix(&dirs.builds).ok().filter(|below| !below.as_os_str().is_empty())?;
        // If slots have separate users, each user has a directory below the root.
        let above = executor.shares_caches().then(|| dirs.builds.parent()).flatten();
        Some(BuildDir {
            root: above.unwrap_or(&dirs.builds).to_owned(),
            trusted: dirs.builds.clone(),
            below: below.to_owned(),
            user: executor.user().map(|user| user.name.clone()),
        })
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

    /// Interpolates the job's inputs. Fails as [`inputs::fill_in`] does.
    fn fill_in_inputs(&self, payload: &mut Payload) -> Result<(), JobError> {
        if payload.inputs.is_empty() || !self.flags(payload).0.is_on(flags::FF_ENABLE_JOB_INPUTS_INTERPOLATION) {
            return Ok(());
        }
        inputs::fill_in(payload)
    }

    /// The job's feature flags, and warnings about them.
    fn flags(&self, payload: &Payload) -> (Flags, Vec<String>) {
        let configured = |name: &str| {
            self.runner.environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        let variable = |name: &str| {
            let own = payload.variables.iter().rev().find(|variable| variable.key == name);
            own.map(|variable| variable.value.clone()).or_else(|| configured(name))
        };
        Flags::resolve(&self.runner.feature_flags, &variable)
    }

    /// Derives the settings from the payload. `settled` are the directories of a resumed job. The second result is an
    /// error if the job requests something that is not allowed.
    fn settings(
        &self,
        payload: &Payload,
        concurrent: ConcurrentIds,
        settled: Option<&JobDirs>,
    ) -> (JobSettings, Result<(), JobError>) {
        let (flags, mut warnings) = self.flags(payload);
        let configured = self.runner.tls.ca_file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let ca_certificates = configured.or_else(|| self.coordinator.certificates());
        let variables_in =
            |dirs: &JobDirs| self.variables(payload, &flags, dirs, concurrent, ca_certificates.as_deref());
        let (dirs, allowed) = match settled.or(self.local.as_ref().map(|local| &local.dirs)) {
            Some(fixed) => (fixed.clone(), Ok(())),
            None => self.job_dirs(payload, concurrent.of_project, &variables_in),
        };
        let variables = variables_in(&dirs);
        let mut allowed_debug_switch = |key: &str| {
            let wanted = variables.switch(key, false);
            if wanted && self.runner.debug_trace_disabled {
                warnings.push(format!("{key} is set, but this runner does not allow it (debug_trace_disabled)"));
            }
            wanted && !self.runner.debug_trace_disabled
        };
        let debug = allowed_debug_switch("CI_DEBUG_TRACE");
        let debug_services = allowed_debug_switch("CI_DEBUG_SERVICES");
        warnings.extend(settings::name_warning(&variables));
        warnings.extend(settings::warnings(&variables, Duration::from_secs(payload.timeout_seconds())));
        let filters = FilterSpec {
            masks: secrets(&variables, payload),
            token_prefixes: payload.features.token_mask_prefixes.clone(),
            timestamps: flags.is_on(flags::FF_TIMESTAMPS),
            limit: self.runner.output_limit,
        };
        (JobSettings { dirs, variables, flags, filters, debug, debug_services, warnings, ca_certificates }, allowed)
    }

    /// The job's directories: those that the job requests, otherwise the default ones.
    fn job_dirs(
        &self,
        payload: &Payload,
        concurrent: u32,
        variables: &dyn Fn(&JobDirs) -> Variables,
    ) -> (JobDirs, Result<(), JobError>) {
        let default = self.executor.dirs(self, payload, concurrent, variables);
        let variables = variables(&default);
        let Some(path) = variables.value("GIT_CLONE_PATH").filter(|path| !path.is_empty()) else {
            let empty = variables.value("GIT_STRATEGY").is_some_and(|strategy| strategy == "empty");
            return (if empty { default.without_checkout() } else { default }, Ok(()));
        };
        if !self.runner.custom_build_dir {
            let error = JobError::configuration(
                "GIT_CLONE_PATH is set, but this runner does not allow it; set [runners.custom_build_dir] enabled = true",
            );
            return (default, Err(error));
        }
        match default.with_project(&path) {
            Ok(moved) => (moved, Ok(())),
            Err(error) => (default, Err(error)),
        }
    }

    /// All variables in order of precedence, lowest first: flags, configuration, runner, job, fixed ones.
    fn variables(
        &self,
        payload: &Payload,
        flags: &Flags,
        dirs: &JobDirs,
        concurrent: ConcurrentIds,
        ca_certificates: Option<&str>,
    ) -> Variables {
        let seen = |path: &Path| dirs.as_seen_by_job(path).display().to_string();
        let mut variables = Variables::new(&dirs.as_seen_by_job(&dirs.temporary));
        for (name, on) in flags.all() {
            variables.set(name, on.to_string());
        }
        if let Some(image) = self.executor.image(self, payload) {
            variables.push(expanded_variable("CI_JOB_IMAGE", image));
        }
        variables.set("CI_RUNNER_SHORT_TOKEN", self.runner.token.short());
        for (key, value) in &self.runner.environment {
            variables.push(expanded_variable(key, value));
        }
        variables.set("CI_BUILDS_DIR", seen(&dirs.builds));
        variables.set("CI_PROJECT_DIR", seen(&dirs.project));
        variables.set("CI_CONCURRENT_ID", concurrent.of_runner.to_string());
        variables.set("CI_CONCURRENT_PROJECT_ID", concurrent.of_project.to_string());
        variables.set("CI_SERVER", "yes");
        variables.set("CI_JOB_STATUS", "running");
        variables.set("CI_JOB_TIMEOUT", payload.timeout_seconds().to_string());
        self.push_certificates(&mut variables, ca_certificates);
        for variable in payload.variables.iter().filter(|variable| !variable.key.starts_with("FF_")) {
            variables.push(variable.clone());
        }
        if flags.is_on(flags::FF_GIT_URLS_WITHOUT_TOKENS) {
            variables.set("GIT_CONFIG_GLOBAL", seen(&dirs.temporary.join(sources::GLOBAL_CONFIG)));
        }
        variables.set(self.executor.environment_marker(), "true");
        variables.set("CI_RUNNER_VERSION", VERSION);
        variables.set("CI_RUNNER_REVISION", REVISION);
        variables.set("CI_RUNNER_EXECUTABLE_ARCH", format!("linux/{}", architecture()));
        variables.set("RUNNER_TEMP_PROJECT_DIR", seen(&dirs.temporary));
        if flags.is_on(flags::FF_NETWORK_PER_BUILD)
            && let Some(network) = self.executor.own_network(self, payload, concurrent.of_project)
        {
            variables.set("CI_BUILD_NETWORK_NAME", network);
        }
        variables
    }

    fn push_certificates(&self, variables: &mut Variables, ca_certificates: Option<&str>) {
        let read = |path: &Option<PathBuf>| path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let files = [
            ("CI_SERVER_TLS_CA_FILE", ca_certificates.map(str::to_owned), true),
            ("CI_SERVER_TLS_CERT_FILE", read(&self.runner.tls.cert_file), true),
            ("CI_SERVER_TLS_KEY_FILE", read(&self.runner.tls.key_file), false),
        ];
        for (key, value, public) in files {
            if let Some(value) = value {
                variables.push(Variable { key: key.to_owned(), value, public, file: true, raw: true, masked: false });
            }
        }
    }
}

/// A public variable whose value may refer to other variables.
fn expanded_variable(key: &str, value: &str) -> Variable {
    Variable { key: key.to_owned(), value: value.to_owned(), public: true, ..Variable::default() }
}

/// The length of the shortest token that is masked. A shorter one would match parts of ordinary lines.
const MIN_TOKEN_LENGTH: usize = 8;

/// The values to mask: masked variables, and the job's token.
fn secrets(variables: &Variables, payload: &Payload) -> Vec<String> {
    let token = Some(&payload.token).filter(|token| token.len() >= MIN_TOKEN_LENGTH);
    variables.secrets().into_iter().chain(token.cloned()).collect()
}
