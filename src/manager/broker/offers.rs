//! Offers held jobs to agents until an agent accepts, and processes the reports of agents.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::job::{LogOrigin, Offered, Phase, PoolJob};
use super::state::{ACCEPT_TIMEOUT, AcceptanceResult, Waiter};
use super::{Broker, LONG_WAIT};
use crate::coordinator::manager::protocol::{
    self, CAPACITY_HEADER, Heartbeat, LEAVE, MANAGER_HEADER, ORDER_HEADER, Offer, OfferedCoordinator, Orders,
    REASON_HEADER, TraceStart,
};
use crate::coordinator::{JobHandle, JobId};
use crate::digest::hex;
use crate::failure::FailureReason;
use crate::manager::server::request::ServerResponse;
use crate::manager::server::{Exchange, Ticket};
use crate::manager::store::records::{Accepted, StoreEvent};
use crate::random;
use crate::sys;
use crate::version::VERSION;

/// The duration of a long poll.
const POLL_DURATION: Duration = Duration::from_secs(protocol::WAIT_SECONDS);
/// A poll is answered at most this long after its time, together with later ones. Otherwise, with a thousand agents, a
/// thread would wake for each.
const MAX_RESPONSE_DELAY: Duration = Duration::from_millis(500);
/// An agent whose machine has been unfit for this long must leave, so that another instance can replace it.
const MAX_UNFIT_SECONDS: u64 = if cfg!(debug_assertions) { 5 } else { 300 };

/// Adds the header by which an agent recognises a manager.
fn with_manager_header(response: ServerResponse) -> ServerResponse {
    response.with_header(MANAGER_HEADER, VERSION)
}

/// The response if there is no job and the agent must leave.
pub fn leave_response(reason: &str) -> ServerResponse {
    with_manager_header(ServerResponse::empty(204)).with_header(ORDER_HEADER, LEAVE).with_header(REASON_HEADER, reason)
}

impl Broker {
    /// The response if there is no job.
    pub(super) fn stay_response(&self) -> ServerResponse {
        let capacity = self.settings().capacity_per_instance.to_string();
        with_manager_header(ServerResponse::empty(204))
            .with_header(ORDER_HEADER, "stay")
            .with_header(CAPACITY_HEADER, &capacity)
    }

    /// Processes an agent's poll for a job.
    pub fn handle_poll(&self, instance: &str, exchange: Exchange) {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(agent) = state.agents.get_mut(instance) {
            agent.last_heard = now;
        }
        if let Some(reason) = state.leave_reason(instance) {
            drop(state);
            return exchange.respond(&leave_response(&reason));
        }
        // Under the lock, because the server may report immediately that the client has disconnected, which removes it
        // from the list.
        let ticket = exchange.defer();
        state.waiting.push(Waiter { ticket, instance: instance.to_owned(), until: now + POLL_DURATION });
        let starved = std::mem::take(&mut state.starved);
        drop(state);
        self.assign();
        if starved {
            self.bell.ring();
        }
    }

    /// Offers held jobs to waiting agents, while there are both.
    pub(super) fn assign(&self) {
        loop {
            let now = Instant::now();
            let offered = self.lock().offer(hex(&random::bytes::<16>()), now);
            let Some((id, offered)) = offered else { return };
            let sent = self.offer_body(&id, &offered).is_some_and(|body| {
                let response = with_manager_header(ServerResponse { status: 201, headers: Vec::new(), body });
                self.responder.respond(offered.ticket, response)
            });
            match sent {
                true => log::info!("job offered pool={} job={id} instance={}", self.name, offered.instance),
                false => drop(self.lock().withdraw_offer(&id, &offered.id)),
            }
            self.changed();
        }
    }

    /// GitLab's payload with the offer.
    fn offer_body(&self, id: &str, offered: &Offered) -> Option<Vec<u8>> {
        let settings = self.settings();
        let (payload, trace, request_id) = {
            let state = self.lock();
            let job = state.jobs.get(id)?;
            (Arc::clone(job.payload.as_ref()?), TraceStart::new(&job.trace, job.trace_sent), job.request_id.clone())
        };
        let offer = Offer {
            offer: offered.id.clone(),
            accept_seconds: ACCEPT_TIMEOUT.as_secs(),
            coordinator: OfferedCoordinator {
                url: settings.runner.url.clone(),
                authorities: settings.authorities.clone(),
            },
            trace,
            runner: settings.runner_text.clone(),
            short_token: settings.runner.token.short(),
            capacity: settings.capacity_per_instance,
            request_id,
        };
        with_offer(&payload, &offer)
    }

    /// Processes the disconnection of a waiting client.
    pub fn handle_disconnect(&self, ticket: Ticket) {
        if self.lock().remove_poll(ticket) {
            self.assign();
            self.changed();
        }
    }

    /// Processes an agent's announcement that it will accept a job, or its acceptance.
    pub fn handle_acceptance(&self, instance: &str, id: &str, acceptance: &protocol::Acceptance) -> ServerResponse {
        let offer = acceptance.offer.as_str();
        let void = || ServerResponse::message(409, "the manager withdrew the offer; do not run the job");
        match acceptance.state.as_str() {
            "pending" => match self.lock().extend_offer(instance, id, offer, Instant::now()) {
                true => ServerResponse::message(200, "the offer holds"),
                false => void(),
            },
            "running" => {
                let decision = self.lock().accept(instance, id, offer, sys::unix_now());
                match decision {
                    AcceptanceResult::Write(by) => self.write_acceptance(id, by),
                    AcceptanceResult::AlreadyWritten => ServerResponse::message(200, "this job was accepted before"),
                    AcceptanceResult::BeingWritten => {
                        ServerResponse::message(503, "the acceptance is being written; retry")
                            .with_header("Retry-After", "1")
                    }
                    AcceptanceResult::Void => void(),
                }
            }
            _ => ServerResponse::message(400, "`state` must be `pending` or `running`"),
        }
    }

    /// Writes the acceptance to the disk before the response is sent.
    fn write_acceptance(&self, id: &str, by: Accepted) -> ServerResponse {
        let instance = by.instance.clone();
        // The job may run from now on: a manager that loses its state must not fail it.
        self.held.remove(&self.name, id);
        let event = StoreEvent::Accepted { pool: self.name.clone(), id: id.to_owned(), by: by.clone() };
        let written = self.store.commit(event);
        let mut state = self.lock();
        let response = match written {
            Ok(()) if state.confirm_acceptance(id, by) => {
                log::info!("job accepted pool={} job={id} instance={instance}", self.name);
                if let Some(job) = state.jobs.get(id) {
                    self.board.handed_over(&self.name, job.offered_at.elapsed());
                    self.board.waited(&self.name, job.taken_at.elapsed());
                }
                ServerResponse::message(200, "accepted")
            }
            Ok(()) => ServerResponse::message(409, "the manager withdrew the offer; do not run the job"),
            Err(error) => {
                log::error!("cannot write the manager's state pool={} error={error}", self.name);
                state.revert_acceptance(id);
                ServerResponse::message(503, "the manager cannot write its state").with_header("Retry-After", "5")
            }
        };
        drop(state);
        self.changed();
        response
    }

    /// Processes a heartbeat of an agent.
    pub fn handle_heartbeat(&self, instance: &str, heartbeat: &Heartbeat) -> ServerResponse {
        let changes = {
            let mut state = self.lock();
            if let Some(agent) = state.agents.get_mut(instance) {
                agent.drains = heartbeat.leaving;
            }
            state.heartbeat(instance, &heartbeat.jobs, &heartbeat.ended, Instant::now())
        };
        for id in &changes.ended {
            log::info!("job ended pool={} job={id} instance={instance}", self.name);
            self.forget(id);
        }
        for id in &changes.adopted {
            self.adopt(instance, id, heartbeat);
        }
        for id in &changes.vanished {
            let why = format!("the agent on instance {instance} no longer has this job");
            self.fail(id, FailureReason::RunnerSystemFailure, &why);
        }
        let leave = match changes.leave {
            None if heartbeat.leaving => self.note_leaving(instance),
            None if heartbeat.unfit_seconds > MAX_UNFIT_SECONDS => {
                let reason = "the machine is unfit for jobs";
                crate::manager::workload::Workload::dismiss(self, instance, reason).then(|| reason.to_owned())
            }
            leave => leave,
        };
        ServerResponse::json(200, &Orders { leave, again: changes.lacks_jobs })
    }

    /// Processes the report of an agent that leaves for its own reason.
    fn note_leaving(&self, instance: &str) -> Option<String> {
        let mut state = self.lock();
        let agent = state.agents.get_mut(instance)?;
        agent.leave.get_or_insert_with(|| "the agent leaves".to_owned());
        let tickets = state.take_waiters(instance);
        drop(state);
        for ticket in tickets {
            self.responder.respond(ticket, self.stay_response());
        }
        self.changed();
        None
    }

    /// Adopts a job that an agent runs and that is unknown to this manager, because it has lost its state.
    fn adopt(&self, instance: &str, id: &str, heartbeat: &Heartbeat) {
        let Some(report) = heartbeat.jobs.iter().find(|report| report.id == *id) else { return };
        let Some(job) = JobId::parse(id) else { return };
        let now = Instant::now();
        let by = Accepted { offer: report.offer.clone(), instance: instance.to_owned(), at: sys::unix_now() };
        let job = PoolJob {
            phase: Phase::Running { by, stage: "accepted", missing: 0 },
            log_origin: LogOrigin::Foreign,
            ..PoolJob::new(JobHandle { id: job, token: report.token.clone() }, now, LONG_WAIT)
        };
        let written = self.record(&job, id).and_then(|record| {
            self.store.write(StoreEvent::Job { pool: self.name.clone(), job: Box::new(record) }).map(drop)
        });
        if let Err(error) = written {
            log::error!("cannot write the manager's state pool={} error={error}", self.name);
        }
        if self.lock().jobs.insert(id.to_owned(), job).is_none() {
            self.job_limit.reserve(1);
        }
        self.held.remove(&self.name, id);
        log::info!("job adopted from its agent pool={} job={id} instance={instance}", self.name);
        self.changed();
    }

    /// Responds to polls that have waited long enough, and withdraws offers that were not accepted in time.
    pub(super) fn watch_clock(&self) {
        while !self.has_stopped() {
            let seen = self.bell.count();
            let now = Instant::now();
            let (late, void, next) = {
                let mut state = self.lock();
                let late = state.waiting.iter().take_while(|waiter| waiter.until <= now).count();
                let late: Vec<Waiter> = state.waiting.drain(..late).collect();
                let mut void = Vec::new();
                let mut next = state.waiting.first().map(|waiter| waiter.until + MAX_RESPONSE_DELAY);
                for (id, job) in &mut state.jobs {
                    let Phase::Offered(offered) = &job.phase else { continue };
                    if offered.until <= now {
                        void.push((id.clone(), offered.instance.clone()));
                        job.phase = Phase::Held;
                    } else {
                        next = Some(next.map_or(offered.until, |next| next.min(offered.until)));
                    }
                }
                (late, void, next)
            };
            for waiter in late {
                self.responder.respond(waiter.ticket, self.stay_response());
            }
            for (id, instance) in &void {
                log::warn!("offer not accepted in time pool={} job={id} instance={instance}", self.name);
            }
            if !void.is_empty() {
                self.assign();
                self.changed();
                continue;
            }
            let left = next.map_or(ACCEPT_TIMEOUT, |next| next.saturating_duration_since(Instant::now()));
            // Later requests and offers are due after this time.
            self.bell.wait_past(seen, left.min(ACCEPT_TIMEOUT));
        }
    }
}

/// Adds the offer to a payload, which is a JSON object, without other changes.
fn with_offer(payload: &[u8], offer: &Offer) -> Option<Vec<u8>> {
    let end = payload.iter().rposition(|byte| !byte.is_ascii_whitespace()).filter(|end| payload[*end] == b'}')?;
    let is_empty = payload[..end].iter().rev().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let mut body = Vec::with_capacity(payload.len() + 4096);
    body.extend_from_slice(&payload[..end]);
    body.extend_from_slice(if is_empty { b"\"" } else { b",\"" });
    body.extend_from_slice(protocol::OFFER_KEY.as_bytes());
    body.extend_from_slice(b"\":");
    serde_json::to_writer(&mut body, offer).ok()?;
    body.push(b'}');
    Some(body)
}
