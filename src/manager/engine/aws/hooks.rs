//! Lifecycle hooks that delay the termination of an instance. The manager extends them while a job runs on the
//! instance, because the instance itself has no permissions, and completes them when the agent has left.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{Aws, EngineError};
use crate::instance::aws::xml::members;
use crate::sync;

/// The default timeout of a lifecycle hook (AWS).
const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(3600);
/// The hooks of the group are read again after this time.
const MAX_HOOKS_AGE: Duration = Duration::from_secs(300);

/// The hooks of one group, and when each was last extended.
#[derive(Default)]
pub struct Hooks(Mutex<HookCache>);

#[derive(Default)]
struct HookCache {
    hooks: Vec<Hook>,
    read_at: Option<Instant>,
    /// The last heartbeat, by instance and hook.
    heartbeats: BTreeMap<(String, String), Instant>,
}

/// A lifecycle hook of the group.
#[derive(Clone)]
pub struct Hook {
    pub name: String,
    /// The hook delays the launch of an instance, not its termination.
    pub delays_launch: bool,
    pub timeout: Duration,
}

impl Hooks {
    /// Sends a heartbeat for each hook that delays the termination, once half of the hook's timeout has passed.
    pub fn extend(&self, aws: &Aws, instance: &str) -> Result<(), EngineError> {
        for hook in self.termination_hooks(aws)? {
            let key = (instance.to_owned(), hook.name.clone());
            let due = self.lock().heartbeats.get(&key).is_none_or(|last| last.elapsed() >= hook.timeout / 2);
            if due {
                aws.call(
                    "RecordLifecycleActionHeartbeat",
                    &hook_parameters(aws, &hook, instance),
                    super::CALL_TIMEOUT,
                )?;
                self.lock().heartbeats.insert(key, Instant::now());
            }
        }
        Ok(())
    }

    /// Completes the hooks, so that the instance terminates.
    pub fn complete(&self, aws: &Aws, instance: &str) -> Result<(), EngineError> {
        for hook in self.termination_hooks(aws)? {
            let mut parameters = hook_parameters(aws, &hook, instance).to_vec();
            parameters.push(("LifecycleActionResult", "CONTINUE"));
            match aws.call("CompleteLifecycleAction", &parameters, super::CALL_TIMEOUT) {
                // The hook does not delay this instance at the moment.
                Err(error) if error.why.contains("No active Lifecycle Action") => {}
                outcome => outcome.map(drop)?,
            }
            self.lock().heartbeats.remove(&(instance.to_owned(), hook.name));
        }
        Ok(())
    }

    fn termination_hooks(&self, aws: &Aws) -> Result<Vec<Hook>, EngineError> {
        if self.lock().read_at.is_none_or(|read| read.elapsed() > MAX_HOOKS_AGE) {
            let hooks = read(aws)?;
            let mut cache = self.lock();
            cache.hooks = hooks;
            cache.read_at = Some(Instant::now());
        }
        Ok(self.lock().hooks.iter().filter(|hook| !hook.delays_launch).cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, HookCache> {
        sync::lock(&self.0)
    }
}

/// Reads the group's hooks from AWS.
pub fn read(aws: &Aws) -> Result<Vec<Hook>, EngineError> {
    let response = aws.call_for_group("DescribeLifecycleHooks")?;
    let names = ["LifecycleHookName", "LifecycleTransition", "HeartbeatTimeout"];
    let all = members(&response, "LifecycleHooks", names)
        .map_err(|why| aws.invalid_response("DescribeLifecycleHooks", why))?;
    let hook = |[name, transition, timeout]: [Option<String>; 3]| {
        let seconds = timeout.and_then(|seconds| seconds.parse().ok());
        Some(Hook {
            name: name?,
            delays_launch: transition?.ends_with("EC2_INSTANCE_LAUNCHING"),
            timeout: seconds.map_or(DEFAULT_HOOK_TIMEOUT, Duration::from_secs),
        })
    };
    Ok(all.into_iter().filter_map(hook).collect())
}

/// The parameters of a call about a hook that delays an instance.
pub fn hook_parameters<'a>(aws: &'a Aws, hook: &'a Hook, instance: &'a str) -> [(&'static str, &'a str); 3] {
    [("AutoScalingGroupName", &aws.group), ("LifecycleHookName", &hook.name), ("InstanceId", instance)]
}
