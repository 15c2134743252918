//! Checks the manager's own permissions, with calls that have no effect.

use super::checks::{failed, passed, warning};
use super::{Aws, CALL_TIMEOUT, EngineError, hooks, setting};
use crate::instance::CapacityChange;
use crate::manager::engine::{Check, Engine, ErrorKind};

/// An instance that does not exist.
const NO_INSTANCE: &str = "i-00000000000000000";

/// Checks all permissions that a check without an effect can prove.
pub fn check(aws: &Aws) -> Vec<Check> {
    let subject = "permissions";
    let mut found = Vec::new();
    found.push(match check_set_desired_capacity(aws) {
        Ok(()) => passed(subject, "autoscaling:SetDesiredCapacity is allowed"),
        // AWS checks the permission before the state of the group, so this error proves the permission.
        Err(error) if error.why.contains("ScalingActivityInProgress") => {
            passed(subject, "autoscaling:SetDesiredCapacity is allowed")
        }
        Err(error) if error.why.contains("AccessDenied") => failed(subject, error.to_string()),
        Err(error) => warning(subject, format!("cannot be checked: {error}")),
    });
    found.push(check_termination(aws));
    found.extend(check_hook_calls(aws));
    match aws.terminated_among(&[NO_INSTANCE.to_owned()]) {
        Err(error) if error.why.contains("UnauthorizedOperation") || error.why.contains("AccessDenied") => {
            found.push(warning(subject, format!("the manager cannot distinguish a terminated instance from a detached one: {error}; allow ec2:DescribeInstances")));
        }
        _ => found.push(passed(subject, "ec2:DescribeInstances is allowed")),
    }
    found
}

/// Sets the desired capacity to its present number, which changes nothing. A number that AWS refuses for another reason
/// would not prove the permission, and a simulation of the policy needs a permission of its own.
fn check_set_desired_capacity(aws: &Aws) -> Result<(), EngineError> {
    let response = aws.describe()?;
    let desired = setting(&response, "DesiredCapacity").ok_or_else(|| aws.no_group())?;
    let parameters =
        [("AutoScalingGroupName", aws.group.as_str()), ("DesiredCapacity", &desired), ("HonorCooldown", "true")];
    aws.call("SetDesiredCapacity", &parameters, CALL_TIMEOUT).map(drop)
}

/// A termination has no dry run, so the check terminates an instance that does not exist: AWS checks the permission
/// first. A policy that names the group does not apply to an instance outside of it, so a refusal proves nothing.
fn check_termination(aws: &Aws) -> Check {
    let subject = "permissions";
    match aws.terminate(NO_INSTANCE, CapacityChange::Decrement) {
        Err(error) if error.kind == ErrorKind::Refused && error.why.contains("AccessDenied") => warning(
            subject,
            format!(
                "{error}; if the manager's policy allows this action for the group only, ignore this warning: the check uses \
                 an instance that does not exist, and AWS cannot assign that instance to the group"
            ),
        ),
        Err(error) if error.kind == ErrorKind::Temporary => {
            warning(subject, format!("autoscaling:TerminateInstanceInAutoScalingGroup cannot be checked: {error}"))
        }
        _ => passed(subject, "autoscaling:TerminateInstanceInAutoScalingGroup is allowed"),
    }
}

/// Checks the calls for lifecycle hooks. Without these permissions, a hook delays the termination until its timeout. A
/// group without terminating hooks needs none of them.
fn check_hook_calls(aws: &Aws) -> Vec<Check> {
    let subject = "permissions";
    let Some(hook) = hooks::read(aws).unwrap_or_default().into_iter().find(|hook| !hook.delays_launch) else {
        return Vec::new();
    };
    let parameters = hooks::hook_parameters(aws, &hook, NO_INSTANCE);
    let completion = [&parameters[..], &[("LifecycleActionResult", "CONTINUE")]].concat();
    [("RecordLifecycleActionHeartbeat", parameters.to_vec()), ("CompleteLifecycleAction", completion)]
        .into_iter()
        .map(|(action, parameters)| match aws.call(action, &parameters, CALL_TIMEOUT) {
            Err(error) if error.why.contains("AccessDenied") => failed(subject, error.to_string()),
            Err(error) if error.kind == ErrorKind::Temporary => {
                warning(subject, format!("autoscaling:{action} cannot be checked: {error}"))
            }
            _ => passed(subject, format!("autoscaling:{action} is allowed")),
        })
        .collect()
}
