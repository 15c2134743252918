//! An EC2 instance as the machine of the agent.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::client::{CallError, Cause};
use super::group::OwnGroup;
use super::hooks::HookHeartbeats;
use super::inspect;
use super::metadata::{Metadata, MetadataError};
use super::protection::Protection;
use super::raise::{self, CapacityRaiser};
use super::retry::retry_delay;
use super::watch;
use crate::config::aws::AwsConfig;
use crate::instance::plain::boot;
use crate::instance::{
    Activity, CapacityChange, CheckResult, Identity, Instance, JobDemand, NoticeHandler, Refusal, Requirement,
    TargetState, TerminateResult,
};
use crate::sync;

/// After a call without a response: how long the agent waits for its effect before it repeats the call.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(10);
const EFFECT_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Attempts to read the target lifecycle state before the instance counts as one without a group.
const GROUP_ATTEMPTS: u32 = 3;
const GROUP_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// An EC2 instance, with or without an Auto Scaling group.
pub struct Ec2Instance {
    id: String,
    metadata: &'static Metadata,
    group: Arc<OwnGroup>,
    protection: Arc<Protection>,
    hooks: Arc<HookHeartbeats>,
    protects: bool,
    is_in_group: bool,
    /// Set with `raise_on_job`.
    raiser: Option<Arc<CapacityRaiser>>,
    region: Option<String>,
}

impl Ec2Instance {
    /// The instance with this id.
    pub fn new(id: String, metadata: &'static Metadata, settings: &AwsConfig, requirement: Requirement) -> Self {
        let group = Arc::new(OwnGroup::new(&id, metadata, settings));
        let raiser = settings.raise_on_job.map(|raise| CapacityRaiser::new(&id, raise));
        let is_in_group = has_target_state(metadata);
        let is_terminated_by_group = match requirement {
            Requirement::AutoScaling => true,
            Requirement::GroupIfMember => is_in_group,
            Requirement::Nothing => false,
        };
        // Other instances see from the protection that this one has a job.
        let protects = settings.protect_while_busy.unwrap_or(is_terminated_by_group || raiser.is_some());
        let region = settings.region.clone();
        let (protection, hooks) = (Protection::new(), HookHeartbeats::new());
        Self { id, metadata, group, protection, hooks, protects, is_in_group, raiser, region }
    }

    /// Whether the instance is being terminated.
    fn is_terminating(&self) -> bool {
        match self.target_state() {
            Ok(target) => target == TargetState::Terminated,
            Err(_) => self.group.state().is_some_and(|state| state.starts_with("Terminat")),
        }
    }

    /// Waits for the effect of a call that was not answered; the reported state lags behind a request.
    fn wait_until_terminating(&self, timeout: Duration) -> bool {
        let is_terminating = || {
            let by_group = || self.group.state().is_some_and(|state| state.starts_with("Terminat"));
            (self.is_terminating() || by_group()).then_some(())
        };
        sync::try_until(timeout, EFFECT_POLL_INTERVAL, is_terminating).is_some()
    }
}

/// Whether the metadata service has a target lifecycle state, which it has for every member of an Auto Scaling group.
/// Retries a few times if the service does not answer.
fn has_target_state(metadata: &Metadata) -> bool {
    for attempt in 1..=GROUP_ATTEMPTS {
        match metadata.get(watch::TARGET_PATH) {
            Ok(_) => return true,
            Err(MetadataError::Absent | MetadataError::Disabled) => return false,
            Err(error) => {
                log::debug!("cannot find out whether the instance is in an Auto Scaling group error={error}");
            }
        }
        if attempt < GROUP_ATTEMPTS {
            // This runs during the start, which a stop signal ends with the process.
            thread::sleep(GROUP_RETRY_INTERVAL);
        }
    }
    false
}

impl Instance for Ec2Instance {
    fn is_in_group(&self) -> bool {
        self.is_in_group
    }

    fn cloud(&self) -> Option<&'static str> {
        Some("EC2")
    }

    fn identity(&self) -> Identity {
        Identity { instance: self.id.clone(), boot: boot() }
    }

    fn cloud_id(&self) -> Option<String> {
        Some(self.id.clone())
    }

    fn inspect(&self) -> Vec<CheckResult> {
        let target = self.target_state();
        let mut all = inspect::check_all(&self.id, self.region.as_deref(), &self.group, target);
        if self.raiser.is_some() {
            all.push(CheckResult { subject: "raise_on_job", outcome: raise::inspect(&self.group) });
        }
        all
    }

    fn watch(&self, handler: NoticeHandler) {
        watch::start(self.metadata, handler);
        if self.protects {
            self.protection.start(&self.group);
        }
        if let Some(raiser) = &self.raiser {
            raiser.start(&self.group);
        }
    }

    fn target_state(&self) -> Result<TargetState, Refusal> {
        match self.metadata.get(watch::TARGET_PATH) {
            Ok(item) => Ok(watch::parse_target_state(&item.text)),
            Err(MetadataError::Absent) => Ok(TargetState::NoGroup),
            Err(error) => {
                Err(Refusal::Unreachable { action: "the target lifecycle state".to_owned(), why: error.to_string() })
            }
        }
    }

    fn set_activity(&self, activity: Activity) {
        if self.protects {
            self.protection.set_activity(activity);
        }
        if let Some(raiser) = &self.raiser {
            raiser.set_activity(activity);
        }
    }

    fn job_taken(&self, demand: JobDemand) {
        if let Some(raiser) = &self.raiser {
            raiser.job_taken(demand);
        }
    }

    fn terminate(&self, capacity: &dyn Fn() -> CapacityChange, timeout: Duration) -> Result<TerminateResult, Refusal> {
        let until = Instant::now() + timeout;
        let left = || until.saturating_duration_since(Instant::now());
        if self.is_terminating() {
            return Ok(TerminateResult::AlreadyTerminating);
        }
        let mut tries = 0;
        loop {
            let error = match self.group.terminate(capacity()) {
                Ok(()) => return Ok(TerminateResult::Requested),
                Err(error) => error,
            };
            let is_ending = match call_effect(&error) {
                CallEffect::None => false,
                // Auto Scaling answers for a terminating instance as for an unknown one.
                CallEffect::Refused => {
                    return if self.is_terminating() {
                        Ok(TerminateResult::AlreadyTerminating)
                    } else {
                        Err(refusal(error))
                    };
                }
                CallEffect::Unknown => self.wait_until_terminating(EFFECT_TIMEOUT.min(left())),
            };
            if is_ending {
                return Ok(TerminateResult::Requested);
            }
            let wait = retry_delay(tries);
            tries += 1;
            if wait >= left() {
                return Err(error.into());
            }
            log::debug!("retrying the call that terminates the instance wait_ms={} error={error}", wait.as_millis());
            // No event announces that AWS answers again. After a stop signal, the agent exits at its deadline without
            // this thread.
            thread::sleep(wait);
            // The group may have started the termination meanwhile.
            if self.is_terminating() {
                return Ok(TerminateResult::AlreadyTerminating);
            }
        }
    }

    fn start_hook_heartbeats(&self) {
        self.hooks.start_heartbeats(&self.group);
    }

    fn complete_hooks(&self, timeout: Duration) -> Result<(), Refusal> {
        self.hooks.complete(&self.group, timeout)
    }
}

/// The possible effect of a failed terminate call.
enum CallEffect {
    /// None; a retry may succeed.
    None,
    /// None; a retry will fail.
    Refused,
    /// The instance may terminate.
    Unknown,
}

/// Parts of error codes that guarantee that the call had no effect.
const NO_EFFECT_CODES: [&str; 5] = ["Throttl", "LimitExceeded", "TooManyRequests", "ResourceContention", "InProgress"];

fn call_effect(error: &CallError) -> CallEffect {
    match &error.cause {
        Cause::Refused { .. } => CallEffect::Refused,
        Cause::Busy { code } if NO_EFFECT_CODES.iter().any(|part| code.contains(part)) => CallEffect::None,
        Cause::Unprepared(_) => CallEffect::None,
        // After a server error, the call may have had its effect.
        Cause::Busy { .. } | Cause::NoResponse(_) => CallEffect::Unknown,
    }
}

/// Auto Scaling reports the minimum size of the group in the message only.
fn refusal(error: CallError) -> Refusal {
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
    fn the_minimum_size_is_distinguished_from_other_refusals() {
        let refused = |message: &str| CallError {
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
