//! Lifecycle hooks that delay the termination of an instance. The manager extends them while a job runs on the
//! instance, because the instance itself has no permissions, and completes them when the agent has left.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{Aws, EngineError};
use crate::instance::aws::xml::members;
use crate::sync;

/// The default timeout of a lifecycle hook (AWS).
const HOOK_TIMEOUT: Duration = Duration::from_secs(3600);
/// The time after which the group's hooks are read again.
const FRESH: Duration = Duration::from_secs(300);

/// The hooks of one group, and when each was last extended.
#[derive(Default)]
pub struct Hooks(Mutex<Known>);

#[derive(Default)]
struct Known {
    hooks: Vec<Hook>,
    read: Option<Instant>,
    /// The last heartbeat, by instance and hook.
    beats: BTreeMap<(String, String), Instant>,
}

#[derive(Clone)]
pub struct Hook {
    pub name: String,
    pub launching: bool,
    pub timeout: Duration,
}

impl Hooks {
    /// Sends a heartbeat for each hook that holds the instance, once half of the hook's timeout has passed.
    pub fn beat(&self, aws: &Aws, instance: &str) -> Result<(), EngineError> {
        for hook in self.terminating(aws)? {
            let key = (instance.to_owned(), hook.name.clone());
            let due = self.lock().beats.get(&key).is_none_or(|last| last.elapsed() >= hook.timeout / 2);
            if due {
                aws.call("RecordLifecycleActionHeartbeat", &of_hook(aws, &hook, instance), super::CALL_TIMEOUT)?;
                self.lock().beats.insert(key, Instant::now());
            }
        }
        Ok(())
    }

    /// Completes the hooks, so that the instance terminates.
    pub fn complete(&self, aws: &Aws, instance: &str) -> Result<(), EngineError> {
        for hook in self.terminating(aws)? {
            let mut parameters = of_hook(aws, &hook, instance).to_vec();
            parameters.push(("LifecycleActionResult", "CONTINUE"));
            match aws.call("CompleteLifecycleAction", &parameters, super::CALL_TIMEOUT) {
                // Not every hook holds the instance now.
                Err(error) if error.why.contains("No active Lifecycle Action") => {}
                outcome => outcome.map(drop)?,
            }
            self.lock().beats.remove(&(instance.to_owned(), hook.name));
        }
        Ok(())
    }

    fn terminating(&self, aws: &Aws) -> Result<Vec<Hook>, EngineError> {
        if self.lock().read.is_none_or(|read| read.elapsed() > FRESH) {
            let hooks = read(aws)?;
            let mut known = self.lock();
            known.hooks = hooks;
            known.read = Some(Instant::now());
        }
        Ok(self.lock().hooks.iter().filter(|hook| !hook.launching).cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        sync::lock(&self.0)
    }
}

/// Reads the group's hooks from AWS.
pub fn read(aws: &Aws) -> Result<Vec<Hook>, EngineError> {
    let answer = aws.of_group("DescribeLifecycleHooks")?;
    let names = ["LifecycleHookName", "LifecycleTransition", "HeartbeatTimeout"];
    let all = members(&answer, "LifecycleHooks", names).map_err(|why| aws.nonsense("DescribeLifecycleHooks", why))?;
    let hook = |[name, transition, timeout]: [Option<String>; 3]| {
        let seconds = timeout.and_then(|seconds| seconds.parse().ok());
        Some(Hook {
            name: name?,
            launching: transition?.ends_with("EC2_INSTANCE_LAUNCHING"),
            timeout: seconds.map_or(HOOK_TIMEOUT, Duration::from_secs),
        })
    };
    Ok(all.into_iter().filter_map(hook).collect())
}

/// The parameters of a call about an instance that a hook holds.
pub fn of_hook<'a>(aws: &'a Aws, hook: &'a Hook, instance: &'a str) -> [(&'static str, &'a str); 3] {
    [("AutoScalingGroupName", &aws.group), ("LifecycleHookName", &hook.name), ("InstanceId", instance)]
}
