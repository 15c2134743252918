//! The AWS Auto Scaling group of a pool.

mod checks;
mod failures;
mod hooks;
mod permissions;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Check, Engine, EngineError, ErrorKind, FailedStart, Group, Member, MemberState};
use crate::instance::CapacityChange;
use crate::instance::aws::client::{AwsClient, CallError, Cause};
use crate::instance::aws::endpoint::{AUTO_SCALING, EC2};
use crate::instance::aws::source::CredentialSource;
use crate::instance::aws::transport::AwsRequest;
use crate::instance::aws::xml::{element, field, members};
use crate::manager::pool::AwsGroup;

const AUTO_SCALING_VERSION: &str = "2011-01-01";
const EC2_VERSION: &str = "2016-11-15";
/// The list of groups in a response.
const GROUPS: &str = "AutoScalingGroups";
/// The timeout of a call, including retries. The next round calls again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// One Auto Scaling group.
pub struct Aws {
    group: String,
    region: Option<String>,
    auto_scaling: AwsClient,
    ec2: AwsClient,
    hooks: hooks::Hooks,
}

impl Aws {
    /// The group that `plugin_config` names. Sends no request.
    pub fn new(group: &AwsGroup) -> Self {
        let region = group.region.as_deref();
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let (config, credentials) = (path(&group.config_file), path(&group.credentials_file));
        let source = CredentialSource::of_profile(group.profile.as_deref(), config.as_deref(), credentials.as_deref());
        // Without its own settings, the group uses the credentials of the process, which all groups share.
        let source = Arc::new(source);
        let has_own = group.profile.is_some() || config.is_some() || credentials.is_some();
        let client = |service| match has_own {
            true => AwsClient::with_source(service, region, &source),
            false => AwsClient::new(service, region),
        };
        Self {
            group: group.name.clone(),
            auto_scaling: client(AUTO_SCALING),
            ec2: client(EC2),
            region: group.region.clone(),
            hooks: hooks::Hooks::default(),
        }
    }

    fn call(&self, action: &str, parameters: &[(&str, &str)], timeout: Duration) -> Result<String, EngineError> {
        let request = AwsRequest::query(AUTO_SCALING_VERSION, action, parameters);
        self.auto_scaling.call(&request, timeout).map_err(engine_error)
    }

    fn call_for_group(&self, action: &str) -> Result<String, EngineError> {
        self.call(action, &[("AutoScalingGroupName", &self.group)], CALL_TIMEOUT)
    }

    fn describe(&self) -> Result<String, EngineError> {
        self.call("DescribeAutoScalingGroups", &[("AutoScalingGroupNames.member.1", &self.group)], CALL_TIMEOUT)
    }

    fn invalid_response(&self, action: &str, why: impl Into<String>) -> EngineError {
        EngineError { kind: ErrorKind::InvalidResponse, call: format!("autoscaling:{action}"), why: why.into() }
    }

    fn no_group(&self) -> EngineError {
        let region = self.region.as_deref().unwrap_or("the region of this machine");
        EngineError {
            kind: ErrorKind::NoGroup,
            call: "autoscaling:DescribeAutoScalingGroups".to_owned(),
            why: format!(
                "the Auto Scaling group `{}` does not exist in {region}; correct `name` or `region` in plugin_config",
                self.group
            ),
        }
    }
}

impl Engine for Aws {
    fn group(&self) -> Result<Group, EngineError> {
        let response = self.describe()?;
        let invalid = |why: String| self.invalid_response("DescribeAutoScalingGroups", why);
        let names = ["InstanceId", "LifecycleState", "HealthStatus", "ProtectedFromScaleIn"];
        let instances = members(&response, "Instances", names).map_err(invalid)?;
        let number = |name: &str| setting(&response, name).and_then(|number| number.parse().ok());
        let Some(desired) = number("DesiredCapacity") else { return Err(self.no_group()) };
        let member = |[id, state, health, protected]: [Option<String>; 4]| {
            let detail = state.unwrap_or_default();
            Some(Member {
                instance: id?,
                state: member_state(&detail),
                healthy: health.as_deref() != Some("Unhealthy"),
                protected: protected.as_deref() == Some("true"),
                detail,
            })
        };
        Ok(Group {
            name: self.group.clone(),
            desired,
            desired_is_counted: false,
            min_size: number("MinSize").unwrap_or(0),
            max_size: number("MaxSize"),
            protects_new: setting(&response, "NewInstancesProtectedFromScaleIn").as_deref() == Some("true"),
            members: instances.into_iter().filter_map(member).collect(),
        })
    }

    fn set_desired_capacity(&self, instances: u32) -> Result<(), EngineError> {
        let desired = instances.to_string();
        let parameters =
            [("AutoScalingGroupName", self.group.as_str()), ("DesiredCapacity", &desired), ("HonorCooldown", "false")];
        // The number is absolute, so repeating the call is safe.
        self.call("SetDesiredCapacity", &parameters, CALL_TIMEOUT).map(drop)
    }

    fn terminate(&self, instance: &str, capacity: CapacityChange) -> Result<(), EngineError> {
        let decrement = if capacity == CapacityChange::Decrement { "true" } else { "false" };
        let parameters = [("InstanceId", instance), ("ShouldDecrementDesiredCapacity", decrement)];
        // Without retries: a second call could lower the desired capacity twice.
        self.call("TerminateInstanceInAutoScalingGroup", &parameters, Duration::ZERO).map(drop)
    }

    fn terminated_among(&self, instances: &[String]) -> Result<Vec<String>, EngineError> {
        let mut ended = Vec::new();
        // One call for each instance, because one unknown id makes a combined call fail.
        for instance in instances {
            let request = AwsRequest::query(EC2_VERSION, "DescribeInstances", &[("InstanceId.1", instance)]);
            match self.ec2.call(&request, CALL_TIMEOUT) {
                Ok(response) => {
                    let name = instance_state(&response);
                    if matches!(name.as_deref(), Some("terminated" | "shutting-down") | None) {
                        ended.push(instance.clone());
                    }
                }
                Err(error) if error.code().starts_with("InvalidInstanceID") => ended.push(instance.clone()),
                Err(error) => return Err(engine_error(error)),
            }
        }
        Ok(ended)
    }

    fn failed_starts(&self, since: Timestamp) -> Result<Vec<FailedStart>, EngineError> {
        let parameters = [("AutoScalingGroupName", self.group.as_str()), ("MaxRecords", "20")];
        let response = self.call("DescribeScalingActivities", &parameters, CALL_TIMEOUT)?;
        failures::failed_launches(&response, since)
            .map_err(|why| self.invalid_response("DescribeScalingActivities", why))
    }

    fn extend_termination_delay(&self, instance: &str) -> Result<(), EngineError> {
        self.hooks.extend(self, instance)
    }

    fn end_termination_delay(&self, instance: &str) -> Result<(), EngineError> {
        self.hooks.complete(self, instance)
    }

    fn check(&self, max_instances: Option<u32>) -> Vec<Check> {
        checks::run(self, max_instances)
    }

    fn check_permissions(&self) -> Vec<Check> {
        permissions::check(self)
    }
}

/// A setting of the group, from a response about this group alone.
fn setting(response: &str, name: &str) -> Option<String> {
    field(response, GROUPS, name)
}

/// The state of the instance in a response of EC2 about a single instance.
fn instance_state(xml: &str) -> Option<String> {
    // `instanceState` is the only element of an instance that has a `name` beside a numeric `code`.
    let state = xml.split("<instanceState>").nth(1)?.split("</instanceState>").next()?;
    element(&format!("<s>{state}</s>"), "name")
}

/// The state that a `LifecycleState` of AWS means.
fn member_state(word: &str) -> MemberState {
    match word {
        "InService" => MemberState::Running,
        "Pending" | "Pending:Wait" | "Pending:Proceed" => MemberState::Creating,
        "Terminating:Wait" => MemberState::TerminationDelayed,
        word if word.starts_with("Terminat") => MemberState::Terminating,
        // `Warmed:…`, `Standby`, `Detached`, `EnteringStandby`, …
        _ => MemberState::Aside,
    }
}

fn engine_error(error: CallError) -> EngineError {
    let says = |part: &str| matches!(&error.cause, Cause::Refused { message, .. } if message.contains(part));
    let kind = match &error.cause {
        Cause::Busy { .. } | Cause::NoResponse(_) | Cause::Unprepared(_) => ErrorKind::Temporary,
        Cause::Refused { .. } if says("min size") || says("minSize") || says("MinSize") || says("minimum") => {
            ErrorKind::AtMinimum
        }
        Cause::Refused { .. } if says("group name not found") || says("AutoScalingGroup name") => ErrorKind::NoGroup,
        Cause::Refused { .. } if says("Instance Id not found") || says("not found - No managed instance") => {
            ErrorKind::NoInstance
        }
        Cause::Refused { .. } => ErrorKind::Refused,
    };
    let remedy = match error.code() {
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => {
            format!("; allow {} in the manager's policy", error.permission)
        }
        _ => String::new(),
    };
    let why = match &error.cause {
        Cause::Refused { code, message } => format!("AWS refused the call with {code}: {message}{remedy}"),
        Cause::Busy { code } => format!("AWS throttles the call or is unavailable: {code}"),
        Cause::NoResponse(why) => format!("no response: {why}"),
        Cause::Unprepared(why) => format!("no region or no credentials: {why}"),
    };
    EngineError { kind, call: error.permission, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifecycle_states_have_their_meaning() {
        for (word, expected) in [
            ("InService", MemberState::Running),
            ("Pending", MemberState::Creating),
            ("Pending:Wait", MemberState::Creating),
            ("Terminating", MemberState::Terminating),
            ("Terminating:Wait", MemberState::TerminationDelayed),
            ("Terminating:Proceed", MemberState::Terminating),
            ("Terminated", MemberState::Terminating),
            ("Warmed:Stopped", MemberState::Aside),
            ("Warmed:Pending:Wait", MemberState::Aside),
            ("Standby", MemberState::Aside),
            ("Detaching", MemberState::Aside),
        ] {
            assert_eq!(member_state(word), expected, "{word}");
        }
    }

    #[test]
    fn a_refusal_has_its_kind_and_its_remedy() {
        let refused = |code: &str, message: &str| {
            let cause = Cause::Refused { code: code.to_owned(), message: message.to_owned() };
            engine_error(CallError { permission: "autoscaling:X".to_owned(), cause })
        };
        let minimum = refused(
            "ValidationError",
            "Currently, desiredSize equals minSize (0). Terminating instance without replacement will violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's min size.",
        );
        assert_eq!(minimum.kind, ErrorKind::AtMinimum);
        let gone = refused("ValidationError", "Instance Id not found - No managed instance found for instance ID i-1");
        assert_eq!(gone.kind, ErrorKind::NoInstance);
        assert_eq!(refused("ValidationError", "AutoScalingGroup name not found - null").kind, ErrorKind::NoGroup);
        let denied = refused("AccessDenied", "no");
        assert_eq!(denied.kind, ErrorKind::Refused);
        assert!(denied.to_string().ends_with("; allow autoscaling:X in the manager's policy"), "{denied}");
    }

    #[test]
    fn the_state_of_an_instance_is_not_the_name_of_its_monitoring() {
        let xml = "<R><reservationSet><item><instancesSet><item><placement><name>x</name></placement><instanceState>\
                   <code>48</code><name>terminated</name></instanceState></item></instancesSet></item></reservationSet></R>";
        assert_eq!(instance_state(xml).as_deref(), Some("terminated"));
        assert_eq!(instance_state("<R><reservationSet/></R>"), None);
    }
}
