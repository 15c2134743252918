//! Checks the manager's own permissions, with calls that have no effect.

use super::examine::{bad, doubtful, good};
use super::{Aws, CALL_TIMEOUT, EngineError, hooks, setting};
use crate::instance::CapacityChange;
use crate::manager::engine::{Engine, ErrorKind, Examined};

/// An instance that does not exist.
const NO_INSTANCE: &str = "i-00000000000000000";

/// Examines all of them.
pub fn examine(aws: &Aws) -> Vec<Examined> {
    let what = "permissions";
    let mut found = Vec::new();
    found.push(match check_set_desired_capacity(aws) {
        Ok(()) => good(what, "autoscaling:SetDesiredCapacity is allowed"),
        // AWS checks permissions first.
        Err(error) if error.why.contains("ScalingActivityInProgress") => {
            good(what, "autoscaling:SetDesiredCapacity is allowed")
        }
        Err(error) if error.why.contains("AccessDenied") => bad(what, error.to_string()),
        Err(error) => doubtful(what, format!("cannot be examined: {error}")),
    });
    found.push(termination(aws));
    found.extend(of_hooks(aws));
    match aws.ended(&[NO_INSTANCE.to_owned()]) {
        Err(error) if error.why.contains("UnauthorizedOperation") || error.why.contains("AccessDenied") => {
            found.push(doubtful(what, format!("the manager cannot distinguish a terminated instance from a detached one: {error}; allow ec2:DescribeInstances")));
        }
        _ => found.push(good(what, "ec2:DescribeInstances is allowed")),
    }
    found
}

/// Sets the desired capacity to its present number, which changes nothing. A number that AWS refuses for another reason
/// would not prove the permission, and a simulation of the policy needs a permission of its own.
fn check_set_desired_capacity(aws: &Aws) -> Result<(), EngineError> {
    let answer = aws.describe()?;
    let desired = setting(&answer, "DesiredCapacity").ok_or_else(|| aws.no_group())?;
    let parameters =
        [("AutoScalingGroupName", aws.group.as_str()), ("DesiredCapacity", &desired), ("HonorCooldown", "true")];
    aws.call("SetDesiredCapacity", &parameters, CALL_TIMEOUT).map(drop)
}

/// A termination has no dry run, so an instance that does not exist is terminated: AWS checks the permission first. A policy
/// that names the group may not apply to an instance that is in none, so a refusal proves nothing.
fn termination(aws: &Aws) -> Examined {
    let what = "permissions";
    match aws.terminate(NO_INSTANCE, CapacityChange::Decrement) {
        Err(error) if error.kind == ErrorKind::Refused && error.why.contains("AccessDenied") => doubtful(
            what,
            format!(
                "{error}; if the manager's policy allows this action for the group only, ignore this warning: the check uses \
                 an instance that does not exist, and AWS cannot assign that instance to the group"
            ),
        ),
        Err(error) if error.kind == ErrorKind::Temporary => {
            doubtful(what, format!("autoscaling:TerminateInstanceInAutoScalingGroup cannot be examined: {error}"))
        }
        _ => good(what, "autoscaling:TerminateInstanceInAutoScalingGroup is allowed"),
    }
}

/// Without these, an instance whose agent has left is held until the timeout of the hook. A group without terminating hooks
/// needs none of them.
fn of_hooks(aws: &Aws) -> Vec<Examined> {
    let what = "permissions";
    let Some(hook) = hooks::read(aws).unwrap_or_default().into_iter().find(|hook| !hook.launching) else {
        return Vec::new();
    };
    let parameters = hooks::of_hook(aws, &hook, NO_INSTANCE);
    let completion = [&parameters[..], &[("LifecycleActionResult", "CONTINUE")]].concat();
    [("RecordLifecycleActionHeartbeat", parameters.to_vec()), ("CompleteLifecycleAction", completion)]
        .into_iter()
        .map(|(action, parameters)| match aws.call(action, &parameters, CALL_TIMEOUT) {
            Err(error) if error.why.contains("AccessDenied") => bad(what, error.to_string()),
            Err(error) if error.kind == ErrorKind::Temporary => {
                doubtful(what, format!("autoscaling:{action} cannot be examined: {error}"))
            }
            _ => good(what, format!("autoscaling:{action} is allowed")),
        })
        .collect()
}
