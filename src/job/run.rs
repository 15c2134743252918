//! The life of a job on one page, from its acceptance to its final state. Read from top to bottom; the modules that
//! this page calls contain only details.
//!
//! An agent may die at any point, and another one resumes. So each action is recorded in the journal before it starts,
//! and leaves evidence by which the next agent can tell whether it happened: the size of the log, the marker of a
//! started step, the file with its result.

use std::io;
use std::sync::Arc;

use super::agent_deaths;
use super::claims::JobClaims;
use super::context::{CleanUp, Job, RunnerContext};
use super::control::JobControl;
use super::job_log::JobLog;
use super::server::{self, Assignment};
use super::stage_result::{StageError, StageResult};
use super::stages::{self, Stage, StageCursor, StagePosition};
use super::steps::StepRunner;
use super::summary::Summary;
use super::{fail_job, files, get_sources, outcome, prepare, record_sync, retry, scripts, secrets};
use crate::coordinator::JobState;
use crate::executor::docker::engine::containers::LogStart;
use crate::journal::{ContainerCondition, JobContainer, JobJournal, Predecessor, Record, Resumption, SlotDirectory};
use crate::monitor::metrics;
use crate::payload::Payload;
use crate::sys::BootTime;
use crate::trace::{Delivery, Uploader};

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
    let _sync = (context.resumption() == Resumption::Possible).then(|| record_sync::start(&directory));
    run_to_end(context, directory, record, payload, control)
}

/// Resumes a job of an earlier agent, unless agents repeatedly died during it. Fails as [`run`] does.
pub fn resume(
    context: &RunnerContext,
    directory: SlotDirectory,
    mut record: Record,
    payload: Payload,
    control: &Arc<JobControl>,
    predecessor: Predecessor,
) -> io::Result<JobOutcome> {
    agent_deaths::count(&mut record.progress, predecessor);
    directory.save(&record)?;
    run_to_end(context, directory, record, payload, control)
}

fn run_to_end(
    context: &RunnerContext,
    directory: SlotDirectory,
    record: Record,
    payload: Payload,
    control: &Arc<JobControl>,
) -> io::Result<JobOutcome> {
    let Some(mut run) = JobRun::begin(context, directory, record, payload, control)? else {
        return Ok(JobOutcome::Dropped);
    };
    let state = run.run_stages()?;
    run.report(state)
}

/// A running job.
struct JobRun<'a> {
    job: Job<'a>,
    journal: JobJournal,
    log: JobLog,
    uploader: Uploader,
    claims: JobClaims,
    cursor: StageCursor,
}

impl<'a> JobRun<'a> {
    /// Announces the job, claims its directory, and starts the upload of its log. `None` if the job is not assigned to
    /// this runner any more.
    fn begin(
        context: &'a RunnerContext,
        directory: SlotDirectory,
        record: Record,
        payload: Payload,
        control: &Arc<JobControl>,
    ) -> io::Result<Option<Self>> {
        let (job, allowed) = Job::new(context, &record, payload, control);
        let mut progress = record.progress;
        progress.dirs = Some(job.settings.dirs.clone());
        if let Err(error) = allowed {
            progress.failure.get_or_insert(error);
        }
        let log = JobLog::open(&job, &directory.spool())?;
        // If the log is empty, GitLab may not know yet that this runner has the job.
        if log.is_empty() && server::announce(&job) == Assignment::Withdrawn {
            // An earlier agent may have created containers before the log was lost.
            if progress.stage.is_some() {
                fail_job::stop_leftovers(context, &directory, job.name());
            }
            directory.discard()?;
            return Ok(None);
        }
        let mut claims = JobClaims::new(&job);
        control.restore(&progress.stop_requests);
        let uploader = server::start_upload(&job, &directory, progress.log.acknowledged)?;
        // A resumed job has its containers already.
        if let Some(container) = progress.prepared_container() {
            claims.add_containers(container);
        }
        let cursor = StageCursor::new(&progress);
        let acknowledged = Box::new(uploader.acknowledged());
        let journal = JobJournal::new(directory, progress, job.payload.id.clone(), context.resumption(), acknowledged);
        let mut run = Self { job, journal, log, uploader, claims, cursor };
        run.log.header(&run.job);
        run.log.write_pending_warning(&mut run.journal.progress);
        Ok(Some(run))
    }

    /// Runs the stages in order, and decides the job's final state. Fails if the journal is not writable.
    fn run_stages(&mut self) -> io::Result<JobState> {
        if let Some(decided) = self.journal.progress.final_state.clone() {
            return Ok(decided);
        }
        if self.journal.progress.is_aborted() {
            self.steps().kill_step();
        }
        // An earlier agent has copied the output of its services until now.
        self.follow_services(LogStart::Now);
        self.stage(Stage::PrepareExecutor, &Self::prepare_executor)?;
        self.stage(Stage::PrepareScript, &Self::prepare_environment)?;
        self.stage(Stage::GetSources, &|run| run.with_attempts("GET_SOURCES_ATTEMPTS", get_sources::run))?;
        self.stage(Stage::RestoreCache, &|run| run.with_attempts("RESTORE_CACHE_ATTEMPTS", files::restore_cache))?;
        self.stage(Stage::DownloadArtifacts, &|run| {
            run.with_attempts("ARTIFACT_DOWNLOAD_ATTEMPTS", files::download_artifacts)
        })?;
        for (index, name) in stages::script_steps(&self.job.payload) {
            self.stage(Stage::Step(name), &|run| scripts::run_step(&mut run.steps(), index))?;
        }
        if stages::has_after_script(&self.job.payload) {
            self.stage(Stage::AfterScript, &Self::after_script)?;
        }
        self.stage(Stage::SaveCache, &|run| files::save_cache(&mut run.steps()))?;
        self.stage(Stage::UploadArtifacts, &|run| files::upload_artifacts(&mut run.steps()))?;
        self.stage(Stage::CleanUp, &Self::clean_up)?;
        secrets::remove(&self.job);
        self.decide_final_state()
    }

    /// Reports the final state, and releases what the job used. Fails if the journal is not writable.
    fn report(self, state: JobState) -> io::Result<JobOutcome> {
        self.log.write_result(&self.journal.progress);
        let clean_up = self.executor_clean_up();
        let summary = Summary::new(&self.job, &self.journal.progress, self.log.size(), BootTime::now());
        let delivery = self.uploader.finish(state.clone());
        let release = self.claims.release();
        // The clean-up runs in the background, so that neither the final state nor the next job waits for it.
        match clean_up {
            Some(clean_up) => clean_up(release),
            None => release(),
        }
        // If the agent stops during the delivery, the record stays, and the next agent delivers the result.
        if delivery != Delivery::GivenUp || !self.job.control.is_abandoned() {
            self.journal.directory.discard()?;
        }
        Ok(JobOutcome::Reported { state, delivery, summary })
    }

    /// Runs a stage, unless an earlier agent has completed it, or its conditions are not met. Fails if the journal is
    /// not writable.
    fn stage(&mut self, stage: Stage, work: &dyn Fn(&mut Self) -> StageResult) -> io::Result<()> {
        let Some(position) = self.cursor.advance() else { return Ok(()) };
        if !self.is_due(&stage, position) {
            return Ok(());
        }
        // If a step of an earlier agent still runs, it must end before the job does, so the stage is resumed first.
        if self.journal.progress.step().is_none() {
            outcome::apply_stop_requests(&mut self.journal.progress, &self.job.control.stop_requests(), &stage);
            if !self.is_due(&stage, position) {
                return Ok(());
            }
        }
        self.begin_stage(&stage, position)?;
        let result = work(self);
        self.settle_stage(&stage, result)
    }

    /// Whether a stage runs. An earlier agent has already checked that an unfinished stage is due.
    fn is_due(&self, stage: &Stage, position: StagePosition) -> bool {
        let progress = &self.journal.progress;
        !progress.is_aborted() && (position.resumed || stage.is_due(progress, &self.job.payload))
    }

    fn begin_stage(&mut self, stage: &Stage, position: StagePosition) -> io::Result<()> {
        metrics::stage_began(&self.job.context.runner_labels(), &self.job.payload.id, stage.kind());
        if !position.resumed {
            self.journal.progress.stage_starts.push((stage.kind().to_owned(), BootTime::now()));
        }
        self.log.begin_stage(&self.job, &mut self.journal, stage, position)
    }

    /// Applies the result of a stage to the job; the log shows it after it is recorded in the journal. Fails if the
    /// journal is not writable.
    fn settle_stage(&mut self, stage: &Stage, result: StageResult) -> io::Result<()> {
        self.journal.progress.end_step();
        let error = match result {
            Ok(()) => return Ok(()),
            Err(StageError::Failed(error)) => error,
            Err(StageError::JournalUnusable(error)) => return Err(error),
        };
        let warning = outcome::apply_failure(&mut self.journal.progress, &self.job, stage, error);
        self.journal.progress.settle();
        warning.map_or(Ok(()), |warning| self.log.warn(&mut self.journal, warning))
    }

    fn prepare_executor(&mut self) -> StageResult {
        let Some(program) = prepare::run(&self.job)? else { return Ok(()) };
        let _preparing = self.claims.prepare_containers();
        if let Some(prepared) = prepare::create_container(&mut self.steps(), program)? {
            self.claims.add_containers(&prepared);
            self.journal.progress.container = Some(JobContainer { prepared, condition: ContainerCondition::Usable });
            self.follow_services(LogStart::Beginning);
        }
        Ok(())
    }

    fn prepare_environment(&mut self) -> StageResult {
        self.job.context.executor.reset_env_file(&self.job);
        Ok(())
    }

    fn after_script(&mut self) -> StageResult {
        let status = outcome::job_status(self.journal.progress.failure.as_ref());
        self.job.settings.variables.set("CI_JOB_STATUS", status);
        scripts::run_after_script(&mut self.steps())
    }

    fn clean_up(&mut self) -> StageResult {
        secrets::remove(&self.job);
        files::clean_up(&mut self.steps())
    }

    /// Repeats a failed stage, up to the number of attempts in the job's `variable`.
    fn with_attempts(&mut self, variable: &str, work: fn(&mut StepRunner<'_>) -> StageResult) -> StageResult {
        retry::run(&mut self.steps(), variable, work)
    }

    fn steps(&mut self) -> StepRunner<'_> {
        StepRunner { job: &self.job, journal: &mut self.journal, log: &self.log }
    }

    /// Copies the output of the job's services from `start` into the log, if the job requests it.
    fn follow_services(&mut self, start: LogStart) {
        let container = self.journal.progress.prepared_container();
        self.log.follow_services(&self.job, &self.journal.directory.spool(), container, start);
    }

    /// Records the final state. Fails if the journal is not writable.
    fn decide_final_state(&mut self) -> io::Result<JobState> {
        self.log.leave_services();
        let progress = &mut self.journal.progress;
        let state = outcome::final_state(progress, &self.job.payload.features.failure_reasons);
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
}
