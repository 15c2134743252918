//! This instance as a member of its Auto Scaling group.

use std::sync::Mutex;
use std::time::Duration;

use super::autoscaling::{AutoScaling, GroupState, LifecycleHook};
use super::client::CallError;
use super::metadata::Metadata;
use crate::config::aws::AwsConfig;
use crate::instance::{Activity, CapacityChange, Refusal};
use crate::sync;

/// The instance tag that Auto Scaling sets.
const TAG: &str = "meta-data/tags/instance/aws:autoscaling:groupName";
/// Timeout of the calls that only read.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// One instance and its Auto Scaling group.
pub struct OwnGroup {
    instance: String,
    metadata: &'static Metadata,
    api: AutoScaling,
    settings: AwsConfig,
    name: Mutex<Option<String>>,
}

impl OwnGroup {
    pub fn new(instance: &str, metadata: &'static Metadata, settings: &AwsConfig) -> Self {
        let calls = AutoScaling::new(settings.region.as_deref());
        let name = Mutex::new(settings.auto_scaling_group.clone());
        Self { instance: instance.to_owned(), metadata, api: calls, settings: settings.clone(), name }
    }

    /// The name of the group: from the configuration, the instance tag, or Auto Scaling.
    pub fn name(&self) -> Result<String, Refusal> {
        let mut kept = sync::lock(&self.name);
        if let Some(name) = kept.as_ref() {
            return Ok(name.clone());
        }
        let tag = self.metadata.get(TAG).ok().map(|item| item.text).filter(|name| !name.is_empty());
        let name = match tag {
            Some(name) => name,
            None => self.api.member(&self.instance, DESCRIBE_TIMEOUT)?.ok_or(Refusal::NotInGroup)?.group,
        };
        log::info!("this instance is in an Auto Scaling group group={name}");
        *kept = Some(name.clone());
        Ok(name)
    }

    /// Resolves what every call needs: the group name, the region and the credentials.
    pub fn prepare(&self) -> Result<(), Refusal> {
        self.name()?;
        Ok(self.api.prepare()?)
    }

    /// The lifecycle state that Auto Scaling reports; `None` if it is not available.
    pub fn state(&self) -> Option<String> {
        Some(self.api.member(&self.instance, Duration::ZERO).ok()??.state)
    }

    /// Makes one call that terminates the instance.
    pub fn terminate(&self, capacity: CapacityChange) -> Result<(), CallError> {
        self.api.terminate(&self.instance, capacity)
    }

    /// Makes one call that sets the scale-in protection.
    pub fn protect(&self, activity: Activity) -> Result<(), Refusal> {
        Ok(self.api.protect(&self.name()?, &self.instance, activity)?)
    }

    /// The group as Auto Scaling reports it.
    pub fn group_state(&self) -> Result<GroupState, Refusal> {
        self.api.group_state(&self.name()?, DESCRIBE_TIMEOUT)?.ok_or(Refusal::NotInGroup)
    }

    /// Makes one call that sets the desired capacity.
    pub fn set_desired_capacity(&self, desired: u32) -> Result<(), Refusal> {
        Ok(self.api.set_desired(&self.name()?, desired)?)
    }

    /// The lifecycle hooks that hold a terminating instance: from the configuration (without their timeouts), or from
    /// Auto Scaling.
    pub fn hooks(&self) -> Result<Vec<LifecycleHook>, Refusal> {
        if let Some(names) = &self.settings.lifecycle_hooks {
            // The minimum heartbeat timeout of a hook.
            let timeout = Duration::from_secs(30);
            return Ok(names.iter().map(|name| LifecycleHook { name: name.clone(), timeout }).collect());
        }
        Ok(self.api.terminating_hooks(&self.name()?, DESCRIBE_TIMEOUT)?)
    }

    /// Restarts the heartbeat timeout of a hook.
    pub fn heartbeat(&self, hook: &LifecycleHook) -> Result<(), Refusal> {
        Ok(self.api.heartbeat(&self.name()?, &hook.name, &self.instance)?)
    }

    /// Completes a hook.
    pub fn complete(&self, hook: &LifecycleHook) -> Result<(), Refusal> {
        Ok(self.api.complete(&self.name()?, &hook.name, &self.instance)?)
    }
}
