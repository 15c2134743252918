//! The records of a pool in the store: writes the record of a new job, and reads the jobs and agents of an earlier
//! manager. Tokens and payloads are encrypted.

use std::time::{Duration, Instant, SystemTime};

use super::Broker;
use super::agents::Agent;
use super::job::{CommitState, LogOrigin, Phase, PoolJob};
use super::log_line::LineFormat;
use crate::coordinator::{JobHandle, JobId};
use crate::failure::FailureReason;
use crate::manager::store::records::{JobRecord, Records, StoreEvent};
use crate::sys;
use crate::token::Token;

impl Broker {
    /// The record of a new job. Errors: the encryption failed.
    pub fn record(&self, job: &PoolJob, id: &str) -> std::io::Result<JobRecord> {
        let purpose = |what: &str| format!("{what} {} {id}", self.name);
        let seal = |what: &str, text: &[u8]| self.store.sealer().seal(&purpose(what), text);
        Ok(JobRecord {
            id: id.to_owned(),
            taken: sys::unix_seconds(job.taken),
            token: seal("token", job.handle.token.reveal().as_bytes())?,
            payload: job.payload.as_ref().map(|payload| seal("payload", payload)).transpose()?,
            project: job.project.clone(),
            link: job.link.clone(),
            request_id: job.request_id.clone(),
            timestamps: job.line_format == LineFormat::Timestamped,
            trace: job.trace.clone(),
            trace_sent: job.trace_sent,
            accepted: match &job.phase {
                Phase::Running { by, .. } => Some(by.clone()),
                _ => None,
            },
            failed: match &job.phase {
                Phase::Failing { why, .. } => Some(why.clone()),
                _ => None,
            },
            last_line: match &job.phase {
                Phase::Failing { line, .. } => line.clone(),
                _ => String::new(),
            },
        })
    }

    /// Loads the records of an earlier manager.
    pub fn restore(&self, records: &Records) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let mut state = self.lock();
        for (_, record) in records.agents.iter().filter(|((pool, _), _)| *pool == self.name) {
            state.agents.insert(Agent {
                record: record.clone(),
                last_heard: now,
                idle_since: now,
                leave: None,
                drains: false,
            });
        }
        state.apply_settings(&self.settings());
        let mut unreadable = Vec::new();
        for ((_, id), record) in records.jobs.iter().filter(|((pool, _), _)| *pool == self.name) {
            match self.restored(record, now, wall) {
                Some(job) => {
                    // A later manager must send the same last line.
                    if let (Phase::Failing { why, line, .. }, None) = (&job.phase, &record.failed) {
                        let (pool, id, why, line) = (self.name.clone(), id.clone(), why.clone(), line.clone());
                        self.note(StoreEvent::Failed { pool, id, why, line });
                    }
                    state.jobs.insert(id.clone(), job);
                }
                None => unreadable.push(id.clone()),
            }
        }
        let (jobs, agents) = (state.job_count(), state.agents.len());
        let held = state.jobs.values().filter(|job| job.phase == Phase::Held).count();
        drop(state);
        self.job_limit.reserve(jobs);
        for id in unreadable {
            log::error!(
                "a job in the manager's state cannot be decrypted; GitLab fails it later pool={} job={id}",
                self.name
            );
            self.note(StoreEvent::JobGone { pool: self.name.clone(), id });
        }
        if jobs > 0 || agents > 0 {
            log::info!("state restored pool={} agents={agents} jobs={jobs} held={held}", self.name);
        }
    }

    fn restored(&self, record: &JobRecord, now: Instant, wall: SystemTime) -> Option<PoolJob> {
        let purpose = |what: &str| format!("{what} {} {}", self.name, record.id);
        let token = self.store.sealer().open(&purpose("token"), &record.token)?;
        let handle = JobHandle { id: JobId::parse(&record.id)?, token: Token::new(String::from_utf8(token).ok()?) };
        let payload = record.payload.as_ref().and_then(|sealed| self.store.sealer().open(&purpose("payload"), sealed));
        let taken = SystemTime::UNIX_EPOCH + Duration::from_secs(record.taken);
        let age = wall.duration_since(taken).unwrap_or_default();
        let taken_at = now.checked_sub(age).unwrap_or(now);
        let line_format = LineFormat::new(record.timestamps);
        let phase = match (&record.failed, &record.accepted, &payload) {
            (Some(why), ..) => {
                let reason = FailureReason::RunnerSystemFailure;
                let (why, line) = (why.clone(), record.last_line.clone());
                Phase::Failing { reason, why, line, since: now, attempts: 0 }
            }
            (None, Some(by), _) => Phase::Running { by: by.clone(), stage: "accepted", missing: 0 },
            (None, None, Some(_)) => Phase::Held,
            (None, None, None) => Phase::failing("the manager lost the job's payload", line_format, now),
        };
        Some(PoolJob {
            handle,
            payload: payload.map(Into::into),
            request_id: record.request_id.clone(),
            project: record.project.clone(),
            link: record.link.clone(),
            taken,
            taken_at,
            offered_at: now,
            hold_until: taken_at + self.settings().instance_acquire_timeout,
            line_format,
            trace: record.trace.clone(),
            trace_sent: record.trace_sent,
            has_request_in_flight: false,
            keep_at: now,
            log_origin: if record.accepted.is_some() { LogOrigin::Foreign } else { LogOrigin::Manager },
            commit: CommitState::Unknown,
            phase,
        })
    }
}
