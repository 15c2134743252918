//! The requests for jobs: polls, logs, states.

use std::time::Duration;

use serde::Serialize;

use super::{ApiError, GitLab, JOBS_REQUEST, Registration, error_text, health};
use crate::coordinator::manager::protocol::{MANAGER_HEADER, Offer};
use crate::coordinator::source::{AcceptOutcome, JobRequest, JobSource, PollMode, PollOutcome, PollResponse};
use crate::coordinator::{
    Coordinator, JobHandle, JobId, JobState, JobStatus, TraceKind, TraceOutcome, TraceReply, TraceSummary,
    UpdateOutcome, UpdateReply,
};
use crate::http::{Method, Response, is_retryable};
use crate::monitor::metrics;
use crate::sync;
use crate::token::Token;

/// The longest interval that the agent accepts from a server.
const MAX_UPDATE_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// GitLab's response to a runner that keeps a job pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingReply {
    /// The job stays pending; GitLab sent this status.
    Pending(JobStatus),
    /// The server does not support `two_phase_job_commit`: the job is already running.
    Unsupported,
    /// The job does not belong to this runner any more.
    Gone,
    /// The result is unknown (network error, 429, 5xx).
    Failed,
}

#[derive(Serialize)]
struct RequestBody<'a> {
    token: &'a str,
    system_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    last_update: &'a str,
    info: &'a super::RunnerManagerInfo,
}

#[derive(Serialize)]
struct UpdateBody<'a> {
    token: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<&'a str>,
    output: Output<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    info: &'a super::RunnerManagerInfo,
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytesize: Option<u64>,
}

impl GitLab {
    /// Polls for a job. Once GitLab has sent a job, the caller must run it or report it as failed.
    pub fn request_job(&self, request: &JobRequest<'_>) -> PollResponse {
        let last_update = sync::lock(&self.last_update).clone();
        let body = RequestBody {
            token: request.token.reveal(),
            system_id: request.system_id,
            last_update: if request.mode == PollMode::Long { &last_update } else { "" },
            info: &self.info,
        };
        let secret = Some(("RUNNER-TOKEN", request.token.reveal()));
        // A poll is sent once; the next poll is the retry.
        let response = self.send_json(Method::Post, JOBS_REQUEST, secret, &body);
        let is_overloaded = response.as_ref().is_ok_and(|response| is_retryable(response.status));
        let requested_wait = response.as_ref().ok().filter(|_| is_overloaded).and_then(Response::requested_delay);
        let outcome = match response {
            Ok(response) => self.poll_outcome(response),
            Err(crate::http::HttpError::Configuration(why)) => PollOutcome::Misconfigured(why),
            Err(error) => PollOutcome::Failed(error.to_string()),
        };
        let wait = match &outcome {
            PollOutcome::Failed(_) => health::server_failed(&self.base).max(requested_wait.unwrap_or_default()),
            PollOutcome::Misconfigured(_) => Duration::ZERO,
            _ => {
                health::server_answered(&self.base);
                Duration::ZERO
            }
        };
        PollResponse { outcome, server_overloaded: is_overloaded, wait }
    }

    /// Asks the server to keep a job pending until its script starts (`two_phase_job_commit`). The response shows
    /// whether the server supports that.
    pub fn keep_pending(&self, job: &JobHandle) -> PendingReply {
        let body = UpdateBody {
            token: job.token.reveal(),
            state: "pending",
            failure_reason: None,
            checksum: None,
            output: Output { checksum: None, bytesize: None },
            exit_code: None,
            info: &self.info,
        };
        let secret = Some(("JOB-TOKEN", job.token.reveal()));
        match self.send_json(Method::Put, &format!("jobs/{}", job.id), secret, &body) {
            Ok(response) => match response.status {
                200 | 202 => PendingReply::Pending(job_status(&response)),
                400 | 422 => PendingReply::Unsupported,
                403 | 404 | 409 => PendingReply::Gone,
                _ => PendingReply::Failed,
            },
            Err(error) => {
                log::warn!("cannot keep the job pending; retrying job={} error={error}", job.id);
                PendingReply::Failed
            }
        }
    }

    fn poll_outcome(&self, response: Response) -> PollOutcome {
        if response.header(MANAGER_HEADER).is_some() {
            return PollOutcome::IsManager;
        }
        match response.status {
            // Every 201 that is not clearly something else is a job, even an incomplete or empty one: GitLab has
            // assigned it, and the agent reports it as failed if id and token can be found. A sign-in page is not a
            // job.
            201 if !(response.is_json() || response.body.trim_ascii_start().starts_with(b"{")) => {
                let kind = response.header("Content-Type").unwrap_or("nothing");
                PollOutcome::Failed(format!("status 201 with {kind} instead of a job"))
            }
            201 => {
                if let Some(why) = &response.cut {
                    log::error!(
                        "the response with a job was cut off; the job fails at GitLab after its timeout error={why}"
                    );
                }
                let request_id = response.header("X-Request-Id").unwrap_or_default().to_owned();
                PollOutcome::Job { payload: response.body, request_id, offer: None }
            }
            204 => {
                if let Some(value) = response.header("X-GitLab-Last-Update").filter(|value| !value.is_empty()) {
                    *sync::lock(&self.last_update) = value.to_owned();
                }
                PollOutcome::NoJob
            }
            403 => PollOutcome::Refused(error_text(&response)),
            status => PollOutcome::Failed(format!("status {status}: {}", error_text(&response))),
        }
    }
}

impl JobSource for GitLab {
    fn request_job(&self, request: &JobRequest<'_>) -> PollResponse {
        Self::request_job(self, request)
    }

    /// GitLab assigns a job with the poll response, so there is no offer to accept.
    fn accept(&self, _: &JobId, _: &Offer) -> AcceptOutcome {
        AcceptOutcome::Void
    }

    fn unregister(&self, token: &Token, system_id: &str, timeout: Duration) -> Result<(), ApiError> {
        self.unregister_manager_once(token, system_id, timeout)
    }

    fn reset_token(&self, token: &Token) -> Result<Registration, ApiError> {
        Self::reset_token(self, token)
    }

    fn stop_waiting(&self) {
        Self::stop_waiting(self);
    }

    fn silence(&self) -> Option<Duration> {
        None
    }

    fn abandon_polls(&self) -> bool {
        false
    }
}

impl Coordinator for GitLab {
    fn certificates(&self) -> Option<String> {
        self.chain()
    }

    fn append_trace(&self, job: &JobHandle, start: u64, chunk: &[u8], kind: TraceKind) -> TraceReply {
        let last = start + chunk.len() as u64 - 1;
        let headers = vec![
            ("Content-Type", "text/plain".to_owned()),
            ("Content-Range", format!("{start}-{last}")),
            ("JOB-TOKEN", job.token.reveal().to_owned()),
        ];
        let path = format!("jobs/{}/trace?debug_trace={}", job.id, kind == TraceKind::Debug);
        let response = match self.send(Method::Patch, &path, headers, chunk) {
            Ok(response) => response,
            Err(error) => {
                log::warn!("cannot send a part of the job's log; retrying job={} error={error}", job.id);
                return TraceReply { outcome: TraceOutcome::Failed, status: JobStatus::Ongoing, interval: None };
            }
        };
        let outcome = match response.status {
            202 => {
                metrics::trace_sent(chunk.len());
                TraceOutcome::Accepted
            }
            404 => TraceOutcome::NotFound,
            416 => TraceOutcome::Resync(stored_size(&response)),
            status => {
                log::warn!("cannot send a part of the job's log; retrying job={} status={status}", job.id);
                TraceOutcome::Failed
            }
        };
        let status = if response.status == 403 { JobStatus::Finished } else { job_status(&response) };
        TraceReply { outcome, status, interval: interval(&response) }
    }

    fn update_job(&self, job: &JobHandle, state: &JobState, trace: TraceSummary) -> UpdateReply {
        let checksum = (trace.crc32 != 0).then(|| format!("crc32:{:08x}", trace.crc32));
        let (name, failure_reason, exit_code) = match state {
            JobState::Running => ("running", None, None),
            JobState::Success => ("success", None, None),
            JobState::Failed { reason, exit_code } => ("failed", Some(reason.as_str()), *exit_code),
        };
        let body = UpdateBody {
            token: job.token.reveal(),
            state: name,
            failure_reason,
            checksum: checksum.as_deref(),
            output: Output { checksum: checksum.as_deref(), bytesize: (trace.size > 0).then_some(trace.size) },
            exit_code: exit_code.filter(|code| *code != 0),
            info: &self.info,
        };
        let secret = Some(("JOB-TOKEN", job.token.reveal()));
        let response = match self.send_json(Method::Put, &format!("jobs/{}", job.id), secret, &body) {
            Ok(response) => response,
            Err(error) => {
                log::warn!("cannot send the state of the job; retrying job={} state={name} error={error}", job.id);
                return UpdateReply { outcome: UpdateOutcome::Failed, status: JobStatus::Ongoing, interval: None };
            }
        };
        let gone = matches!(response.status, 403 | 404);
        let outcome = match response.status {
            200 => UpdateOutcome::Done,
            202 => UpdateOutcome::Accepted,
            412 => UpdateOutcome::TraceInvalid,
            _ if gone => UpdateOutcome::Gone,
            status => {
                log::warn!("cannot send the state of the job; retrying job={} state={name} status={status}", job.id);
                UpdateOutcome::Failed
            }
        };
        let status = if gone { JobStatus::Finished } else { job_status(&response) };
        UpdateReply { outcome, status, interval: interval(&response) }
    }
}

fn job_status(response: &Response) -> JobStatus {
    match response.header("Job-Status") {
        Some("canceling") => JobStatus::Canceling,
        Some("canceled" | "failed") => JobStatus::Finished,
        _ => JobStatus::Ongoing,
    }
}

fn interval(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.header("X-GitLab-Trace-Update-Interval")?.trim().parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds).min(MAX_UPDATE_INTERVAL))
}

/// The second number of `Range: 0-<size>`; GitLab sends the size itself.
fn stored_size(response: &Response) -> u64 {
    let size = response.header("Range").and_then(|range| range.rsplit('-').next()?.trim().parse().ok());
    size.unwrap_or(0)
}
