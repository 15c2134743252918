//! The agent's side of leaving: no more jobs, the end of those that run, then the departure of the instance. Or only of
//! the agent, when it was told to stop.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::departure::{Departure, Manager, Marker, Outcome, SIGNS};
use super::{Agent, Event, REMOVAL_PATIENCE};
use crate::config::leave::Strategy;
use crate::instance::{Instance, Target};
use crate::journal::Count;
use crate::journal::leaving::{self, Boot, Mark, Phase, Reason};

/// The exit status of an agent that could not end its instance (`EX_SOFTWARE`): starting it again would change nothing.
const STRANDED: u8 = 70;

/// The agent takes no more jobs.
#[derive(Default)]
pub(super) struct Leaving {
    /// The mark of an instance that goes; `None` while the agent is only told to stop.
    pub marker: Option<Arc<Marker>>,
    /// Told to stop soon: an instance that was to go stays, and a later agent goes on with that.
    stopping: bool,
    /// Told to stop when it has no job any more: it does not go back to work.
    draining: bool,
    /// When running jobs are stopped, if somebody is in a hurry.
    stop_at: Option<Instant>,
    /// Jobs were told to stop, and this is when they are left alone.
    give_up_at: Option<Instant>,
    /// When scripts give way to the loss of the machine, so that what they made can be handed over,
    pub evict_at: Option<Instant>,
    /// and when everything must be over.
    pub interrupt_at: Option<Instant>,
    /// The departure is on its way.
    departing: bool,
    /// Told to stop meanwhile: how long it is waited for.
    depart_until: Option<Instant>,
}

impl Leaving {
    /// Why, in a word.
    pub fn reason(&self) -> &'static str {
        self.marker.as_ref().map_or("signal", |marker| marker.read().reason.as_str())
    }
}

/// The mark of an instance that is to go on leaving. A machine that was switched off and on again begins a new life, and
/// so does one that went into a warm pool instead of ending.
pub(super) fn mark_of_earlier_agent(state: &Path, instance: &dyn Instance, strategy: Strategy) -> Option<Mark> {
    let (mark, boot) = Mark::load(state, &instance.identity())?;
    let has_gone = matches!(mark.phase, Phase::PoweringOff | Phase::Left);
    let is_back = boot == Boot::Later
        && match strategy {
            _ if mark.reason == Reason::Stop => true,
            Strategy::Poweroff | Strategy::Command => has_gone,
            Strategy::AwsAsg if mark.ended && mark.phase == Phase::Left => is_taken_back(instance),
            Strategy::AwsAsg | Strategy::Exit => false,
        };
    if is_back {
        log::info!(
            "the machine was powered off and started again; resetting the job count reason={}",
            mark.reason.as_str()
        );
        begin_new_life(state);
        return None;
    }
    log::info!("resuming the shutdown reason={} phase={:?}", mark.reason.as_str(), mark.phase);
    if matches!(mark.phase, Phase::Left | Phase::Stranded) {
        let path = leaving::path(state);
        log::warn!("this machine has shut down already; to have it take jobs again, remove {}", path.display());
    }
    Some(mark)
}

/// Whether a group goes on with an instance that it was asked to end. What is known of one lags behind that.
fn is_taken_back(instance: &dyn Instance) -> bool {
    let goes_on = || matches!(instance.target(), Ok(Target::InService | Target::Resting));
    goes_on() && {
        thread::sleep(SIGNS);
        goes_on()
    }
}

/// The agent ends before its instance has left.
fn left_to_the_next() -> ExitCode {
    log::warn!("stopped before the shutdown of the instance was complete; the next start resumes it");
    ExitCode::SUCCESS
}

/// Forgets what there was in this one.
fn begin_new_life(state: &Path) {
    // The count first: left alone it would lead to the same end again.
    if let Err(error) = Count::forget(state) {
        log::warn!("cannot reset the job count error={error}");
    }
    Mark::remove(state);
}

impl Agent {
    /// Goes on leaving where an earlier agent was.
    pub(super) fn resume_leaving(&mut self, mark: Mark) {
        self.slots.close();
        self.has_worked = true;
        let marker = Arc::new(Marker::begin(&self.state, mark));
        self.leaving = Some(Leaving { marker: Some(marker), ..Leaving::default() });
    }

    /// The instance is to go: no more requests; those in flight and the jobs that they bring are seen to their end.
    pub(super) fn begin_to_leave(&mut self, reason: Reason) {
        match &self.leaving {
            Some(Leaving { marker: Some(marker), .. }) => marker.hear(reason),
            _ => {
                self.take_no_more(reason.as_str());
                // Whoever comes after this agent must not ask for jobs either.
                let marker = Arc::new(Marker::begin(&self.state, Mark::new(&self.identity, reason)));
                self.leaving.get_or_insert_default().marker = Some(marker);
            }
        }
    }

    /// The agent is to stop once its jobs have ended.
    pub(super) fn drain(&mut self) {
        let is_new = self.leaving.is_none();
        self.leaving.get_or_insert_default().draining = true;
        if is_new {
            self.take_no_more("signal");
        }
    }

    /// The agent is to stop soon, or, told twice, at once. The step that a departure is at has as long as jobs have: a
    /// hook that nobody completes would hold the instance for its whole time-out.
    pub(super) fn stop(&mut self) -> Option<ExitCode> {
        let leaving = self.leaving.get_or_insert_default();
        if leaving.departing {
            if leaving.stopping || leaving.depart_until.is_some() {
                return Some(left_to_the_next());
            }
            log::info!("signal received while the instance shuts down");
            leaving.depart_until = Some(Instant::now() + self.config.shutdown_timeout);
            return None;
        }
        if leaving.stopping {
            log::warn!("second stop signal: exiting now; the next start reports the running jobs");
            return Some(ExitCode::FAILURE);
        }
        leaving.stopping = true;
        leaving.stop_at = Some(Instant::now() + self.config.shutdown_timeout);
        self.take_no_more("signal");
        None
    }

    fn take_no_more(&self, reason: &str) {
        self.slots.close();
        self.generation.end(&self.slots);
        log::info!("polling stopped reason={reason} running={}", self.slots.jobs());
    }

    /// Does what is due while the agent leaves, and says how long nothing else will be.
    pub(super) fn look_after_leaving(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let due = |at: &mut Option<Instant>| at.take_if(|at| now >= *at).is_some();
        let leaving = self.leaving.as_mut()?;
        if due(&mut leaving.evict_at) {
            self.desk.evict("the machine is taken away");
        }
        if due(&mut leaving.interrupt_at) {
            self.desk.interrupt("the machine is taken away");
        }
        if due(&mut leaving.stop_at) {
            leaving.give_up_at = Some(now + self.config.shutdown_timeout);
            self.desk.interrupt("the runner was told to stop");
        }
        if due(&mut leaving.give_up_at) {
            self.desk.abandon();
            self.servers.iter().for_each(|(_, gitlab)| gitlab.stop_waiting());
        }
        let jobs = [leaving.stop_at, leaving.give_up_at, leaving.evict_at, leaving.interrupt_at];
        jobs.into_iter().chain([leaving.depart_until]).flatten().min().map(|at| at.saturating_duration_since(now))
    }

    /// What comes when the last job has ended: the end of the agent, or the departure of its instance.
    pub(super) fn after_the_last_job(&mut self) -> Option<ExitCode> {
        let until = self.leaving.as_ref().and_then(|leaving| leaving.depart_until);
        if until.is_some_and(|until| Instant::now() >= until) {
            return Some(left_to_the_next());
        }
        let quiet = self.is_quiet();
        let leaving = self.leaving.as_mut().filter(|leaving| !leaving.departing && quiet)?;
        // A group that ends the instance waits for its hooks, whoever else wants the agent to stop.
        let marker = leaving.marker.clone().filter(|marker| !leaving.stopping || marker.read().ended);
        let Some(marker) = marker else { return Some(self.end("signal")) };
        leaving.departing = true;
        leaving.depart_until = leaving.stopping.then(|| Instant::now() + self.config.shutdown_timeout);
        let manager = |(runner, gitlab): &(_, _)| Manager {
            runner: Arc::clone(runner),
            gitlab: Arc::clone(gitlab),
            system_id: self.system_id.clone(),
        };
        let departure = Departure {
            marker,
            leave: self.config.leave.clone(),
            instance: Arc::clone(&self.instance),
            // A machine that never asked for a job is known to no server.
            managers: if self.has_worked { self.servers.iter().map(manager).collect() } else { Vec::new() },
        };
        let events = self.events.clone();
        let depart = move || {
            let _ = events.send(Event::Departed(departure.run()));
        };
        let thread = thread::Builder::new().name("leave".to_owned()).stack_size(super::STACK);
        if let Err(error) = thread.spawn(depart) {
            log::error!("cannot start the thread that shuts down; the next start resumes the shutdown error={error}");
            return Some(ExitCode::FAILURE);
        }
        None
    }

    /// What comes of the departure.
    pub(super) fn departed(&mut self, outcome: Outcome) -> Option<ExitCode> {
        let marker = self.leaving.as_ref()?.marker.clone()?;
        let mark = marker.read();
        let reason = mark.reason;
        match outcome {
            Outcome::Gone => {
                let of_its_own = matches!(
                    reason,
                    Reason::Idle
                        | Reason::MaxBuilds
                        | Reason::MaxAge
                        | Reason::Unfit
                        | Reason::NoRunner
                        | Reason::Rebalance
                );
                if of_its_own && !mark.ended && self.config.leave.strategy == Strategy::Exit {
                    // The machine lives on, and the next start is a new life with its own count.
                    begin_new_life(&self.state);
                }
                Some(self.end(reason.as_str()))
            }
            // Its cloud takes it, which was heard since.
            Outcome::Stays if !marker.is_needed() => {
                self.leaving.as_mut()?.departing = false;
                None
            }
            Outcome::Stays => {
                log::info!("the Auto Scaling group is at its minimum size; polling resumed");
                Mark::remove(&self.state);
                if self.leaving.take().is_some_and(|leaving| leaving.draining || leaving.depart_until.is_some()) {
                    return Some(self.end("signal"));
                }
                self.lifetime.refuse();
                self.slots.open();
                self.reload();
                None
            }
            Outcome::Broken => {
                log::error!("the thread that shuts down panicked; the next start resumes the shutdown");
                Some(ExitCode::FAILURE)
            }
            Outcome::Stranded => {
                log::error!(
                    "the instance cannot be shut down; polling stays stopped, terminate it by hand reason={}",
                    reason.as_str()
                );
                Some(ExitCode::from(STRANDED))
            }
        }
    }

    fn end(&mut self, reason: &str) -> ExitCode {
        self.supervisor.stopping();
        self.removals.wait(REMOVAL_PATIENCE);
        log::info!("mayfly exits reason={reason}");
        ExitCode::SUCCESS
    }
}
