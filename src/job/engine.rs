//! One job, run through its stages, so that an agent that dies at any point can be followed by another that goes on.
//!
//! Before something is done it is written into the journal; what is done leaves a trace that tells a later agent
//! whether it happened: the size of the log, the mark of a step that began, the file with its outcome.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::context::{Context, Prepared};
use super::control::Control;
use super::script::BRIDGE;
use super::sources::GLOBAL_CONFIG;
use super::stages::{self, Stage};
use crate::coordinator::{JobHandle, JobState, JobStatus, TraceSummary};
use crate::executor::Ground;
use crate::executor::docker::engine::containers::From;
use crate::executor::docker::services::log::Followers;
use crate::failure::{FailureReason, JobError};
use crate::journal::orders::Orders;
use crate::journal::{Record, SlotDirectory};
use crate::monitor::numbers;
use crate::payload::{Payload, Secret};
use crate::sys;
use crate::trace::{Delivery, FilterSpec, Trace, UploadOptions, Uploader};

/// Waits between two tries of a stage, without `FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY`.
const SHORT_RETRY_FIRST: Duration = Duration::from_secs(1);
/// See above.
const SHORT_RETRY_MOST: Duration = Duration::from_secs(5);
/// First wait between two tries of a stage.
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest wait between two tries of a stage.
const RETRY_MOST: Duration = Duration::from_secs(300);

/// When the record of a job goes to the disk: file systems keep whoever makes files beside that waiting, and a job that
/// has only begun makes many.
const SYNC_AFTER: Duration = Duration::from_millis(100);

/// A job in one of whose stages agents die this often is given up,
const DEATHS_MOST: usize = 5;
/// if it happens within this time (nanoseconds): restarts of another kind are further apart.
const DEATHS_WITHIN: u64 = 60_000_000_000;

/// How a job came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was run; what the server took of it.
    Reported(JobState, Delivery),
    /// The server had given it to nobody or somebody else by the time we began.
    Dropped,
}

/// A job in hand.
pub struct Engine<'a> {
    pub(super) context: &'a Context,
    pub(super) directory: SlotDirectory,
    pub(super) record: Record,
    pub(super) payload: Payload,
    pub(super) prepared: Prepared,
    pub(super) trace: Trace,
    pub(super) control: Arc<Control>,
    /// Bring the output of services into the log.
    pub(super) followers: Option<Arc<Followers>>,
    uploader: Uploader,
    stages: Vec<Stage>,
}

/// Runs a job that has just been taken and is written down. Errors: the state directory cannot be written; the job is
/// still ours.
pub fn run(
    context: &Context,
    directory: SlotDirectory,
    record: Record,
    payload: Payload,
    control: &Arc<Control>,
) -> io::Result<Ended> {
    let _job = sync_later(&directory);
    go_on(context, directory, record, payload, control)
}

/// Goes on with a job that an earlier agent left, unless one agent after the other dies over it. Errors: as [`run`].
pub fn resume(
    context: &Context,
    directory: SlotDirectory,
    mut record: Record,
    payload: Payload,
    control: &Arc<Control>,
) -> io::Result<Ended> {
    let now = sys::boottime();
    let deaths = &mut record.progress.taken_up;
    deaths.retain(|at| now.saturating_sub(*at) < DEATHS_WITHIN);
    deaths.push(now);
    if deaths.len() > DEATHS_MOST {
        let why = format!("the agent died {} times in a row over this job", deaths.len());
        record.progress.aborted = true;
        record.progress.failure.get_or_insert(JobError::system(why));
    }
    directory.save(&record)?;
    go_on(context, directory, record, payload, control)
}

fn go_on(
    context: &Context,
    directory: SlotDirectory,
    record: Record,
    mut payload: Payload,
    control: &Arc<Control>,
) -> io::Result<Ended> {
    let filled_in = context.fill_in_inputs(&mut payload);
    let (prepared, allowed) = context.prepare(&payload, record.concurrent, record.progress.place.as_ref());
    let trace = Trace::open(&directory.spool(), &prepared.filters, payload.features.trace_sections)?;
    // Nothing was said: the server may not know yet that we took the job.
    if trace.size() == 0 {
        let reply = context.coordinator.update_job(&payload.handle(), &JobState::Running, TraceSummary::default());
        if reply.status == JobStatus::Over {
            directory.discard()?;
            return Ok(Ended::Dropped);
        }
        control.hear(reply.status);
    }
    control.recall(&record.progress.orders);
    let options = UploadOptions {
        debug_trace: prepared.debug || prepared.debug_services,
        offset: record.progress.acknowledged,
        final_tries: context.runner.final_tries,
    };
    let ears = Arc::clone(control);
    let uploader = Uploader::start(
        Arc::clone(&context.coordinator),
        payload.handle(),
        &directory.spool(),
        options,
        Box::new(move |status| ears.hear(status)),
    )?;
    control.attach(Box::new(uploader.abandoner()));
    let stages = stages::of(&payload);
    let control = Arc::clone(control);
    let mut engine =
        Engine { context, directory, record, payload, prepared, trace, control, followers: None, uploader, stages };
    engine.record.progress.place = Some(engine.prepared.place.clone());
    if let Err(error) = filled_in.and(allowed) {
        engine.record.progress.failure.get_or_insert(error);
    }
    // An earlier agent has brought what came before.
    engine.follow_services(From::Now);
    engine.live()
}

/// A loss of power must not lose the record: it is brought to the disk, unless the job (what is returned) is over sooner.
fn sync_later(directory: &SlotDirectory) -> Sender<()> {
    let directory = directory.clone();
    let (job, ended) = mpsc::channel();
    let synced = thread::Builder::new().name("sync".to_owned()).stack_size(64 * 1024).spawn(move || {
        if ended.recv_timeout(SYNC_AFTER) == Err(RecvTimeoutError::Timeout) {
            // The job may be over, and its record gone, before the disk was asked.
            let _ = directory.sync();
        }
    });
    if let Err(error) = synced {
        log::warn!("the journal is not brought to the disk at once error={error}");
    }
    job
}

impl Engine<'_> {
    fn live(mut self) -> io::Result<Ended> {
        self.greet();
        self.say_unsaid();
        let ending = match self.record.progress.ending.clone() {
            Some(decided) => decided,
            None => self.work()?,
        };
        self.say_ending();
        let removal = self.removal();
        let delivery = self.uploader.finish(ending.clone());
        // Nobody waits for it: not this job's outcome, and not the next job.
        if let Some(remove) = removal {
            remove();
        }
        // An agent that stops in the middle of the delivery leaves it to the next one.
        if delivery != Delivery::GivenUp || !self.control.orders().abandoned {
            self.directory.discard()?;
        }
        Ok(Ended::Reported(ending, delivery))
    }

    /// All stages, and the state that comes of them.
    fn work(&mut self) -> io::Result<JobState> {
        let (resumed, settled) = (self.record.progress.stage, self.record.progress.settled);
        if self.record.progress.aborted {
            self.sweep();
        }
        for (index, stage) in self.stages.clone().into_iter().enumerate() {
            if resumed.is_some_and(|at| index < at || index == at && settled) {
                continue;
            }
            self.obey(&stage);
            // A stage in which an agent died was due then.
            let again = resumed == Some(index) && !self.record.progress.aborted;
            if !again && !stage.is_due(&self.record.progress, &self.payload) {
                continue;
            }
            self.enter(index, &stage, again)?;
            let outcome = self.perform(&stage)?;
            self.settle(&stage, outcome)?;
        }
        self.remove_secrets();
        self.decide()
    }

    /// Takes orders that came between two stages.
    fn obey(&mut self, next: &Stage) {
        let orders = self.control.orders();
        let progress = &mut self.record.progress;
        progress.evicted |= orders.evict.is_some();
        if orders.abort() {
            progress.aborted = true;
            progress.failure = Some(abort_error(&orders));
        } else if let Some(error) = stop_error(&orders)
            && progress.failure.is_none()
            && next.stops_on_cancel()
        {
            self.blame(error);
        }
    }

    /// Notes the stage, then says it: a later agent sees by the log's size whether that was still done.
    fn enter(&mut self, index: usize, stage: &Stage, again: bool) -> io::Result<()> {
        numbers::stage_began(&self.context.who(), self.payload.id, stage.kind());
        let outcome = self.outcome();
        let section = stage.section(outcome);
        let followers = self.followers.clone();
        let _quiet = followers.as_deref().map(Followers::quiet);
        let progress = &mut self.record.progress;
        if !again {
            progress.section_before = progress.section.replace(section.clone());
            progress.stage = Some(index);
            progress.log_size = self.trace.size();
            progress.steps_done = 0;
            progress.attempt = 0;
            progress.settled = false;
            progress.taken_up.clear();
            progress.step = None;
            progress.scripts_began |= matches!(stage, Stage::Step(..));
            self.save()?;
        }
        if self.trace.size() == self.record.progress.log_size {
            let lines = self.opening(stage);
            let heading = stage.heading(self.context.runner.executor.as_str(), outcome);
            let before = self.record.progress.section_before.as_deref();
            let section = self.record.progress.section.as_deref().unwrap_or(&section);
            self.trace.turn_to(before, section, &heading, &lines);
        }
        Ok(())
    }

    fn perform(&mut self, stage: &Stage) -> io::Result<Result<(), JobError>> {
        match stage {
            Stage::PrepareExecutor => self.prepare_executor(),
            Stage::PrepareScript => {
                self.renew_bridge();
                Ok(Ok(()))
            }
            Stage::GetSources => self.repeatedly("GET_SOURCES_ATTEMPTS", Self::try_sources),
            Stage::RestoreCache => self.repeatedly("RESTORE_CACHE_ATTEMPTS", Self::restore_cache),
            Stage::DownloadArtifacts => self.repeatedly("ARTIFACT_DOWNLOAD_ATTEMPTS", Self::download_artifacts),
            Stage::SaveCache => self.save_cache(),
            Stage::UploadArtifacts => self.upload_artifacts(),
            Stage::Step(index, _) => self.script_step(*index),
            Stage::AfterScript => self.after_script(),
            Stage::Cleanup => {
                self.remove_secrets();
                self.clean_up()
            }
        }
    }

    fn prepare_executor(&mut self) -> io::Result<Result<(), JobError>> {
        if self.payload.run {
            return Ok(Err(JobError::configuration("the job uses `run`; this runner runs jobs with `script`")));
        }
        if let Some(error) = self.unfetched_secrets() {
            return Ok(Err(error));
        }
        if let Some(Err(why)) = self.context.guard.as_ref().map(|guard| guard.hold()) {
            let message = format!("the job is not kept from the instance's credentials: {why}");
            return Ok(Err(JobError::system(message)));
        }
        let shell = match self.context.executor.ground() {
            Ground::Containers(docker) => return self.prepare_container(docker),
            Ground::Shell(shell) => shell,
        };
        let place = &self.prepared.place;
        let unusable = |error| JobError::system(format!("cannot make {}: {error}", place.builds.display()));
        let made = || place.create(&self.context.caches, self.context.executor.user()).map_err(unusable);
        Ok(shell.prepare().and_then(|()| made()))
    }

    /// A job must not run without the secrets that it counts on.
    fn unfetched_secrets(&self) -> Option<JobError> {
        let secrets = self.payload.secrets.iter().map(|(name, secret)| {
            let provider = secret.as_ref().and_then(Secret::provider).unwrap_or("no store");
            format!("{name} from {provider}")
        });
        let wanted: Vec<String> = secrets.collect();
        (!wanted.is_empty()).then(|| {
            let wanted = wanted.join(", ");
            let why = format!("the job wants secrets ({wanted}), and this runner fetches none: use CI/CD variables");
            JobError::configuration(why)
        })
    }

    /// What an earlier job left for its scripts is not for this one. Whom a container runs as is known to itself only.
    fn renew_bridge(&self) {
        let place = &self.prepared.place;
        match self.context.executor.ground() {
            Ground::Shell(_) => place.renew_temporary(BRIDGE, self.context.executor.user()),
            Ground::Containers(_) => place.remove_temporary(&[BRIDGE.to_owned()]),
        }
    }

    /// A stage, tried as often as the job asks for.
    fn repeatedly(
        &mut self,
        variable: &str,
        attempt: impl Fn(&mut Self) -> io::Result<Result<(), JobError>>,
    ) -> io::Result<Result<(), JobError>> {
        let attempts = self.prepared.variables.attempts(variable);
        loop {
            let error = match attempt(self)? {
                Ok(()) => return Ok(Ok(())),
                Err(error) => error,
            };
            let attempt = self.record.progress.attempt + 1;
            let again = attempt < attempts && !self.control.orders().stop() && !self.record.progress.aborted;
            if !again {
                return Ok(Err(error));
            }
            self.record.progress.attempt = attempt;
            self.record.progress.steps_done = 0;
            self.record.progress.step = None;
            self.say(format!("{error}. Retrying..."))?;
            self.control.rest(self.before_attempt(attempt).min(self.time_left()));
            if let Some(stopped) = self.stopped() {
                return Ok(Err(stopped));
            }
        }
    }

    /// The wait before a stage is tried once more.
    fn before_attempt(&self, attempt: u32) -> Duration {
        let (first, most) = match self.prepared.flags.is_on("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY") {
            true => (RETRY_FIRST, RETRY_MOST),
            false => (SHORT_RETRY_FIRST, SHORT_RETRY_MOST),
        };
        (first * 2_u32.saturating_pow(attempt - 1)).min(most)
    }

    /// The error of an order that keeps the stage from going on.
    fn stopped(&mut self) -> Option<JobError> {
        let orders = self.control.orders();
        self.record.progress.aborted |= orders.abort();
        if orders.abort() { Some(abort_error(&orders)) } else { stop_error(&orders) }
    }

    /// What a stage's outcome means for the job. What there is to say of it is said once it is written down.
    fn settle(&mut self, stage: &Stage, outcome: Result<(), JobError>) -> io::Result<()> {
        self.record.progress.step = None;
        let Err(error) = outcome else { return Ok(()) };
        let ignored = *stage == Stage::AfterScript && self.ignores_after_script();
        let warning = match error.reason {
            _ if ignored => Some(format!("after_script failed, but job will continue unaffected: {error}")),
            FailureReason::JobCanceled if !self.control.orders().abort() => {
                Some("script canceled externally (UI, API)".to_owned())
            }
            FailureReason::JobExecutionTimeout => {
                let section = self.record.progress.section.as_deref().unwrap_or_default();
                Some(format!("{section} could not run to completion because the timeout was exceeded"))
            }
            _ => None,
        };
        if !ignored {
            self.blame(error);
        }
        self.record.progress.settled = true;
        warning.map_or(Ok(()), |warning| self.say(warning))
    }

    /// A failed `after_script` changes nothing, unless the job asks for it and nothing failed before.
    fn ignores_after_script(&self) -> bool {
        let progress = &self.record.progress;
        let ignored = self.prepared.variables.switch("AFTER_SCRIPT_IGNORE_ERRORS", true);
        !progress.aborted && (ignored || progress.failure.is_some())
    }

    /// The job fails for this, unless it has failed before.
    fn blame(&mut self, error: JobError) {
        let progress = &mut self.record.progress;
        if progress.status.is_none() {
            let status = match error.reason {
                FailureReason::JobCanceled => "canceled",
                FailureReason::JobExecutionTimeout => "timedout",
                _ => "failed",
            };
            progress.status = Some(status.to_owned());
        }
        // A cancel before the scripts ends everything: there is nothing that after_script could come after.
        progress.aborted |= error.reason == FailureReason::JobCanceled && !progress.scripts_began;
        if progress.aborted || progress.failure.is_none() {
            progress.failure = Some(error);
        }
    }

    /// File variables and credentials do not outlive the job, however it ended.
    fn remove_secrets(&self) {
        let mut names: Vec<String> = self.prepared.variables.files().into_iter().map(|(name, _)| name).collect();
        names.extend([BRIDGE, GLOBAL_CONFIG, "mayfly.gitconfig", "mayfly.ca.crt"].map(str::to_owned));
        names.extend(super::containers::DOORS.map(str::to_owned));
        self.prepared.place.remove_temporary(&names);
    }

    fn decide(&mut self) -> io::Result<JobState> {
        self.followers = None;
        let state = match &self.record.progress.failure {
            None => JobState::Success,
            Some(error) => JobState::Failed {
                reason: error.reason.supported_by(&self.payload.features.failure_reasons),
                exit_code: error.exit_code,
            },
        };
        self.record.progress.ending = Some(state.clone());
        self.record.progress.log_size = self.trace.size();
        self.save()?;
        Ok(state)
    }

    /// Writes the journal.
    pub(super) fn save(&mut self) -> io::Result<()> {
        self.record.progress.acknowledged = self.uploader.acknowledged();
        match self.directory.note(&self.record.progress) {
            // A job that fills the disk must not lose its outcome for it; only a crash now would go unnoticed.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                log::error!("no room for the journal; going on without job={} error={error}", self.payload.id);
                Ok(())
            }
            saved => saved,
        }
    }
}

/// The error of a job whose scripts are not to go on, if so.
pub(super) fn stop_error(orders: &Orders) -> Option<JobError> {
    match &orders.evict {
        _ if orders.cancel => Some(canceled()),
        Some(why) => Some(JobError::new(FailureReason::RunnerInterrupted, format!("aborted: {why}"))),
        None => None,
    }
}

/// The error of a job that a person cancelled.
fn canceled() -> JobError {
    JobError::new(FailureReason::JobCanceled, "canceled")
}

/// The error of a job that is stopped at once.
pub(super) fn abort_error(orders: &Orders) -> JobError {
    match &orders.interrupt {
        Some(why) if !orders.over => JobError::new(FailureReason::RunnerInterrupted, format!("aborted: {why}")),
        _ => canceled(),
    }
}

/// Ends what a job left that its engine cannot bring to an end: the step that may still run, and what was made for it.
/// `name` is that of the job for its containers.
pub fn abandon(context: &Context, directory: &SlotDirectory, name: String) {
    let progress = directory.load().map(|record| record.progress).unwrap_or_default();
    if let Some(step) = progress.step {
        crate::shim::sweep(&step.id, &step.cgroups);
    }
    if let Some(remove) = context.removal(name, progress.place.map(|place| place.builds)) {
        remove();
    }
}

/// Fails a job that has no engine, with a log that says why below whatever is in it. Errors: the state directory cannot
/// be written.
pub fn fail(context: &Context, directory: &SlotDirectory, job: &JobHandle, why: &str) -> io::Result<Delivery> {
    if !directory.spool().exists() {
        directory.create()?;
    }
    let spec = FilterSpec { limit: context.runner.output_limit, timestamps: true, ..FilterSpec::default() };
    let trace = Trace::open(&directory.spool(), &spec, false)?;
    trace.conclude(None, false, &format!("Job failed (system failure): {why}"));
    let options = UploadOptions { debug_trace: false, offset: 0, final_tries: context.runner.final_tries };
    let coordinator = Arc::clone(&context.coordinator);
    let uploader = Uploader::start(coordinator, job.clone(), &directory.spool(), options, Box::new(|_| {}))?;
    let delivery = uploader.finish(JobState::Failed { reason: FailureReason::RunnerSystemFailure, exit_code: None });
    directory.discard()?;
    Ok(delivery)
}
