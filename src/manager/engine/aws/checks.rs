//! Checks whether an Auto Scaling group is configured for a manager: for `mayfly check`, and for warnings when a pool
//! starts.

use super::{Aws, CALL_TIMEOUT, EC2_VERSION, EngineError, GROUPS, engine_error, hooks, setting};
use crate::instance::aws::transport::AwsRequest;
use crate::instance::aws::xml::{element, field_within, members};
use crate::manager::engine::{Check, CheckResult, ErrorKind};

/// Processes of a group that terminate instances without a request.
const TERMINATING_PROCESSES: [&str; 1] = ["AZRebalance"];
/// Processes that a group needs to start and to terminate instances.
const REQUIRED_PROCESSES: [&str; 2] = ["Launch", "Terminate"];

/// Whether the group protects new instances from scale-in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ScaleInProtection {
    On,
    Off,
}

impl ScaleInProtection {
    fn of_new_instances(response: &str) -> Self {
        match setting(response, "NewInstancesProtectedFromScaleIn").as_deref() {
            Some("true") => Self::On,
            _ => Self::Off,
        }
    }
}

/// Runs all checks. A check that cannot run is reported in the result.
pub fn run(aws: &Aws, max_instances: Option<u32>) -> Vec<Check> {
    let response = match aws.describe() {
        Ok(response) => response,
        Err(error) => return vec![failed("group", error.to_string())],
    };
    let Some(limits) = check_size(&response, max_instances) else { return vec![failed("group", aws.no_group().why)] };
    let mut found = vec![limits];
    let protection = ScaleInProtection::of_new_instances(&response);
    found.extend(check_processes(&response, protection));
    found.push(check_protection(protection));
    found.extend(check_capacity_rebalance(&response));
    found.extend(check_warm_pool(&response));
    found.push(check_scaling_policies(aws));
    found.push(warning_if_unreadable(aws, "lifecycle hooks", check_hooks(aws)));
    found.push(warning_if_unreadable(aws, "scaling activities", check_activities(aws)));
    found.push(warning_if_unreadable(aws, "launch template", check_launch_template(aws, &response)));
    found
}

pub fn passed(subject: &'static str, text: impl Into<String>) -> Check {
    Check { subject, result: CheckResult::Passed, text: text.into() }
}

pub fn warning(subject: &'static str, text: impl Into<String>) -> Check {
    Check { subject, result: CheckResult::Warning, text: text.into() }
}

pub fn failed(subject: &'static str, text: impl Into<String>) -> Check {
    Check { subject, result: CheckResult::Failed, text: text.into() }
}

/// A check that cannot read its subject is a warning, because the pool may work without this permission.
fn warning_if_unreadable(aws: &Aws, subject: &'static str, outcome: Result<Check, EngineError>) -> Check {
    outcome.unwrap_or_else(|error| match error.kind {
        ErrorKind::NoGroup => failed(subject, aws.no_group().why),
        _ => warning(subject, format!("cannot be read: {error}")),
    })
}

fn check_size(response: &str, max_instances: Option<u32>) -> Option<Check> {
    let number = |name: &str| setting(response, name).and_then(|number| number.parse::<u32>().ok());
    let (least, most, desired) = (number("MinSize")?, number("MaxSize")?, number("DesiredCapacity")?);
    let text = format!("minimum {least}, maximum {most}, desired {desired}");
    Some(if most == 0 {
        failed("group", format!("{text}; nothing can start: raise the maximum to max_instances"))
    } else if let Some(wanted) = max_instances.filter(|wanted| *wanted > most) {
        let minimum = if least > 0 { "; set the minimum to 0, or the fleet never gets to 0" } else { "" };
        warning(
            "group",
            format!("{text}, so the pool has at most {most} instances; raise the maximum to {wanted}{minimum}"),
        )
    } else if least > 0 {
        warning("group", format!("{text}; the fleet never gets to 0: set the minimum to 0"))
    } else {
        passed("group", text)
    })
}

fn check_processes(response: &str, protection: ScaleInProtection) -> Vec<Check> {
    let suspended: Vec<String> = members(response, "SuspendedProcesses", ["ProcessName"])
        .unwrap_or_default()
        .into_iter()
        .filter_map(|[name]| name)
        .collect();
    let is_suspended = |name: &str| suspended.iter().any(|suspended| suspended == name);
    let mut found: Vec<Check> = REQUIRED_PROCESSES
        .into_iter()
        .filter(|name| is_suspended(name))
        .map(|name| {
            failed("suspended processes", format!("{name} is suspended; resume it, or the group does not change"))
        })
        .collect();
    // Rebalancing leaves protected instances alone.
    let may_terminate = |name: &&str| protection == ScaleInProtection::Off && !is_suspended(name);
    found.extend(TERMINATING_PROCESSES.into_iter().filter(may_terminate).map(|name| {
        warning(
            "suspended processes",
            format!("{name} is not suspended: it terminates instances while jobs run; suspend it"),
        )
    }));
    if found.is_empty() {
        let suspended = if suspended.is_empty() { "none".to_owned() } else { suspended.join(", ") };
        found.push(passed("suspended processes", suspended));
    }
    found
}

fn check_protection(protection: ScaleInProtection) -> Check {
    match protection {
        ScaleInProtection::On => passed("scale-in protection", "new instances are protected"),
        ScaleInProtection::Off => warning(
            "scale-in protection",
            "new instances are not protected: if something lowers the desired capacity, AWS chooses the instance to \
             terminate, even one with a job; switch on protection of new instances",
        ),
    }
}

fn check_capacity_rebalance(response: &str) -> Option<Check> {
    (setting(response, "CapacityRebalance").as_deref() == Some("true")).then(|| {
        warning(
            "capacity rebalance",
            "it is on: AWS replaces spot instances before they get a notice, even with a job; switch it off",
        )
    })
}

/// Checks that no instance returns to the warm pool after its termination. The other instances of a warm pool are not
/// members of the group.
fn check_warm_pool(response: &str) -> Option<Check> {
    let subject = "warm pool";
    field_within(response, GROUPS, &["WarmPoolConfiguration"], "PoolState")?;
    Some(match element(response, "ReuseOnScaleIn").as_deref() {
        Some("true") => warning(
            subject,
            "terminated instances return to the warm pool with the data that their jobs left on the disk; set ReuseOnScaleIn \
             to false",
        ),
        _ => passed(subject, "its instances count from the time at which the group takes them into service"),
    })
}

/// Checks for other scaling policies and scheduled actions that change the desired capacity.
fn check_scaling_policies(aws: &Aws) -> Check {
    let names = |action: &str, list: &str, name: &'static str| -> Result<Vec<String>, EngineError> {
        let response = aws.call_for_group(action)?;
        let all = members(&response, list, [name]).map_err(|why| aws.invalid_response(action, why))?;
        Ok(all.into_iter().filter_map(|[name]| name).collect())
    };
    let found = names("DescribePolicies", "ScalingPolicies", "PolicyName").and_then(|mut policies| {
        policies.extend(names("DescribeScheduledActions", "ScheduledUpdateGroupActions", "ScheduledActionName")?);
        Ok(policies)
    });
    match found {
        Ok(found) if found.is_empty() => {
            passed("scaling policies", "none, so the manager alone sets the desired capacity")
        }
        Ok(found) => failed(
            "scaling policies",
            format!("{} also set the desired capacity, against the manager; delete them", found.join(", ")),
        ),
        Err(error) => warning("scaling policies", format!("cannot be read: {error}")),
    }
}

fn check_hooks(aws: &Aws) -> Result<Check, EngineError> {
    let hooks = hooks::read(aws)?;
    if let Some(hook) = hooks.iter().find(|hook| hook.delays_launch) {
        let text = format!(
            "`{}` holds each new instance for up to {} s unless something completes it; the agent does not: remove it, or \
             complete it in user data",
            hook.name,
            hook.timeout.as_secs()
        );
        return Ok(warning("lifecycle hooks", text));
    }
    let names: Vec<&str> = hooks.iter().map(|hook| hook.name.as_str()).collect();
    Ok(match names.is_empty() {
        true => passed("lifecycle hooks", "none"),
        false => passed("lifecycle hooks", format!("{}; the manager extends and completes them", names.join(", "))),
    })
}

fn check_activities(aws: &Aws) -> Result<Check, EngineError> {
    const RECENT: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
    let since = jiff::Timestamp::now().checked_sub(RECENT).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let failed_starts = super::Engine::failed_starts(aws, since)?;
    Ok(match failed_starts.last() {
        None => passed("scaling activities", "no start failed in the last hour"),
        Some(last) => failed(
            "scaling activities",
            format!("{} start(s) failed in the last hour: {}; {}", failed_starts.len(), last.cause, last.kind.remedy()),
        ),
    })
}

/// Checks the launch template: an instance that powers off must be terminated, not stopped, and the metadata service
/// must require tokens.
fn check_launch_template(aws: &Aws, response: &str) -> Result<Check, EngineError> {
    let subject = "launch template";
    // Each member also has a launch template: the one from which it was started.
    let of_template = |name: &str| field_within(response, GROUPS, &["LaunchTemplate", "MixedInstancesPolicy"], name);
    let version = of_template("Version").unwrap_or_else(|| "$Default".to_owned());
    let Some(id) = of_template("LaunchTemplateId") else {
        return Ok(warning(subject, "the group has none that can be checked; use a launch template"));
    };
    let parameters = [("LaunchTemplateId", id.as_str()), ("LaunchTemplateVersion.1", &version)];
    let request = AwsRequest::query(EC2_VERSION, "DescribeLaunchTemplateVersions", &parameters);
    let response = aws.ec2.call(&request, CALL_TIMEOUT).map_err(engine_error)?;
    let shutdown = element(&response, "instanceInitiatedShutdownBehavior");
    let tokens = element(&response, "httpTokens");
    Ok(if shutdown.as_deref() != Some("terminate") {
        warning(
            subject,
            "an instance that powers itself off is stopped first and billed for its disks; set \
             InstanceInitiatedShutdownBehavior to terminate",
        )
    } else if tokens.as_deref() != Some("required") {
        warning(subject, "metadata is served without a token (IMDSv1); set HttpTokens to required")
    } else {
        passed(subject, format!("{id} version {version}: terminates on power-off, IMDSv2"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_pool_is_examined_and_its_size_is_not_that_of_the_group() {
        let response = |reuse: &str| {
            format!(
                "<R><AutoScalingGroups><member><WarmPoolConfiguration><MinSize>2</MinSize><PoolState>Stopped</PoolState>{reuse}\
                 </WarmPoolConfiguration><MinSize>0</MinSize><MaxSize>5</MaxSize><DesiredCapacity>1</DesiredCapacity>\
                 </member></AutoScalingGroups></R>"
            )
        };
        let limits = check_size(&response(""), Some(5)).expect("the limits must be known");
        assert_eq!((limits.result, limits.text.as_str()), (CheckResult::Passed, "minimum 0, maximum 5, desired 1"));
        let reuse = "<InstanceReusePolicy><ReuseOnScaleIn>true</ReuseOnScaleIn></InstanceReusePolicy>";
        let result = |reuse: &str| check_warm_pool(&response(reuse)).expect("a warm pool").result;
        assert_eq!((result(""), result(reuse)), (CheckResult::Passed, CheckResult::Warning));
        assert_eq!(check_warm_pool("<R><AutoScalingGroups><member/></AutoScalingGroups></R>"), None);
    }
}
