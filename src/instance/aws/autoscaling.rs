//! The Auto Scaling API calls that an instance makes about itself and its group.

use std::time::Duration;

use super::client::{AwsClient, CallError};
use super::endpoint::AUTO_SCALING;
use super::transport::AwsRequest;
use super::xml::{element, members};
use crate::instance::{Activity, CapacityChange};

const VERSION: &str = "2011-01-01";
/// The heartbeat timeout of a hook that has none of its own (AWS default).
const HOOK_TIMEOUT: Duration = Duration::from_secs(3600);

pub struct AutoScaling {
    client: AwsClient,
}

/// An instance as Auto Scaling reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Name of the group.
    pub group: String,
    /// `InService`, `Terminating:Wait`, …
    pub state: String,
}

/// A group as Auto Scaling reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// The desired capacity.
    pub desired: u32,
    /// The maximum size.
    pub max_size: u32,
    /// The group protects every new instance from scale-in.
    pub protects_new: bool,
    /// The protected instances in service: they have a job.
    pub busy: Vec<String>,
}

/// A lifecycle hook that holds instances before they terminate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifecycleHook {
    pub name: String,
    /// The heartbeat timeout.
    pub timeout: Duration,
}

impl AutoScaling {
    /// A client for this region, or for the region of the process.
    pub fn new(region: Option<&str>) -> Self {
        Self { client: AwsClient::new(AUTO_SCALING, region) }
    }

    /// Resolves the region and the credentials. Errors: one of them is missing.
    pub fn prepare(&self) -> Result<(), CallError> {
        self.client.prepare()
    }

    /// The instance as Auto Scaling reports it; `None` if it is in no group. Errors: the call failed.
    pub fn member(&self, instance: &str, timeout: Duration) -> Result<Option<GroupMember>, CallError> {
        let action = "DescribeAutoScalingInstances";
        let answer = self.call(action, &[("InstanceIds.member.1", instance)], timeout)?;
        let names = ["InstanceId", "AutoScalingGroupName", "LifecycleState"];
        let all =
            members(&answer, "AutoScalingInstances", names).map_err(|why| self.client.invalid_response(action, why))?;
        let mut ours = all.into_iter().filter(|[id, ..]| id.as_deref() == Some(instance));
        Ok(ours.find_map(|[_, group, state]| Some(GroupMember { group: group?, state: state.unwrap_or_default() })))
    }

    /// Terminates an instance. The call is not retried here, because a second one may decrement the capacity twice.
    /// Errors: the call was refused, or its effect is unknown.
    pub fn terminate(&self, instance: &str, capacity: CapacityChange) -> Result<(), CallError> {
        let decrement = if capacity == CapacityChange::Decrement { "true" } else { "false" };
        let parameters = [("InstanceId", instance), ("ShouldDecrementDesiredCapacity", decrement)];
        self.call("TerminateInstanceInAutoScalingGroup", &parameters, Duration::ZERO).map(drop)
    }

    /// The lifecycle hooks of the group that hold terminating instances.
    pub fn terminating_hooks(&self, group: &str, timeout: Duration) -> Result<Vec<LifecycleHook>, CallError> {
        let action = "DescribeLifecycleHooks";
        let answer = self.call(action, &[("AutoScalingGroupName", group)], timeout)?;
        let names = ["LifecycleHookName", "LifecycleTransition", "HeartbeatTimeout"];
        let all = members(&answer, "LifecycleHooks", names).map_err(|why| self.client.invalid_response(action, why))?;
        let is_terminating = |transition: &Option<String>| {
            transition.as_deref().is_some_and(|transition| transition.ends_with("EC2_INSTANCE_TERMINATING"))
        };
        let hooks = all.into_iter().filter(|[_, transition, _]| is_terminating(transition));
        Ok(hooks
            .filter_map(|[name, _, timeout]| {
                let seconds = timeout.and_then(|seconds| seconds.parse().ok());
                Some(LifecycleHook { name: name?, timeout: seconds.map_or(HOOK_TIMEOUT, Duration::from_secs) })
            })
            .collect())
    }

    /// Completes a lifecycle hook. Errors: the call was refused (also if the hook does not hold the instance), or was
    /// not answered.
    pub fn complete(&self, group: &str, hook: &str, instance: &str) -> Result<(), CallError> {
        let mut parameters = hook_parameters(group, hook, instance).to_vec();
        parameters.push(("LifecycleActionResult", "CONTINUE"));
        self.call("CompleteLifecycleAction", &parameters, Duration::ZERO).map(drop)
    }

    /// Restarts the heartbeat timeout of a hook. Errors: as for [`AutoScaling::complete`].
    pub fn heartbeat(&self, group: &str, hook: &str, instance: &str) -> Result<(), CallError> {
        self.call("RecordLifecycleActionHeartbeat", &hook_parameters(group, hook, instance), Duration::ZERO).map(drop)
    }

    /// Sets or clears the scale-in protection of an instance.
    pub fn protect(&self, group: &str, instance: &str, activity: Activity) -> Result<(), CallError> {
        let protected = if activity == Activity::Busy { "true" } else { "false" };
        let parameters =
            [("AutoScalingGroupName", group), ("InstanceIds.member.1", instance), ("ProtectedFromScaleIn", protected)];
        self.call("SetInstanceProtection", &parameters, Duration::ZERO).map(drop)
    }

    /// The group as Auto Scaling reports it; `None` if it does not exist. Errors: the call failed.
    pub fn group_state(&self, group: &str, timeout: Duration) -> Result<Option<GroupState>, CallError> {
        let action = "DescribeAutoScalingGroups";
        let answer = self.call(action, &[("AutoScalingGroupNames.member.1", group)], timeout)?;
        let invalid = |why| self.client.invalid_response(action, why);
        let names = ["InstanceId", "LifecycleState", "ProtectedFromScaleIn"];
        let instances = members(&answer, "Instances", names).map_err(invalid)?;
        let number = |name: &str| element(&answer, name).and_then(|number| number.parse().ok());
        let Some((desired, max_size)) = number("DesiredCapacity").zip(number("MaxSize")) else { return Ok(None) };
        let is_busy = |state: &Option<String>, protected: &Option<String>| {
            state.as_deref() == Some("InService") && protected.as_deref() == Some("true")
        };
        let busy = instances.into_iter().filter(|[_, state, protected]| is_busy(state, protected));
        Ok(Some(GroupState {
            desired,
            max_size,
            protects_new: element(&answer, "NewInstancesProtectedFromScaleIn").as_deref() == Some("true"),
            busy: busy.filter_map(|[id, ..]| id).collect(),
        }))
    }

    /// Sets the desired capacity of a group. Errors: the call failed.
    pub fn set_desired(&self, group: &str, desired: u32) -> Result<(), CallError> {
        let desired = desired.to_string();
        let parameters =
            [("AutoScalingGroupName", group), ("DesiredCapacity", desired.as_str()), ("HonorCooldown", "false")];
        self.call("SetDesiredCapacity", &parameters, Duration::ZERO).map(drop)
    }

    fn call(&self, action: &str, parameters: &[(&str, &str)], timeout: Duration) -> Result<String, CallError> {
        self.client.call(&AwsRequest::query(VERSION, action, parameters), timeout)
    }
}

fn hook_parameters<'a>(group: &'a str, hook: &'a str, instance: &'a str) -> [(&'static str, &'a str); 3] {
    [("AutoScalingGroupName", group), ("LifecycleHookName", hook), ("InstanceId", instance)]
}
