//! The AWS Auto Scaling group of a pool.

mod examine;
mod failures;
mod hooks;
mod permissions;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Engine, EngineError, ErrorKind, Examined, FailedStart, Group, Member, State};
use crate::instance::CapacityChange;
use crate::instance::aws::client::{AwsClient, CallError, Cause};
use crate::instance::aws::endpoint::{AUTO_SCALING, EC2};
use crate::instance::aws::source::CredentialSource;
use crate::instance::aws::transport::AwsRequest;
use crate::instance::aws::xml::{element, field, members};
use crate::manager::pool::AwsGroup;

const AUTO_SCALING_VERSION: &str = "2011-01-01";
/// The list of groups in an answer.
const GROUPS: &str = "AutoScalingGroups";
const EC2_VERSION: &str = "2016-11-15";
/// The timeout of a read, including retries. The next round reads again.
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
        self.auto_scaling.call(&request, timeout).map_err(of_call)
    }

    fn of_group(&self, action: &str) -> Result<String, EngineError> {
        self.call(action, &[("AutoScalingGroupName", &self.group)], CALL_TIMEOUT)
    }

    fn describe(&self) -> Result<String, EngineError> {
        self.call("DescribeAutoScalingGroups", &[("AutoScalingGroupNames.member.1", &self.group)], CALL_TIMEOUT)
    }

    fn nonsense(&self, action: &str, why: impl Into<String>) -> EngineError {
        EngineError { kind: ErrorKind::Nonsense, call: format!("autoscaling:{action}"), why: why.into() }
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
        let answer = self.describe()?;
        let nonsense = |why: String| self.nonsense("DescribeAutoScalingGroups", why);
        let names = ["InstanceId", "LifecycleState", "HealthStatus", "ProtectedFromScaleIn"];
        let instances = members(&answer, "Instances", names).map_err(nonsense)?;
        let number = |name: &str| setting(&answer, name).and_then(|number| number.parse().ok());
        let Some(desired) = number("DesiredCapacity") else { return Err(self.no_group()) };
        let member = |[id, state, health, protected]: [Option<String>; 4]| {
            let detail = state.unwrap_or_default();
            Some(Member {
                instance: id?,
                state: state_of(&detail),
                healthy: health.as_deref() != Some("Unhealthy"),
                protected: protected.as_deref() == Some("true"),
                detail,
            })
        };
        Ok(Group {
            name: self.group.clone(),
            desired,
            desired_is_counted: false,
            least: number("MinSize").unwrap_or(0),
            most: number("MaxSize"),
            protects_new: setting(&answer, "NewInstancesProtectedFromScaleIn").as_deref() == Some("true"),
            members: instances.into_iter().filter_map(member).collect(),
        })
    }

    fn set_target(&self, instances: u32) -> Result<(), EngineError> {
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

    fn ended(&self, instances: &[String]) -> Result<Vec<String>, EngineError> {
        let mut ended = Vec::new();
        // One call for each instance, because one unknown id makes a combined call fail.
        for instance in instances {
            let request = AwsRequest::query(EC2_VERSION, "DescribeInstances", &[("InstanceId.1", instance)]);
            match self.ec2.call(&request, CALL_TIMEOUT) {
                Ok(answer) => {
                    let name = instance_state(&answer);
                    if matches!(name.as_deref(), Some("terminated" | "shutting-down") | None) {
                        ended.push(instance.clone());
                    }
                }
                Err(error) if error.code().starts_with("InvalidInstanceID") => ended.push(instance.clone()),
                Err(error) => return Err(of_call(error)),
            }
        }
        Ok(ended)
    }

    fn failed_starts(&self, since: Timestamp) -> Result<Vec<FailedStart>, EngineError> {
        let parameters = [("AutoScalingGroupName", self.group.as_str()), ("MaxRecords", "20")];
        let answer = self.call("DescribeScalingActivities", &parameters, CALL_TIMEOUT)?;
        failures::since(&answer, since).map_err(|why| self.nonsense("DescribeScalingActivities", why))
    }

    fn keep_held(&self, instance: &str) -> Result<(), EngineError> {
        self.hooks.beat(self, instance)
    }

    fn release_held(&self, instance: &str) -> Result<(), EngineError> {
        self.hooks.complete(self, instance)
    }

    fn examine(&self, max_instances: Option<u32>) -> Vec<Examined> {
        examine::examine(self, max_instances)
    }

    fn examine_permissions(&self) -> Vec<Examined> {
        permissions::examine(self)
    }
}

/// A setting of the one group of an answer.
fn setting(answer: &str, name: &str) -> Option<String> {
    field(answer, GROUPS, name)
}

/// The state of the instance in a response of EC2 about a single instance.
fn instance_state(xml: &str) -> Option<String> {
    // `instanceState` is the only element of an instance that has a `name` beside a numeric `code`.
    let state = xml.split("<instanceState>").nth(1)?.split("</instanceState>").next()?;
    element(&format!("<s>{state}</s>"), "name")
}

/// The meaning of `LifecycleState`.
fn state_of(word: &str) -> State {
    match word {
        "InService" => State::Running,
        "Pending" | "Pending:Wait" | "Pending:Proceed" => State::Creating,
        "Terminating:Wait" => State::TerminationDelayed,
        word if word.starts_with("Terminat") => State::Terminating,
        // `Warmed:…`, `Standby`, `Detached`, `EnteringStandby`, …
        _ => State::Aside,
    }
}

fn of_call(error: CallError) -> EngineError {
    let text = |needle: &str| matches!(&error.cause, Cause::Refused { message, .. } if message.contains(needle));
    let kind = match &error.cause {
        Cause::Busy { .. } | Cause::NoResponse(_) | Cause::Unprepared(_) => ErrorKind::Temporary,
        Cause::Refused { .. } if text("min size") || text("minSize") || text("MinSize") || text("minimum") => {
            ErrorKind::AtMinimum
        }
        Cause::Refused { .. } if text("group name not found") || text("AutoScalingGroup name") => ErrorKind::NoGroup,
        Cause::Refused { .. } if text("Instance Id not found") || text("not found - No managed instance") => {
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
        Cause::Refused { code, message } => format!("AWS refused it with {code}: {message}{remedy}"),
        Cause::Busy { code } => format!("AWS throttles or is unavailable: {code}"),
        Cause::NoResponse(why) => format!("no answer: {why}"),
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
            ("InService", State::Running),
            ("Pending", State::Creating),
            ("Pending:Wait", State::Creating),
            ("Terminating", State::Terminating),
            ("Terminating:Wait", State::TerminationDelayed),
            ("Terminating:Proceed", State::Terminating),
            ("Terminated", State::Terminating),
            ("Warmed:Stopped", State::Aside),
            ("Warmed:Pending:Wait", State::Aside),
            ("Standby", State::Aside),
            ("Detaching", State::Aside),
        ] {
            assert_eq!(state_of(word), expected, "{word}");
        }
    }

    #[test]
    fn refusals_say_what_can_be_done() {
        let refused = |code: &str, message: &str| {
            let cause = Cause::Refused { code: code.to_owned(), message: message.to_owned() };
            of_call(CallError { permission: "autoscaling:X".to_owned(), cause })
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
