//! Sends updates of held jobs to GitLab so that they stay alive, writes into their logs what they wait for, receives
//! cancellations, and fails the jobs that must fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::agents::Agents;
use super::job::{CommitState, LogOrigin, Phase, PoolJob};
use super::log_line::LineFormat;
use super::state::PoolState;
use super::{Broker, LONG_WAIT, STACK};
use crate::coordinator::gitlab::PendingReply;
use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, OUTAGE_RETRY, TraceKind, TraceOutcome, TraceSummary, UpdateOutcome,
};
use crate::failure::FailureReason;
use crate::manager::store::records::StoreEvent;
use crate::sync;

/// A job that is held for longer gets a message in its log.
pub const ANNOUNCE_AFTER: Duration = Duration::from_millis(500);
/// The longest and the shortest interval of requests that keep a held job alive at GitLab. In between, GitLab chooses:
/// it asks for frequent requests while a user watches the job, who may cancel it.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(30);
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(3);
/// The delay before the next update after one that did not reach GitLab.
const KEEP_ALIVE_RETRY: Duration = Duration::from_secs(5);
/// The maximum number of concurrent requests. A request that hangs must not delay those about other jobs.
const MAX_REQUESTS: u32 = 16;
/// The time after which the attempts to fail a job end.
const FAIL_TIMEOUT: Duration = Duration::from_secs(3600);
/// The manager queries the state of a running job whose agent has sent nothing for this long. This is longer than the
/// hour after which GitLab fails a silent job, because the query counts as an update.
const QUERY_AFTER: Duration = Duration::from_secs(if cfg!(debug_assertions) { 40 } else { 70 * 60 });

/// The next task of the keeper.
enum KeeperTask {
    /// Fails a job that was held for too long.
    Expire(String),
    /// Sends a request about a job.
    Request(String, Request),
}

/// A request to GitLab about a job.
enum Request {
    /// Sends an update of a held job to GitLab.
    KeepAlive(HeldJob),
    /// Fails a job.
    Fail(FailingJob),
    /// Queries the state of a job whose agent is silent.
    QueryState(JobHandle),
}

/// A request in flight. When it ends, also by a panic, the keeper may send the next request about the job.
struct InFlight {
    broker: Arc<Broker>,
    id: String,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let is_held = {
            let mut state = self.broker.lock();
            state.keeper_requests -= 1;
            state.jobs.get_mut(&self.id).is_some_and(|job| {
                job.has_request_in_flight = false;
                job.phase == Phase::Held
            })
        };
        if is_held {
            self.broker.assign();
        }
        self.broker.bell.ring();
    }
}

/// The data of a held job that the keeper needs.
struct HeldJob {
    id: String,
    handle: JobHandle,
    trace: String,
    trace_sent: u64,
    commit: CommitState,
    line_format: LineFormat,
    /// The time until the job fails.
    left: Duration,
}

/// GitLab's response to a sign of life.
struct SignOfLife {
    status: JobStatus,
    /// The interval that GitLab asks for.
    interval: Option<Duration>,
}

/// The data of a failing job that the keeper needs.
struct FailingJob {
    handle: JobHandle,
    reason: FailureReason,
    line: String,
    trace: String,
    trace_sent: u64,
    /// GitLab may wait for the acknowledgement of the job (`two_phase_job_commit`); without it, GitLab accepts no other
    /// state.
    may_be_pending: bool,
    log_origin: LogOrigin,
    since: Instant,
    attempts: u32,
}

impl Broker {
    /// Processes held and failing jobs until the broker stops.
    pub(super) fn keep_jobs(self: &Arc<Self>) {
        while !self.has_stopped() {
            let seen = self.bell.count();
            match self.next_task() {
                Ok(KeeperTask::Request(id, request)) => self.start_request(id, request),
                Ok(KeeperTask::Expire(id)) => {
                    let waited = self.settings().instance_acquire_timeout.as_secs();
                    let why = format!("no instance of pool {} took the job within {waited} s", self.name);
                    self.fail(&id, FailureReason::RunnerSystemFailure, &why);
                }
                Err(left) => drop(self.bell.wait_past(seen, left)),
            }
        }
    }

    /// Sends a request in a thread of its own.
    fn start_request(self: &Arc<Self>, id: String, request: Request) {
        let in_flight = InFlight { broker: Arc::clone(self), id };
        let send = move || {
            let InFlight { broker, id } = &in_flight;
            match request {
                Request::KeepAlive(held) => broker.keep_alive(held),
                Request::Fail(job) => broker.deliver_failure(id, job),
                Request::QueryState(handle) => broker.query_state(id, &handle),
            }
        };
        if let Err(error) = sync::spawn("keep-job", STACK, send) {
            log::error!("cannot start a thread for a request about a job; retrying pool={} error={error}", self.name);
        }
    }

    /// The next task, or the time until it is due.
    fn next_task(&self) -> Result<KeeperTask, Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        let PoolState { jobs, agents, keeper_requests, .. } = &mut *state;
        if *keeper_requests >= MAX_REQUESTS {
            return Err(LONG_WAIT);
        }
        let due_jobs = jobs.iter_mut().filter_map(|(id, job)| Some((due(job, agents)?, id, job)));
        let Some((at, id, job)) = due_jobs.min_by_key(|next| next.0) else { return Err(LONG_WAIT) };
        if at > now {
            return Err(at - now);
        }
        if job.phase == Phase::Held && job.hold_until <= now {
            return Ok(KeeperTask::Expire(id.clone()));
        }
        job.has_request_in_flight = true;
        *keeper_requests += 1;
        Ok(KeeperTask::Request(id.clone(), due_request(id, job, now)))
    }

    fn keep_alive(&self, mut held: HeldJob) {
        let response = self.send_sign_of_life(&mut held);
        let wait = match &response {
            Some(response) => {
                response.interval.map_or(MAX_KEEP_ALIVE, |requested| requested.clamp(MIN_KEEP_ALIVE, MAX_KEEP_ALIVE))
            }
            None => KEEP_ALIVE_RETRY,
        };
        if response.is_none() {
            self.count_error("gitlab");
        }
        let changed = {
            let mut state = self.lock();
            let Some(job) = state.jobs.get_mut(&held.id) else { return };
            job.commit = held.commit;
            if job.phase == Phase::Held {
                job.keep_at = Instant::now() + wait;
            }
            let changed = job.trace_sent != held.trace_sent || job.trace.len() != held.trace.len();
            job.trace.clone_from(&held.trace);
            job.trace_sent = held.trace_sent;
            changed
        };
        if changed {
            self.note_trace(&held);
        }
        match response.map_or(JobStatus::Ongoing, |response| response.status) {
            JobStatus::Finished => {
                log::info!("held job dropped: GitLab no longer expects it pool={} job={}", self.name, held.id);
                self.forget(&held.id);
            }
            JobStatus::Canceling => {
                self.fail(&held.id, FailureReason::JobCanceled, "the job was canceled before an instance took it");
            }
            JobStatus::Ongoing => {}
        }
    }

    /// Sends an update of the job to GitLab, and writes into its log what it waits for. Returns `None` if GitLab did
    /// not answer.
    fn send_sign_of_life(&self, held: &mut HeldJob) -> Option<SignOfLife> {
        let alive = |status| Some(SignOfLife { status, interval: None });
        let gitlab = self.gitlab();
        if held.commit == CommitState::Unknown {
            self.held.add(&self.name, &held.id, &self.settings().runner.token, &held.handle.token);
        }
        if !held.trace.is_empty() {
            // GitLab takes a log only of a job that runs, so this one is not pending. The manager may have restarted
            // since.
            held.commit = CommitState::Committed;
        }
        if held.commit != CommitState::Committed {
            match gitlab.keep_pending(&held.handle) {
                PendingReply::Pending(status) => {
                    held.commit = CommitState::Pending;
                    return alive(status);
                }
                PendingReply::Unsupported => held.commit = CommitState::Committed,
                PendingReply::Gone => return alive(JobStatus::Finished),
                PendingReply::Failed => return None,
            }
        }
        if held.trace.is_empty() {
            let text = format!(
                "mayfly manager: waiting for an instance of pool {} (at most {} s)",
                self.name,
                held.left.as_secs()
            );
            held.trace = held.line_format.line(&text);
            // Saved before the request: if the manager dies, the next one must send exactly the same line.
            self.note_trace(held);
        }
        if held.trace_sent < held.trace.len() as u64 {
            let chunk = &held.trace.as_bytes()[usize::try_from(held.trace_sent).unwrap_or(0)..];
            let reply = gitlab.append_trace(&held.handle, held.trace_sent, chunk, TraceKind::Normal);
            match reply.outcome {
                TraceOutcome::Accepted => held.trace_sent = held.trace.len() as u64,
                TraceOutcome::Resync(size) => held.trace_sent = size.min(held.trace.len() as u64),
                TraceOutcome::Failed if reply.status == JobStatus::Ongoing => return None,
                TraceOutcome::NotFound | TraceOutcome::Failed => {}
            }
            return Some(SignOfLife { status: reply.status, interval: reply.interval });
        }
        let reply = gitlab.update_job(&held.handle, &JobState::Running, summary(&held.trace));
        let response = SignOfLife { status: reply.status, interval: reply.interval };
        (reply.outcome != UpdateOutcome::Failed).then_some(response)
    }

    fn note_trace(&self, held: &HeldJob) {
        let (pool, id) = (self.name.clone(), held.id.clone());
        self.note(StoreEvent::Trace { pool, id, trace: held.trace.clone(), sent: held.trace_sent });
    }

    /// If an agent dies and its instance keeps running, the agent never reports the end of its job; GitLab then fails
    /// the job.
    fn query_state(&self, id: &str, handle: &JobHandle) {
        match self.gitlab().update_job(handle, &JobState::Running, TraceSummary::default()).outcome {
            UpdateOutcome::Gone => {
                log::info!("GitLab has ended the job of an agent that sends no requests pool={} job={id}", self.name);
                self.forget(id);
            }
            UpdateOutcome::Failed => self.count_error("gitlab"),
            UpdateOutcome::Done | UpdateOutcome::Accepted | UpdateOutcome::TraceInvalid => {}
        }
    }

    /// One attempt to fail a job.
    fn deliver_failure(&self, id: &str, job: FailingJob) {
        let gitlab = self.gitlab();
        if job.since.elapsed() > FAIL_TIMEOUT {
            log::error!("cannot fail a job at GitLab; it fails there after its timeout pool={} job={id}", self.name);
            return self.forget(id);
        }
        if job.may_be_pending {
            let outcome = gitlab.update_job(&job.handle, &JobState::Running, TraceSummary::default()).outcome;
            if outcome == UpdateOutcome::Gone {
                return self.forget(id);
            }
        }
        let trace = match job.log_origin {
            LogOrigin::Foreign => self.append_to_foreign_log(&job),
            LogOrigin::Manager => self.append_to_own_log(&job),
        };
        let state = JobState::Failed { reason: job.reason, exit_code: None };
        let outcome = gitlab.update_job(&job.handle, &state, trace).outcome;
        if outcome == UpdateOutcome::Failed {
            self.count_error("gitlab");
        }
        match outcome {
            UpdateOutcome::Done | UpdateOutcome::Gone => {
                log::info!("job failed by the manager pool={} job={id} outcome={outcome:?}", self.name);
                self.forget(id);
            }
            // GitLab still processes the log, or requests it again: the next attempt sends it.
            UpdateOutcome::Accepted | UpdateOutcome::TraceInvalid | UpdateOutcome::Failed => {
                log::debug!(
                    "cannot fail the job yet; retrying pool={} job={id} attempts={}",
                    self.name,
                    job.attempts + 1
                );
            }
        }
    }

    /// Sends the rest of a log that only the manager has written.
    fn append_to_own_log(&self, job: &FailingJob) -> TraceSummary {
        let whole = format!("{}{}", job.trace, job.line);
        let mut start = job.trace_sent.min(whole.len() as u64);
        for _ in 0..2 {
            let chunk = &whole.as_bytes()[usize::try_from(start).unwrap_or(0)..];
            if chunk.is_empty() {
                break;
            }
            match self.gitlab().append_trace(&job.handle, start, chunk, TraceKind::Normal).outcome {
                TraceOutcome::Resync(size) if size <= whole.len() as u64 => start = size,
                _ => break,
            }
        }
        summary(&whole)
    }

    /// Adds a line to a log that an agent has written. GitLab reports the length of the log.
    fn append_to_foreign_log(&self, job: &FailingJob) -> TraceSummary {
        let (gitlab, text) = (self.gitlab(), job.line.as_bytes());
        // An earlier attempt may have written the line.
        if job.attempts == 0
            && let TraceOutcome::Resync(size) = gitlab.append_trace(&job.handle, 0, text, TraceKind::Normal).outcome
            && size > 0
        {
            gitlab.append_trace(&job.handle, size, text, TraceKind::Normal);
        }
        TraceSummary::default()
    }
}

/// The time of the next request about a job; `None` if the keeper sends none in its present phase.
fn due(job: &PoolJob, agents: &Agents) -> Option<Instant> {
    match &job.phase {
        _ if job.has_request_in_flight => None,
        Phase::Held => Some(job.keep_at.min(job.hold_until)),
        Phase::Failing { .. } => Some(job.keep_at),
        Phase::Running { by, .. } => {
            let last_heard = agents.get(&by.instance).map_or(job.taken_at, |agent| agent.last_heard);
            Some(job.keep_at.max(last_heard + QUERY_AFTER))
        }
        Phase::Offered(_) | Phase::Accepting(_) => None,
    }
}

/// The request that is due for a job. Also sets the time of the next one.
fn due_request(id: &str, job: &mut PoolJob, now: Instant) -> Request {
    let handle = job.handle.clone();
    match &mut job.phase {
        Phase::Failing { reason, line, since, attempts, .. } => {
            let failing = FailingJob {
                handle,
                reason: *reason,
                line: line.clone(),
                trace: job.trace.clone(),
                trace_sent: job.trace_sent,
                may_be_pending: job.commit != CommitState::Committed,
                log_origin: job.log_origin,
                since: *since,
                attempts: *attempts,
            };
            *attempts += 1;
            job.keep_at = now + OUTAGE_RETRY.delay(*attempts);
            Request::Fail(failing)
        }
        Phase::Running { .. } => {
            job.keep_at = now + QUERY_AFTER;
            Request::QueryState(handle)
        }
        Phase::Held | Phase::Offered(_) | Phase::Accepting(_) => {
            job.keep_at = now + MAX_KEEP_ALIVE;
            Request::KeepAlive(HeldJob {
                id: id.to_owned(),
                handle,
                trace: job.trace.clone(),
                trace_sent: job.trace_sent,
                commit: job.commit,
                line_format: job.line_format,
                left: job.hold_until.saturating_duration_since(now),
            })
        }
    }
}

fn summary(text: &str) -> TraceSummary {
    TraceSummary { size: text.len() as u64, crc32: crc32fast::hash(text.as_bytes()) }
}
