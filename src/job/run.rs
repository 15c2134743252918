//! The life of a job on one page, from its acceptance to its final state.
//!
//! An agent may die at any point, and another one resumes. So each action is recorded in the journal before it starts,
//! and leaves evidence by which the next agent can tell whether it happened: the size of the log, the marker of a
//! started step, the file with its result.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use super::containers::OUTPUT_FIFOS;
use super::context::{CleanUp, Job, RunnerContext};
use super::control::JobControl;
use super::job_log::{JobLog, StagePosition};
use super::outcome::{StageError, StageResult, abort_error, record_failure, status_of, stop_error};
use super::script::GITLAB_ENV_FILE;
use super::sources::SECRET_FILES;
use super::stages::{self, Stage};
use super::steps::{StepRunner, StopPolicy};
use super::summary::Summary;
use super::{files, get_sources, prepare, retry, scripts};
use crate::coordinator::{JobState, JobStatus, TraceKind, TraceSummary};
use crate::executor::docker::cache_volumes;
use crate::executor::docker::engine::containers::LogStart;
use crate::failure::{FailureReason, JobError};
use crate::journal::{
    ContainerCondition, JobContainer, JobJournal, Predecessor, Record, RemainingStages, Resumption, SlotDirectory,
};
use crate::monitor::metrics;
use crate::payload::Payload;
use crate::shim;
use crate::sync;
use crate::sys::BootTime;
use crate::trace::colours::{GREEN, RESET};
use crate::trace::{Delivery, UploadOptions, Uploader};

/// The delay before the record of a new job is synced to the disk. fsync blocks other file creation on ext4, and a job
/// that has just started creates many files.
const SYNC_DELAY: Duration = Duration::from_millis(100);

/// A job fails if more than this number of agents die in one of its stages within [`DEATHS_WITHIN`].
const DEATHS_MAX: usize = 5;
/// The time within which the deaths count. Agents that restart for other reasons do so less often.
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// The result of running a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// The job ran.
    Reported {
        /// The final state.
        state: JobState,
        /// Whether GitLab accepted the state.
        delivery: Delivery,
        /// Facts for the agent's log.
        summary: Summary,
    },
    /// When the job started, GitLab no longer assigned it to this runner.
    Dropped,
}

/// Runs a new job, which is in the journal. Fails if the state directory is not writable; the job is then still
/// assigned to this runner.
pub fn run(
    context: &RunnerContext,
    directory: SlotDirectory,
    record: Record,
    payload: Payload,
    control: &Arc<JobControl>,
) -> io::Result<JobOutcome> {
    let _job = (context.resumption() == Resumption::Possible).then(|| sync_later(&directory));
    run_to_end(context, directory, record, payload, control)
}

/// Resumes a job of an earlier agent, unless agents repeatedly died during it. A hand-over does not count as a death.
/// Fails as [`run`] does.
pub fn resume(
    context: &RunnerContext,
    directory: SlotDirectory,
    mut record: Record,
    payload: Payload,
    control: &Arc<JobControl>,
    predecessor: Predecessor,
) -> io::Result<JobOutcome> {
    let now = BootTime::now();
    let deaths = &mut record.progress.resumed_at;
    deaths.retain(|at| now.since(*at) < DEATHS_WITHIN);
    if predecessor == Predecessor::Ended {
        deaths.push(now);
    }
    if deaths.len() > DEATHS_MAX {
        let why = format!("the agent was killed or crashed {} times in a row while it ran this job", deaths.len());
        record.progress.abort();
        record.progress.failure.get_or_insert(JobError::system(why));
    }
    directory.save(&record)?;
    run_to_end(context, directory, record, payload, control)
}

/// Announces the job, runs its stages, and reports its final state.
fn run_to_end(
    context: &RunnerContext,
    directory: SlotDirectory,
    record: Record,
    payload: Payload,
    control: &Arc<JobControl>,
) -> io::Result<JobOutcome> {
    let (job, allowed) = Job::new(context, &record, payload, control);
    let mut progress = record.progress;
    progress.dirs = Some(job.settings.dirs.clone());
    if let Err(error) = allowed {
        progress.failure.get_or_insert(error);
    }
    let log = JobLog::open(&job, &directory.spool())?;
    // If the log is empty, GitLab may not know yet that this runner has the job.
    if log.is_empty() && !announce(&job) {
        directory.discard()?;
        return Ok(JobOutcome::Dropped);
    }
    let storage = context.storage.as_ref();
    let build_dir = storage.and_then(|storage| Some(storage.build_dirs.claim(job.build_dir()?)));
    control.restore(&progress.stop_requests);
    let uploader = start_upload(&job, &directory, progress.log.acknowledged)?;
    let acknowledged = Box::new(uploader.acknowledged());
    let journal = JobJournal::new(directory, progress, job.payload.id.clone(), context.resumption(), acknowledged);
    // A resumed job has its containers already.
    let container = journal.progress.prepared_container();
    let volumes = storage.and_then(|storage| Some(storage.note_containers(container?)));
    let mut run = JobRun { job, journal, log, volumes };
    // An earlier agent has copied the output until now.
    run.follow_services(LogStart::Now);
    run.log.header(&run.job);
    run.log.write_noted_warning(&mut run.journal.progress);
    let state = match run.journal.progress.final_state.clone() {
        Some(decided) => decided,
        None => run.stages()?,
    };
    run.log.conclude(&run.journal.progress);
    let clean_up = run.executor_clean_up();
    let summary = Summary::new(&run.job, &run.journal.progress, run.log.size(), BootTime::now());
    let delivery = uploader.finish(state.clone());
    let volumes = run.volumes.take();
    let tidied = storage.map(Arc::clone);
    // The engine does not remove volumes while their container exists, so the volumes are released after the clean-up.
    let then = move || {
        drop(volumes);
        tidied.iter().for_each(|storage| storage.job_ended());
    };
    drop(build_dir);
    // The clean-up runs in the background, so that neither the final state nor the next job waits for it.
    match clean_up {
        Some(clean_up) => clean_up(Box::new(then)),
        None => then(),
    }
    // If the agent stops during the delivery, the record stays, and the next agent delivers the result.
    if delivery != Delivery::GivenUp || !control.is_abandoned() {
        run.journal.directory.discard()?;
    }
    Ok(JobOutcome::Reported { state, delivery, summary })
}

/// A running job.
struct JobRun<'a> {
    job: Job<'a>,
    journal: JobJournal,
    log: JobLog,
    /// Keeps the cache volumes of its containers.
    volumes: Option<cache_volumes::VolumesInUse>,
}

impl JobRun<'_> {
    /// Runs the stages in order, and determines the job's final state.
    fn stages(&mut self) -> io::Result<JobState> {
        let progress = &self.journal.progress;
        let (first, unfinished) = (progress.next_stage(), progress.unfinished_stage());
        if let Some(step) = progress.step().filter(|_| progress.is_aborted()) {
            shim::sweep(&step.id, &step.cgroups);
        }
        for (index, stage) in stages::of(&self.job.payload).into_iter().enumerate().skip(first) {
            self.apply_stop_requests(&stage);
            // An earlier agent has already checked that an unfinished stage is due.
            let resumed = unfinished == Some(index) && !self.journal.progress.is_aborted();
            if !resumed && !stage.is_due(&self.journal.progress, &self.job.payload) {
                continue;
            }
            self.begin_stage(&stage, StagePosition { index, resumed })?;
            let result = self.run_stage(&stage);
            self.settle_stage(&stage, result)?;
        }
        self.remove_secrets();
        self.decide_final_state()
    }

    /// Runs a stage.
    fn run_stage(&mut self, stage: &Stage) -> StageResult {
        match stage {
            Stage::PrepareExecutor => self.prepare_executor(),
            Stage::PrepareScript => self.prepare_environment(),
            Stage::GetSources => retry::run(&mut self.steps(), "GET_SOURCES_ATTEMPTS", get_sources::run),
            Stage::RestoreCache => retry::run(&mut self.steps(), "RESTORE_CACHE_ATTEMPTS", files::restore_cache),
            Stage::DownloadArtifacts => {
                retry::run(&mut self.steps(), "ARTIFACT_DOWNLOAD_ATTEMPTS", files::download_artifacts)
            }
            Stage::Step(index, _) => scripts::run_step(&mut self.steps(), *index),
            Stage::AfterScript => self.after_script(),
            Stage::SaveCache => files::save_cache(&mut self.steps()),
            Stage::UploadArtifacts => files::upload_artifacts(&mut self.steps()),
            Stage::Cleanup => self.clean_up(),
        }
    }

    fn prepare_executor(&mut self) -> StageResult {
        prepare::check(&self.job)?;
        let Some(task) = self.job.context.executor.prepare(&self.job)? else { return Ok(()) };
        let deadline = self.job.deadlines.prepare();
        let storage = self.job.context.storage.clone();
        let _preparing = storage.as_ref().map(|storage| storage.prepare());
        if let Some(container) = self.steps().run_for_container(task, &deadline, StopPolicy::CancelOrEviction)? {
            self.volumes = storage.as_ref().map(|storage| storage.note_containers(&container));
            let condition = ContainerCondition::Usable;
            self.journal.progress.container = Some(JobContainer { prepared: container, condition });
            self.follow_services(LogStart::Beginning);
        }
        Ok(())
    }

    fn prepare_environment(&mut self) -> StageResult {
        self.job.context.executor.reset_env_file(&self.job);
        Ok(())
    }

    fn after_script(&mut self) -> StageResult {
        let status = status_of(self.journal.progress.failure.as_ref());
        self.job.settings.variables.set("CI_JOB_STATUS", status);
        scripts::run_after_script(&mut self.steps())
    }

    fn clean_up(&mut self) -> StageResult {
        self.remove_secrets();
        files::clean_up(&mut self.steps())
    }

    /// Applies stop requests that arrived between two stages.
    fn apply_stop_requests(&mut self, next: &Stage) {
        let stop_requests = self.job.control.stop_requests();
        let progress = &mut self.journal.progress;
        if stop_requests.eviction().is_some() {
            progress.limit(RemainingStages::Results);
        }
        if stop_requests.stops_job() {
            progress.abort();
            progress.failure = Some(abort_error(&stop_requests));
        } else if let Some(error) = stop_error(&stop_requests)
            && progress.failure.is_none()
            && next.stops_on_cancel()
        {
            record_failure(progress, error);
        }
    }

    fn begin_stage(&mut self, stage: &Stage, at: StagePosition) -> io::Result<()> {
        let context = self.job.context;
        metrics::stage_began(&context.runner_labels(), &self.job.payload.id, stage.kind());
        let lines = match stage {
            Stage::PrepareExecutor => context.executor.greeting().into_iter().collect(),
            Stage::PrepareScript => {
                let host = nix::unistd::gethostname().unwrap_or_default();
                vec![format!("Running on {}...", host.to_string_lossy())]
            }
            Stage::GetSources if get_sources::is_skipped(&self.job) => {
                ["Git repository setup", "Git checkout", "Git submodules setup"]
                    .map(|what| format!("{GREEN}Skipping {what}{RESET}"))
                    .to_vec()
            }
            _ => Vec::new(),
        };
        if !at.resumed {
            self.journal.progress.stage_starts.push((stage.kind().to_owned(), BootTime::now()));
        }
        self.log.begin_stage(&mut self.journal, stage, at, context.runner.executor.as_str(), &lines)
    }

    /// Applies the result of a stage to the job; the log shows it after it is recorded in the journal. Fails if the
    /// journal is not writable.
    fn settle_stage(&mut self, stage: &Stage, result: StageResult) -> io::Result<()> {
        let error = match result {
            Ok(()) => None,
            Err(StageError::Failed(error)) => Some(error),
            Err(StageError::JournalUnusable(error)) => return Err(error),
        };
        self.journal.progress.end_step();
        let Some(error) = error else { return Ok(()) };
        let is_ignored = *stage == Stage::AfterScript && self.ignores_after_script();
        let progress = &mut self.journal.progress;
        let warning = match error.reason {
            _ if is_ignored => Some(format!("after_script failed, but job will continue unaffected: {error}")),
            FailureReason::JobCanceled if !self.job.control.stop_requests().stops_job() => {
                Some("script canceled externally (UI, API)".to_owned())
            }
            FailureReason::JobExecutionTimeout => {
                let section = progress.section().unwrap_or_default();
                Some(format!("{section} could not run to completion because the timeout was exceeded"))
            }
            _ => None,
        };
        if !is_ignored {
            record_failure(progress, error);
        }
        progress.settle();
        warning.map_or(Ok(()), |warning| self.log.warn(&mut self.journal, warning))
    }

    /// A failed after_script does not fail the job, unless the job requests that and nothing failed before.
    fn ignores_after_script(&self) -> bool {
        let progress = &self.journal.progress;
        let ignored = self.job.settings.variables.switch("AFTER_SCRIPT_IGNORE_ERRORS", true);
        !progress.is_aborted() && (ignored || progress.failure.is_some())
    }

    /// Removes file variables and credentials at the end of every job.
    fn remove_secrets(&self) {
        let settings = &self.job.settings;
        let mut names: Vec<String> = settings.variables.files().into_iter().map(|(name, _)| name).collect();
        names.extend(SECRET_FILES.into_iter().chain([GITLAB_ENV_FILE]).map(str::to_owned));
        names.extend(OUTPUT_FIFOS.map(str::to_owned));
        settings.dirs.remove_temporary(&names, self.job.context.executor.user());
    }

    /// Records the final state. Fails if the journal is not writable.
    fn decide_final_state(&mut self) -> io::Result<JobState> {
        self.log.leave_services();
        let progress = &mut self.journal.progress;
        let state = match &progress.failure {
            None => JobState::Success,
            Some(error) => JobState::Failed {
                reason: error.reason.supported_by(&self.job.payload.features.failure_reasons),
                exit_code: error.exit_code,
            },
        };
        progress.final_state = Some(state.clone());
        progress.log.size = self.log.size();
        self.journal.save()?;
        Ok(state)
    }

    /// The function that removes everything that the executor created for the job.
    fn executor_clean_up(&self) -> Option<CleanUp> {
        self.journal.progress.stage.as_ref()?;
        let context = &self.job.context;
        context.executor.clean_up(context, self.job.name(), Some(&self.job.settings.dirs.builds))
    }

    fn follow_services(&mut self, from: LogStart) {
        let container = self.journal.progress.prepared_container();
        self.log.follow_services(&self.job, &self.journal.directory.spool(), container, from);
    }

    fn steps(&mut self) -> StepRunner<'_> {
        StepRunner { job: &self.job, journal: &mut self.journal, log: &self.log }
    }
}

/// Announces the job to GitLab. Returns false if the job is not assigned to this runner any more.
fn announce(job: &Job<'_>) -> bool {
    let reply = job.context.coordinator.update_job(&job.payload.handle(), &JobState::Running, TraceSummary::default());
    if reply.status == JobStatus::Finished {
        return false;
    }
    job.control.set_status(reply.status);
    true
}

/// Starts the upload of the log, of which GitLab has acknowledged `acknowledged` bytes. The job's status on the server
/// becomes a stop request. Fails if the log cannot be opened or no thread can be started.
fn start_upload(job: &Job<'_>, directory: &SlotDirectory, acknowledged: u64) -> io::Result<Uploader> {
    let shows_variables = job.settings.debug || job.settings.debug_services;
    let options = UploadOptions {
        kind: if shows_variables { TraceKind::Debug } else { TraceKind::Normal },
        offset: acknowledged,
        final_tries: job.context.runner.final_tries,
    };
    let control = Arc::clone(&job.control);
    let uploader = Uploader::start(
        Arc::clone(&job.context.coordinator),
        job.payload.handle(),
        &directory.spool(),
        options,
        Box::new(move |status| control.set_status(status)),
    )?;
    job.control.on_abandon(Box::new(uploader.abandoner()));
    Ok(uploader)
}

/// Syncs the record to the disk after a delay, unless the job ends sooner and drops the result.
fn sync_later(directory: &SlotDirectory) -> Sender<()> {
    let directory = directory.clone();
    let (job, ended) = mpsc::channel();
    let synced = sync::spawn("sync", 64 * 1024, move || {
        if ended.recv_timeout(SYNC_DELAY) == Err(RecvTimeoutError::Timeout) {
            // The job may have ended, and its record been removed, before the sync.
            let _ = directory.sync();
        }
    });
    if let Err(error) = synced {
        log::warn!("cannot start the thread that syncs the journal error={error}");
    }
    job
}
