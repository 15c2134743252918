//! The jobs that an agent got from a manager, and the thread that reports them to the manager.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::ManagerClient;
use super::protocol::{HEARTBEAT_SECONDS, Heartbeat, JobReport, Orders, WAIT_SECONDS};
use super::registration::RegistrationState;
use crate::decode;
use crate::http::Method;
use crate::monitor::metrics;
use crate::sync;
use crate::token::Token;

/// The stack size of the thread that sends heartbeats, in bytes.
const STACK: usize = 256 * 1024;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(HEARTBEAT_SECONDS);
/// An agent without a job sends a heartbeat only if the manager has answered no request of the agent for this long.
/// This is longer than a long poll.
const IDLE_HEARTBEAT_AFTER: Duration = Duration::from_secs(WAIT_SECONDS + 10);
/// The delay between two attempts while the manager does not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Called with the reason when the manager orders the agent to shut down.
type OnLeave = Box<dyn Fn(&str) + Send + Sync>;

/// The jobs that an agent got from one manager, and its registration there. All clients of the manager share them: a
/// job from the journal has its own client, and a reload may create another one.
#[derive(Default)]
pub struct ManagedJobs {
    pub(super) registration: Mutex<RegistrationState>,
    /// Held during a registration, which may take the timeout of a request. The lock of `registration` is held only to
    /// read or change it, because the main loop also reads it.
    pub(super) registering: Mutex<()>,
    reports: Mutex<Reports>,
    changed: Condvar,
    on_leave: Mutex<Option<OnLeave>>,
}

/// Whether an agent takes jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobIntake {
    #[default]
    Open,
    /// The agent shuts down and takes no more jobs.
    Closed,
    /// As [`JobIntake::Closed`]; the agent also ignores the responses to its polls in flight.
    Abandoned,
}

/// Whether a poll may wait until the machine is ready for jobs.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum ReadinessWait {
    #[default]
    Allowed,
    Ended,
}

/// The content of the next heartbeat.
#[derive(Default)]
struct Reports {
    jobs: Vec<ManagedJob>,
    /// Ids of ended jobs that the manager has not acknowledged.
    ended: Vec<String>,
    /// A change has occurred, so the next heartbeat is sent immediately.
    has_news: bool,
    /// The manager has not acknowledged the latest heartbeat, or asked for another one.
    is_due: bool,
    unfit_since: Option<Instant>,
    intake: JobIntake,
    readiness: ReadinessWait,
}

/// A job of the agent from the manager.
struct ManagedJob {
    id: String,
    offer: String,
    token: Token,
}

impl ManagedJobs {
    /// Sets the function to call when the manager orders the agent to shut down.
    pub fn set_on_leave(&self, on_leave: OnLeave) {
        *sync::lock(&self.on_leave) = Some(on_leave);
    }

    /// Adds an accepted job.
    pub fn add(&self, id: String, offer: String, token: Token) {
        let mut reports = sync::lock(&self.reports);
        reports.jobs.retain(|job| job.offer != offer);
        reports.jobs.push(ManagedJob { id, offer, token });
    }

    /// Removes a job that has ended and is reported to GitLab.
    pub fn remove(&self, offer: &str) {
        let mut reports = sync::lock(&self.reports);
        let ended: Vec<String> =
            reports.jobs.iter().filter(|job| job.offer == offer).map(|job| job.id.clone()).collect();
        reports.jobs.retain(|job| job.offer != offer);
        reports.ended.extend(ended);
        reports.has_news = true;
        self.changed.notify_all();
    }

    /// Reports from now on that the machine is fit for jobs.
    pub fn set_fit(&self) {
        sync::lock(&self.reports).unfit_since = None;
    }

    /// Reports from now on that the machine is unfit for jobs, and since when.
    pub fn set_unfit(&self) {
        sync::lock(&self.reports).unfit_since.get_or_insert_with(Instant::now);
    }

    /// Reports from now on whether the agent takes jobs.
    pub fn set_intake(&self, intake: JobIntake) {
        let mut reports = sync::lock(&self.reports);
        reports.has_news |= reports.intake != intake;
        reports.intake = intake;
        self.changed.notify_all();
    }

    /// Whether the agent takes jobs.
    pub(super) fn intake(&self) -> JobIntake {
        sync::lock(&self.reports).intake
    }

    /// Whether a heartbeat would report anything besides the fact that the agent runs.
    fn has_facts(&self) -> bool {
        let reports = sync::lock(&self.reports);
        let has_jobs = !reports.jobs.is_empty() || !reports.ended.is_empty();
        has_jobs || reports.is_due || reports.intake != JobIntake::Open || reports.unfit_since.is_some()
    }

    /// Sends the next heartbeat immediately.
    pub(super) fn send_now(&self) {
        sync::lock(&self.reports).has_news = true;
        self.changed.notify_all();
    }

    fn heartbeat(&self) -> Heartbeat {
        let mut reports = sync::lock(&self.reports);
        reports.is_due = true;
        let report = |job: &ManagedJob| JobReport {
            id: job.id.clone(),
            offer: job.offer.clone(),
            phase: phase_of(metrics::stage_of(&job.id)).to_owned(),
            token: job.token.clone(),
        };
        Heartbeat {
            jobs: reports.jobs.iter().map(report).collect(),
            ended: reports.ended.clone(),
            unfit_seconds: reports.unfit_since.map_or(0, |since| since.elapsed().as_secs()),
            leaving: reports.intake != JobIntake::Open,
        }
    }

    /// Records that the manager has acknowledged a heartbeat, with these orders.
    fn record_acknowledgement(&self, heartbeat: &Heartbeat, orders: &Orders) {
        let mut reports = sync::lock(&self.reports);
        reports.ended.retain(|id| !heartbeat.ended.contains(id));
        reports.is_due = orders.again;
    }

    /// Makes polls stop waiting for the machine to become ready: a hand-over waits for these polls.
    pub fn end_readiness_waits(&self) {
        sync::lock(&self.reports).readiness = ReadinessWait::Ended;
        self.changed.notify_all();
    }

    /// Lets polls wait for the machine to become ready again, after a hand-over that failed.
    pub fn allow_readiness_waits(&self) {
        sync::lock(&self.reports).readiness = ReadinessWait::Allowed;
    }

    /// Waits until the condition is true, the agent takes no more jobs, or no more polls follow. [`Self::send_now`]
    /// makes this thread check the condition again.
    pub(super) fn wait_while_open(&self, condition: impl Fn() -> bool) {
        let waits =
            |reports: &Reports| reports.intake == JobIntake::Open && reports.readiness == ReadinessWait::Allowed;
        let reports = sync::lock(&self.reports);
        drop(self.changed.wait_while(reports, |reports| waits(reports) && !condition()));
    }

    /// Waits for the time of the next heartbeat. Returns true if there is a change to report.
    fn wait_until_due(&self, timeout: Duration) -> bool {
        let reports = sync::lock(&self.reports);
        let mut reports = sync::wait_while(&self.changed, reports, timeout, |reports| !reports.has_news);
        std::mem::take(&mut reports.has_news)
    }
}

/// The phase of a job that contains this stage.
fn phase_of(stage: Option<&str>) -> &'static str {
    match stage {
        None => "accepted",
        Some("step_script" | "step_release" | "step_other") => "script",
        Some("after_script" | "archive_cache" | "upload_artifacts" | "cleanup_file_variables") => "finishing",
        Some(_) => "preparing",
    }
}

impl ManagerClient {
    /// Starts the thread that sends heartbeats, unless it runs already.
    pub fn start_heartbeats(self: &Arc<Self>) {
        let mut has_thread = sync::lock(&self.has_heartbeat_thread);
        if *has_thread {
            return;
        }
        let client = Arc::downgrade(self);
        let jobs = Arc::clone(&self.jobs);
        let send_heartbeats = move || {
            let mut wait = HEARTBEAT_INTERVAL;
            loop {
                let has_news = jobs.wait_until_due(wait);
                let Some(client) = client.upgrade().filter(|client| !client.stop.is_set()) else {
                    // A reload may have created another client with the same jobs. Its thread must send the next
                    // heartbeat.
                    jobs.send_now();
                    return;
                };
                // The polls of an idle agent already show the manager that the agent runs.
                let is_needed = has_news || jobs.has_facts() || !client.has_answered_within(IDLE_HEARTBEAT_AFTER);
                wait = if !is_needed || client.send_heartbeat() { HEARTBEAT_INTERVAL } else { RETRY_INTERVAL };
            }
        };
        match sync::spawn("heartbeat", STACK, send_heartbeats) {
            Ok(_) => *has_thread = true,
            Err(error) => log::error!("cannot start the thread that sends heartbeats error={error}"),
        }
        // The first heartbeat is sent immediately: the manager may have lost its state.
        self.jobs.send_now();
    }

    /// Sends one heartbeat. Returns false if the manager did not acknowledge it.
    pub(super) fn send_heartbeat(&self) -> bool {
        let Some(Ok(token)) = self.register_again() else { return false };
        let heartbeat = self.jobs.heartbeat();
        let response = match self.send(Method::Post, "runners/heartbeat", &token, &heartbeat) {
            Ok(response) => response,
            Err(error) => {
                log::debug!("heartbeat not delivered error={error}");
                return false;
            }
        };
        if response.status == 401 {
            self.forget_registration(&token);
            let registered = matches!(self.register_again(), Some(Ok(_)));
            if registered {
                // The manager did not know the agent, so the next heartbeat must report the agent's jobs immediately.
                self.jobs.send_now();
            }
            return registered;
        }
        if response.status != 200 {
            return false;
        }
        let orders: Orders = decode::json(&response.body).unwrap_or_default();
        self.jobs.record_acknowledgement(&heartbeat, &orders);
        if let Some(reason) = orders.leave.filter(|_| !heartbeat.leaving)
            && let Some(on_leave) = &*sync::lock(&self.jobs.on_leave)
        {
            on_leave(&reason);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_once_even_if_no_heartbeat_can_be_sent() {
        let jobs = ManagedJobs::default();
        jobs.send_now();
        assert!(jobs.wait_until_due(Duration::from_secs(3600)), "the change ends the wait");
        assert!(!jobs.wait_until_due(Duration::ZERO), "without another change the thread waits");
    }

    #[test]
    fn a_hand_over_does_not_wait_for_a_machine_that_never_becomes_ready() {
        let jobs = ManagedJobs::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| jobs.wait_while_open(|| false));
            jobs.end_readiness_waits();
            waiting.join().expect("the wait must end");
        });
        jobs.wait_while_open(|| false);
        jobs.allow_readiness_waits();
        jobs.set_intake(JobIntake::Closed);
        jobs.wait_while_open(|| false);
    }
}
