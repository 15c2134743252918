//! This instance as a member of its group: which group that is, and what is asked of it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::autoscaling::{AutoScaling, GroupState, Hook};
use super::client::Error;
use super::metadata::Metadata;
use crate::config::aws::Aws as Settings;
use crate::instance::{Activity, CapacityChange, Refusal};

/// The tag that Auto Scaling puts on the instances of a group.
const TAG: &str = "meta-data/tags/instance/aws:autoscaling:groupName";
/// How long a look at the group may take.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// One instance, and its group.
pub struct Group {
    instance: String,
    service: &'static Metadata,
    api: AutoScaling,
    settings: Settings,
    name: Mutex<Option<String>>,
}

impl Group {
    pub fn new(instance: &str, service: &'static Metadata, settings: &Settings) -> Self {
        let calls = AutoScaling::new(settings.region.as_deref());
        let name = Mutex::new(settings.auto_scaling_group.clone());
        Self { instance: instance.to_owned(), service, api: calls, settings: settings.clone(), name }
    }

    /// The group's name: configured, on the instance's tag, or as Auto Scaling knows it.
    pub fn name(&self) -> Result<String, Refusal> {
        let mut kept = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = kept.as_ref() {
            return Ok(name.clone());
        }
        let tag = self.service.get(TAG).ok().map(|item| item.text).filter(|name| !name.is_empty());
        let name = match tag {
            Some(name) => name,
            None => self.api.member(&self.instance, DESCRIBE_TIMEOUT)?.ok_or(Refusal::NotHere)?.group,
        };
        log::info!("this instance is in an Auto Scaling group group={name}");
        *kept = Some(name.clone());
        Ok(name)
    }

    /// Finds out what every call needs: the name, the region and credentials.
    pub fn prepare(&self) -> Result<(), Refusal> {
        self.name()?;
        Ok(self.api.prepare()?)
    }

    /// What its group brings it to, by Auto Scaling's own word; `None` where that cannot be had.
    pub fn state(&self) -> Option<String> {
        Some(self.api.member(&self.instance, Duration::ZERO).ok()??.state)
    }

    /// One call that ends the instance.
    pub fn terminate(&self, capacity: CapacityChange) -> Result<(), Error> {
        self.api.terminate(&self.instance, capacity)
    }

    /// One call that sets the protection.
    pub fn protect(&self, activity: Activity) -> Result<(), Refusal> {
        Ok(self.api.protect(&self.name()?, &self.instance, activity)?)
    }

    /// The group as a whole.
    pub fn group_state(&self) -> Result<GroupState, Refusal> {
        self.api.group_state(&self.name()?, DESCRIBE_TIMEOUT)?.ok_or(Refusal::NotHere)
    }

    /// One call that sets how many instances the group is to have.
    pub fn raise(&self, desired: u32) -> Result<(), Refusal> {
        Ok(self.api.set_desired(&self.name()?, desired)?)
    }

    /// The hooks that hold an instance before it ends: configured (their time-outs not being known then), or as Auto
    /// Scaling knows them.
    pub fn hooks(&self) -> Result<Vec<Hook>, Refusal> {
        if let Some(names) = &self.settings.lifecycle_hooks {
            // The shortest that a hook may have.
            let timeout = Duration::from_secs(30);
            return Ok(names.iter().map(|name| Hook { name: name.clone(), timeout }).collect());
        }
        Ok(self.api.terminating_hooks(&self.name()?, DESCRIBE_TIMEOUT)?)
    }

    /// Keeps a hook waiting.
    pub fn heartbeat(&self, hook: &Hook) -> Result<(), Refusal> {
        Ok(self.api.heartbeat(&self.name()?, &hook.name, &self.instance)?)
    }

    /// Lets the instance go.
    pub fn complete(&self, hook: &Hook) -> Result<(), Refusal> {
        Ok(self.api.complete(&self.name()?, &hook.name, &self.instance)?)
    }
}
