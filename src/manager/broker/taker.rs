//! Polls GitLab for jobs, only while an agent waits for a job or instances may be started for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::job::{Phase, PoolJob};
use super::log_line::LineFormat;
use super::{Broker, LONG_WAIT};
use crate::config::Runner;
use crate::coordinator::gitlab::ServerHealth;
use crate::coordinator::source::{JobRequest, PollMode, PollOutcome, PollResponse};
use crate::failure::FailureReason;
use crate::manager::pool::PoolSettings;
use crate::manager::store::records::StoreEvent;
use crate::payload::{self, Payload, Undecodable};
use crate::sync;
use crate::token::Token;

/// The flag that adapts the number of concurrent polls to their results; on by default.
const ADAPTIVE: &str = "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY";

/// The longest pause after rejections of a token that is kept in a secret store.
const MAX_STORED_TOKEN_PAUSE: Duration = Duration::from_secs(60);
/// The pause after a poll that another manager has answered: only a reload can correct the URL.
const MANAGER_URL_PAUSE: Duration = Duration::from_secs(60);

/// The consequences of a poll.
struct AfterPoll {
    place: ReservedPlace,
    /// The pause before the next poll.
    pause: Duration,
    /// The factor by which the number of concurrent polls changes.
    pace_factor: f64,
}

/// The place below the limit of jobs (`concurrent`) that each poll reserves.
#[derive(PartialEq, Eq)]
enum ReservedPlace {
    UsedByJob,
    Unused,
}

impl Broker {
    /// Counts a failed call to another service, for the metrics.
    pub fn count_error(&self, service: &str) {
        self.board.api_error(&self.name, service);
    }

    /// Polls GitLab for jobs until the broker stops.
    pub(super) fn poll_for_jobs(&self) {
        let mut known = self.settings();
        let health_of = |runner: &Runner| ServerHealth::new(runner.unhealthy_requests_limit, runner.unhealthy_interval);
        let mut health = health_of(&known.runner);
        while self.wait_for_demand() {
            let settings = self.settings();
            let runner = &settings.runner;
            if runner.token != known.runner.token {
                health = health_of(runner);
            }
            known = Arc::clone(&settings);
            let mode = PollMode::for_contention(self.job_limit.is_contended());
            let request = JobRequest { token: &runner.token, system_id: &self.system_id, mode };
            let polled = self.gitlab().request_job(&request);
            let after = self.process_poll(polled, &settings, &mut health);
            self.end_poll(&after);
            self.pause(after.pause, &runner.token);
        }
    }

    fn process_poll(&self, polled: PollResponse, settings: &PoolSettings, health: &mut ServerHealth) -> AfterPoll {
        let mut after = AfterPoll {
            place: ReservedPlace::Unused,
            pause: settings.check_interval.max(polled.wait),
            pace_factor: if polled.server_overloaded { 0.5 } else { 0.95 },
        };
        match polled.outcome {
            PollOutcome::Job { payload, request_id, .. } => {
                health.record_healthy();
                after.pace_factor = 1.1;
                if self.receive_job(payload, request_id) {
                    after.place = ReservedPlace::UsedByJob;
                    if !settings.runner.strict_check_interval {
                        after.pause = Duration::ZERO;
                    }
                }
            }
            PollOutcome::NoJob => health.record_healthy(),
            PollOutcome::Leave(_) | PollOutcome::IsManager => {
                log::error!(
                    "the URL of the pool is that of a mayfly manager; write the URL of GitLab pool={}",
                    self.name
                );
                after.pause = MANAGER_URL_PAUSE;
            }
            PollOutcome::Failed(why) => {
                health.record_healthy();
                self.count_error("gitlab");
                log::warn!("poll failed; retrying pool={} error={why}", self.name);
            }
            PollOutcome::Refused(why) | PollOutcome::Misconfigured(why) => {
                after.pause = self.process_rejection(&why, &settings.runner, health).unwrap_or(after.pause);
            }
        }
        after
    }

    /// Returns the pause before the next poll, if GitLab has rejected the runner too often.
    fn process_rejection(&self, why: &str, runner: &Runner, health: &mut ServerHealth) -> Option<Duration> {
        self.count_error("gitlab");
        log::error!(
            "GitLab rejected the runner of the pool; check its token with `mayfly verify` pool={} error={why}",
            self.name
        );
        (self.on_rejected)();
        let pause = health.record_rejection()?;
        // A new token may appear in the store after GitLab has revoked the old one.
        let is_stored = runner.token_reference.is_some();
        let pause = if is_stored { pause.min(MAX_STORED_TOKEN_PAUSE) } else { pause };
        log::error!("rejected too often; polling paused pool={} pause={}s", self.name, pause.as_secs());
        Some(pause)
    }

    /// Waits until a poll may start, and reserves a place for its job. Returns false if the broker stops, or if there
    /// are too many polling threads.
    fn wait_for_demand(&self) -> bool {
        loop {
            let seen = self.bell.count();
            if self.has_stopped() {
                return false;
            }
            let settings = self.settings();
            let adaptive = settings.runner.feature_flags.get(ADAPTIVE).copied().unwrap_or(true);
            let pace = *sync::lock(&self.poll_pace);
            let requests = if adaptive { pace.ceil() as u32 } else { settings.runner.request_concurrency };
            {
                let mut state = self.lock();
                if state.polling_threads > settings.max_polls() {
                    state.polling_threads -= 1;
                    return false;
                }
                if state.polls_in_flight < requests {
                    let has_room = state.jobs_to_request(settings.runner.limit) > 0;
                    state.starved |= !has_room;
                    if has_room && self.job_limit.try_reserve() {
                        state.polls_in_flight += 1;
                        return true;
                    }
                }
            }
            self.bell.wait_past(seen, LONG_WAIT);
        }
    }

    /// Records the end of a poll. A job that the poll returned keeps its reserved place.
    fn end_poll(&self, after: &AfterPoll) {
        {
            let limit = f64::from(self.settings().runner.request_concurrency.max(1));
            let mut pace = sync::lock(&self.poll_pace);
            *pace = (*pace * after.pace_factor).clamp(1.0, limit);
        }
        self.lock().polls_in_flight -= 1;
        if after.place == ReservedPlace::Unused {
            self.job_limit.release();
        }
        self.bell.ring();
    }

    /// Waits before the next poll, unless the broker stops or the runner gets another token.
    fn pause(&self, duration: Duration, token: &Token) {
        let until = Instant::now() + duration;
        loop {
            let seen = self.bell.count();
            let left = until.saturating_duration_since(Instant::now());
            let is_over = left.is_zero() || self.has_stopped() || self.lock().closed;
            if is_over || self.settings().runner.token != *token {
                return;
            }
            self.bell.wait_past(seen, left);
        }
    }

    /// Stores a job from GitLab. From then on the job is handed to an agent or failed at GitLab, even if this process
    /// dies. Returns false if the response contains no job that could be reported.
    fn receive_job(&self, body: Vec<u8>, request_id: String) -> bool {
        let settings = self.settings();
        let now = Instant::now();
        let job = match payload::decode(&body) {
            Ok(payload) => PoolJob {
                project: project_of(&payload),
                link: variable(&payload, "CI_JOB_URL").unwrap_or_default(),
                line_format: line_format_of(&payload, &settings.runner.feature_flags),
                request_id,
                payload: Some(body.into()),
                // A job that is offered immediately needs no message in its log.
                keep_at: now + super::keeper::ANNOUNCE_AFTER,
                ..PoolJob::new(payload.handle(), now, settings.instance_acquire_timeout)
            },
            Err(Undecodable { why, job: Some(handle) }) => PoolJob {
                phase: Phase::failing(
                    &format!("the payload of this job cannot be read: {why}"),
                    LineFormat::Timestamped,
                    now,
                ),
                ..PoolJob::new(handle, now, Duration::ZERO)
            },
            Err(Undecodable { why, job: None }) => {
                log::error!(
                    "GitLab sent a job that cannot be decoded (no id or token); it cannot be reported pool={} error={why}",
                    self.name
                );
                return false;
            }
        };
        self.insert(job)
    }

    fn insert(&self, mut job: PoolJob) -> bool {
        let id = job.handle.id.to_string();
        log::info!("job received pool={} job={id}", self.name);
        // Written before anything else, and synced while the job is offered: the acceptance follows in the same file.
        let written = self
            .record(&job, &id)
            .and_then(|record| self.store.write(StoreEvent::Job { pool: self.name.clone(), job: Box::new(record) }));
        if let Err(error) = &written {
            log::error!("cannot write the manager's state pool={} error={error}", self.name);
            let why = format!("the manager cannot write its state: {error}");
            job.phase = Phase::failing(&why, job.line_format, Instant::now());
            job.keep_at = Instant::now();
        }
        let is_retired;
        {
            let mut state = self.lock();
            if state.jobs.contains_key(&id) {
                log::warn!("GitLab sent a job that this manager already has pool={} job={id}", self.name);
                return false;
            }
            state.jobs.insert(id.clone(), job);
            is_retired = state.retired.is_some();
        }
        match is_retired {
            // The pool was removed while the request was in flight.
            true => self.fail(&id, FailureReason::RunnerSystemFailure, super::REMOVED),
            false => self.assign(),
        }
        self.changed();
        if let Ok(position) = written
            && let Err(error) = self.store.sync(position)
        {
            log::error!("cannot sync the manager's state pool={} error={error}", self.name);
        }
        true
    }
}

fn variable(payload: &Payload, key: &str) -> Option<String> {
    payload.variables.iter().rev().find(|variable| variable.key == key).map(|variable| variable.value.clone())
}

fn project_of(payload: &Payload) -> String {
    variable(payload, "CI_PROJECT_PATH").unwrap_or_else(|| payload.job_info.project_name.clone())
}

/// The format in which the agent will write the job's log.
fn line_format_of(payload: &Payload, flags: &std::collections::BTreeMap<String, bool>) -> LineFormat {
    const FLAG: &str = "FF_TIMESTAMPS";
    LineFormat::new(match flags.get(FLAG) {
        Some(on) => *on,
        None => variable(payload, FLAG).is_none_or(|value| matches!(value.as_str(), "1" | "true")),
    })
}
