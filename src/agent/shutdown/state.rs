//! The state of a shutdown in this process: the requested actions and the progress. This file only decides; it neither
//! waits nor acts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::termination::ShutdownTracker;
use crate::instance::Activity;

/// A shutdown in this process.
#[derive(Default)]
pub struct Shutdown {
    /// The shutdown state of the instance; `None` if only the agent stops.
    pub tracker: Option<Arc<ShutdownTracker>>,
    exit: ExitRequest,
    jobs: JobDeadline,
    interruption: Interruption,
    termination: TerminationStage,
}

/// The request of a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum ExitRequest {
    /// Nothing: the instance shuts down by itself, and may resume work.
    #[default]
    None,
    /// SIGQUIT: the agent exits after its jobs instead of resuming work.
    AfterJobs,
    /// SIGTERM: the agent exits soon without terminating the instance. The next start resumes the termination.
    Soon,
}

/// The next action for jobs that do not end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum JobDeadline {
    /// Nothing.
    #[default]
    None,
    /// The agent stops the jobs.
    StopAt(Instant),
    /// The agent stops waiting for the jobs.
    GiveUpAt(Instant),
}

/// The deadlines before the cloud interrupts the instance.
#[derive(Clone, Copy, Debug, Default)]
struct Interruption {
    /// When the agent stops the scripts; jobs still upload their artifacts.
    evict_at: Option<Instant>,
    /// When the agent stops the jobs.
    interrupt_at: Option<Instant>,
}

/// The progress of the instance's termination. The deadline comes from SIGTERM; after it, the agent exits and the next
/// start resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TerminationStage {
    /// The termination has not started, or must start again.
    Pending(Option<Instant>),
    /// The termination thread runs.
    Running(Option<Instant>),
}

impl Default for TerminationStage {
    fn default() -> Self {
        Self::Pending(None)
    }
}

/// The effect of a stop signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// The agent stops polling and waits for its jobs.
    WaitForJobs,
    /// The agent waits for the termination, at most for the timeout.
    WaitForTermination,
    /// The agent exits; the next start reports the running jobs.
    ExitNow,
    /// The agent exits; the next start resumes the termination.
    DeferTermination,
}

/// A deadline that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Stop the scripts, because the cloud interrupts the instance.
    Evict,
    /// Stop the jobs, because the cloud interrupts the instance.
    Interrupt,
    /// Stop the jobs, because of a signal.
    Stop,
    /// Do not wait for jobs any longer.
    GiveUp,
}

/// The next step of a shutdown.
pub enum NextStep {
    /// The agent waits for its jobs or for the termination.
    Wait,
    /// The agent exits.
    Exit,
    /// The agent exits; the next start resumes the termination.
    DeferTermination,
    /// The agent starts the termination of the instance.
    Terminate(Arc<ShutdownTracker>),
}

impl Shutdown {
    /// A shutdown of the instance.
    pub fn of_instance(tracker: ShutdownTracker) -> Self {
        Self { tracker: Some(Arc::new(tracker)), ..Self::default() }
    }

    /// The reason, as a word for logs.
    pub fn reason(&self) -> &'static str {
        self.tracker.as_ref().map_or("signal", |tracker| tracker.state().reason.as_str())
    }

    /// Handles SIGQUIT.
    pub fn drain(&mut self) {
        self.exit = self.exit.max(ExitRequest::AfterJobs);
    }

    /// Handles SIGTERM. A second one makes the agent exit immediately. The timeout also limits the current step of the
    /// termination: a lifecycle hook that the agent does not complete would keep the instance until the hook times out.
    pub fn stop(&mut self, now: Instant, timeout: Duration) -> StopOutcome {
        match (self.termination, self.exit) {
            (TerminationStage::Running(Some(_)), _) | (TerminationStage::Running(None), ExitRequest::Soon) => {
                StopOutcome::DeferTermination
            }
            (TerminationStage::Running(None), _) => {
                self.termination = TerminationStage::Running(Some(now + timeout));
                StopOutcome::WaitForTermination
            }
            (TerminationStage::Pending(_), ExitRequest::Soon) => StopOutcome::ExitNow,
            (TerminationStage::Pending(_), _) => {
                self.exit = ExitRequest::Soon;
                self.jobs = JobDeadline::StopAt(now + timeout);
                StopOutcome::WaitForJobs
            }
        }
    }

    /// Sets the deadlines before the cloud interrupts the instance.
    pub fn interrupt(&mut self, evict_at: Instant, interrupt_at: Instant) {
        self.interruption = Interruption { evict_at: Some(evict_at), interrupt_at: Some(interrupt_at) };
    }

    /// The deadlines that have passed; each is returned once.
    pub fn due(&mut self, now: Instant, timeout: Duration) -> Vec<Due> {
        let mut due = Vec::new();
        if self.interruption.evict_at.take_if(|at| now >= *at).is_some() {
            due.push(Due::Evict);
        }
        if self.interruption.interrupt_at.take_if(|at| now >= *at).is_some() {
            due.push(Due::Interrupt);
        }
        match self.jobs {
            JobDeadline::StopAt(at) if now >= at => {
                self.jobs = JobDeadline::GiveUpAt(now + timeout);
                due.push(Due::Stop);
            }
            JobDeadline::GiveUpAt(at) if now >= at => {
                self.jobs = JobDeadline::None;
                due.push(Due::GiveUp);
            }
            _ => {}
        }
        due
    }

    /// The next deadline.
    pub fn next_due(&self) -> Option<Instant> {
        let jobs = match self.jobs {
            JobDeadline::None => None,
            JobDeadline::StopAt(at) | JobDeadline::GiveUpAt(at) => Some(at),
        };
        let Interruption { evict_at, interrupt_at } = self.interruption;
        [jobs, evict_at, interrupt_at, self.termination.deadline()].into_iter().flatten().min()
    }

    /// The next step. [`NextStep::Terminate`] marks the termination as started.
    pub fn next_step(&mut self, now: Instant, timeout: Duration, activity: Activity) -> NextStep {
        let deadline = self.termination.deadline();
        if deadline.is_some_and(|deadline| now >= deadline) {
            return NextStep::DeferTermination;
        }
        if activity == Activity::Busy || matches!(self.termination, TerminationStage::Running(_)) {
            return NextStep::Wait;
        }
        match self.tracker_to_terminate() {
            None => NextStep::Exit,
            Some(tracker) => {
                let is_soon = self.exit == ExitRequest::Soon;
                self.termination = TerminationStage::Running(deadline.or(is_soon.then(|| now + timeout)));
                NextStep::Terminate(tracker)
            }
        }
    }

    /// Whether the agent terminates the instance when its jobs have ended.
    pub fn terminates_instance(&self) -> bool {
        self.tracker_to_terminate().is_some()
    }

    fn tracker_to_terminate(&self) -> Option<Arc<ShutdownTracker>> {
        // If the group terminates the instance, it waits for the lifecycle hooks. So the agent completes them even
        // after a stop signal.
        let is_due = |tracker: &Arc<ShutdownTracker>| self.exit != ExitRequest::Soon || tracker.state().is_terminated();
        self.tracker.clone().filter(is_due)
    }

    /// Marks the termination as pending again: the group has kept the instance, but the cloud interrupts it. The
    /// deadline of a SIGTERM stays.
    pub fn restart_termination(&mut self) {
        self.termination = TerminationStage::Pending(self.termination.deadline());
    }

    /// Whether SIGTERM limits the termination.
    pub fn is_termination_limited(&self) -> bool {
        self.termination.deadline().is_some()
    }

    /// Whether a signal asked the agent to exit, so that it does not resume work.
    pub fn must_exit(&self) -> bool {
        self.exit != ExitRequest::None || self.is_termination_limited()
    }
}

impl TerminationStage {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Pending(deadline) | Self::Running(deadline) => deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Identity;
    use crate::journal::shutdown::{ShutdownReason, ShutdownState};

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn of_instance(state: &std::path::Path, reason: ShutdownReason) -> Shutdown {
        let identity = Identity { instance: "i-1".to_owned(), boot: "b-1".to_owned() };
        Shutdown::of_instance(ShutdownTracker::begin(state, ShutdownState::new(&identity, reason)))
    }

    #[test]
    fn jobs_have_their_time_after_a_stop_signal_and_the_second_signal_exits() {
        let (mut shutdown, now) = (Shutdown::default(), Instant::now());
        assert_eq!(shutdown.stop(now, TIMEOUT), StopOutcome::WaitForJobs);
        assert_eq!(shutdown.next_due(), Some(now + TIMEOUT));
        assert_eq!(shutdown.due(now, TIMEOUT), []);
        assert_eq!(shutdown.due(now + TIMEOUT, TIMEOUT), [Due::Stop]);
        assert_eq!(shutdown.due(now + 2 * TIMEOUT, TIMEOUT), [Due::GiveUp]);
        assert_eq!((shutdown.due(now + 9 * TIMEOUT, TIMEOUT), shutdown.next_due()), (vec![], None));
        assert_eq!(shutdown.stop(now, TIMEOUT), StopOutcome::ExitNow);
        assert!(matches!(shutdown.next_step(now, TIMEOUT, Activity::Idle), NextStep::Exit));
    }

    #[test]
    fn the_deadline_of_a_signal_outlives_a_termination_that_starts_once_more() {
        let state = tempfile::tempdir().expect("a directory");
        let (mut shutdown, now) = (of_instance(state.path(), ShutdownReason::Idle), Instant::now());
        assert!(matches!(shutdown.next_step(now, TIMEOUT, Activity::Busy), NextStep::Wait), "there are jobs");
        assert!(matches!(shutdown.next_step(now, TIMEOUT, Activity::Idle), NextStep::Terminate(_)));
        assert_eq!(shutdown.stop(now, TIMEOUT), StopOutcome::WaitForTermination);
        shutdown.restart_termination();
        assert!(shutdown.must_exit());
        assert!(matches!(shutdown.next_step(now, TIMEOUT, Activity::Idle), NextStep::Terminate(_)));
        assert_eq!(shutdown.next_due(), Some(now + TIMEOUT));
        assert!(matches!(shutdown.next_step(now + TIMEOUT, TIMEOUT, Activity::Idle), NextStep::DeferTermination));
        assert_eq!(shutdown.stop(now, TIMEOUT), StopOutcome::DeferTermination);
    }

    #[test]
    fn only_an_instance_that_its_group_ends_is_terminated_after_a_stop_signal() {
        let state = tempfile::tempdir().expect("a directory");
        for (reason, terminates) in [(ShutdownReason::Idle, false), (ShutdownReason::Terminated, true)] {
            let (mut shutdown, now) = (of_instance(state.path(), reason), Instant::now());
            assert_eq!(shutdown.stop(now, TIMEOUT), StopOutcome::WaitForJobs);
            let next = shutdown.next_step(now, TIMEOUT, Activity::Idle);
            assert_eq!(matches!(next, NextStep::Terminate(_)), terminates);
            assert_eq!(
                shutdown.stop(now, TIMEOUT),
                match terminates {
                    true => StopOutcome::DeferTermination,
                    false => StopOutcome::ExitNow,
                }
            );
        }
    }

    #[test]
    fn a_drain_keeps_the_agent_from_resuming_work() {
        let state = tempfile::tempdir().expect("a directory");
        let mut shutdown = of_instance(state.path(), ShutdownReason::Idle);
        assert!(!shutdown.must_exit());
        shutdown.drain();
        assert!(shutdown.must_exit());
    }
}
