//! An instance of EC2 as the machine that the agent lives on.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Cause, Error};
use super::examine;
use super::group::Group;
use super::hooks::Hooks;
use super::metadata::{self, Metadata};
use super::protection::Protection;
use super::raise::{self, Raising};
use super::watch;
use super::wire::jittered;
use crate::config::aws::Aws as Settings;
use crate::instance::plain::boot;
use crate::instance::{Capacity, Demand, Examined, Hear, Identity, Instance, Need, Refusal, Target, Terminated, Work};

/// After a call without an answer: how long signs are looked for that it was effective, before it is made again.
const SIGNS: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// An instance of EC2, in an Auto Scaling group or alone.
pub struct Member {
    id: String,
    service: &'static Metadata,
    group: Arc<Group>,
    protection: Arc<Protection>,
    hooks: Arc<Hooks>,
    protects: bool,
    /// Where the group is to grow with its jobs.
    raising: Option<Arc<Raising>>,
    region: Option<String>,
}

impl Member {
    /// The instance of this id.
    pub fn new(id: String, service: &'static Metadata, settings: &Settings, need: Need) -> Self {
        let group = Arc::new(Group::new(&id, service, settings));
        let raising = settings.raise_on_job.map(|raise| Raising::new(&id, raise));
        // Protection is what tells the others that this one has a job.
        let protects = settings.protect_while_busy.unwrap_or(need == Need::AutoScaling || raising.is_some());
        let region = settings.region.clone();
        Self { id, service, group, protection: Protection::new(), hooks: Hooks::new(), protects, raising, region }
    }

    /// Whether the instance is on its way out, as far as anybody tells.
    fn is_ending(&self) -> bool {
        match self.target() {
            Ok(target) => target == Target::Terminated,
            Err(_) => self.group.state().is_some_and(|state| state.starts_with("Terminat")),
        }
    }

    /// Looks for some time whether a call without an answer was effective all the same: what is known of an instance
    /// lags behind what was asked.
    fn turns_out_to_end(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let by_group = || self.group.state().is_some_and(|state| state.starts_with("Terminat"));
            if self.is_ending() || by_group() {
                return true;
            }
            if Instant::now() + LOOK_AGAIN >= until {
                return false;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Instance for Member {
    fn identity(&self) -> Identity {
        Identity { instance: self.id.clone(), boot: boot() }
    }

    fn cloud_id(&self) -> Option<String> {
        Some(self.id.clone())
    }

    fn examine(&self) -> Vec<Examined> {
        let target = self.target();
        let mut all = examine::all(&self.id, self.region.as_deref(), &self.group, target);
        if self.raising.is_some() {
            all.push(Examined { what: "raise_on_job", outcome: raise::examine(&self.group) });
        }
        all
    }

    fn watch(&self, hear: Hear) {
        watch::start(self.service, hear);
        if self.protects {
            self.protection.start(&self.group);
        }
        if let Some(raising) = &self.raising {
            raising.start(&self.group);
        }
    }

    fn target(&self) -> Result<Target, Refusal> {
        match self.service.get(watch::TARGET) {
            Ok(item) => Ok(watch::target(&item.text)),
            Err(metadata::Error::Absent) => Ok(Target::Alone),
            Err(error) => {
                Err(Refusal::Unreachable { action: "the target lifecycle state".to_owned(), why: error.to_string() })
            }
        }
    }

    fn protect(&self, work: Work) {
        if self.protects {
            self.protection.want(work);
        }
        if let Some(raising) = &self.raising {
            raising.work(work);
        }
    }

    fn job_taken(&self, demand: Demand) {
        if let Some(raising) = &self.raising {
            raising.taken(demand);
        }
    }

    fn terminate(&self, capacity: &dyn Fn() -> Capacity, patience: Duration) -> Result<Terminated, Refusal> {
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        if self.is_ending() {
            return Ok(Terminated::Before);
        }
        let mut tries = 0;
        loop {
            let error = match self.group.terminate(capacity()) {
                Ok(()) => return Ok(Terminated::Now),
                Err(error) => error,
            };
            let is_ending = match effect(&error) {
                Effect::None => false,
                // An instance that ends already is refused like one that is not known.
                Effect::Refused => return if self.is_ending() { Ok(Terminated::Before) } else { Err(refusal(error)) },
                Effect::Unknown => self.turns_out_to_end(SIGNS.min(left())),
            };
            if is_ending {
                return Ok(Terminated::Now);
            }
            let wait = jittered(tries);
            tries += 1;
            if wait >= left() {
                return Err(error.into());
            }
            log::debug!("retrying the call that terminates the instance wait_ms={} error={error}", wait.as_millis());
            thread::sleep(wait);
            // Somebody else may have asked in the meantime.
            if self.is_ending() {
                return Ok(Terminated::Before);
            }
        }
    }

    fn hold_hooks(&self) {
        self.hooks.hold(&self.group);
    }

    fn complete_hooks(&self, patience: Duration) -> Result<(), Refusal> {
        self.hooks.complete(&self.group, patience)
    }
}

/// What a failed call to end the instance may have done.
enum Effect {
    /// Nothing, and it may go well later.
    None,
    /// Nothing, for good.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Parts of codes with which a call is turned away before anything is done.
const TURNED_AWAY: [&str; 5] = ["Throttl", "LimitExceeded", "TooManyRequests", "ResourceContention", "InProgress"];

fn effect(error: &Error) -> Effect {
    match &error.cause {
        Cause::Refused { .. } => Effect::Refused,
        Cause::Busy { code } if TURNED_AWAY.iter().any(|part| code.contains(part)) => Effect::None,
        Cause::Unprepared(_) => Effect::None,
        // The error of a server says little about what it did before.
        Cause::Busy { .. } | Cause::Silent(_) => Effect::Unknown,
    }
}

/// The group's smallest size is told in words only.
fn refusal(error: Error) -> Refusal {
    match &error.cause {
        Cause::Refused { code, message }
            if code == "ValidationError" && message.to_lowercase().contains("min size") =>
        {
            Refusal::AtMinimum
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_size_is_told_from_other_refusals() {
        let refused = |message: &str| Error {
            permission: "autoscaling:TerminateInstanceInAutoScalingGroup".to_owned(),
            cause: Cause::Refused { code: "ValidationError".to_owned(), message: message.to_owned() },
        };
        let minimum = "Currently, desiredSize equals minSize (1). Terminating instance without replacement will violate \
                       group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower \
                       group's min size.";
        assert_eq!(refusal(refused(minimum)), Refusal::AtMinimum);
        let other = refusal(refused("Instance Id not found - No managed instance found for instance ID i-1"));
        assert!(matches!(other, Refusal::Denied { .. }));
    }
}
