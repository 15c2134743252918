//! Checks whether a group is configured for a manager, for `mayfly check`.

use super::{Aws, EC2_VERSION, EngineError, LOOK, hooks, of_call};
use crate::instance::aws::transport::AwsRequest;
use crate::instance::aws::xml::{element, members};
use crate::manager::engine::{ErrorKind, Examined, Verdict};

/// Processes of a group that terminate instances without a request.
const DISTURBING: [&str; 1] = ["AZRebalance"];
/// Processes that a group needs to start and to terminate instances.
const NEEDED: [&str; 2] = ["Launch", "Terminate"];

/// Runs all checks. A check that cannot run is reported in the result.
pub fn examine(aws: &Aws) -> Vec<Examined> {
    let answer = match aws.describe() {
        Ok(answer) => answer,
        Err(error) => return vec![bad("group", error.to_string())],
    };
    let Some(limits) = limits(&answer) else { return vec![bad("group", aws.no_group().why)] };
    let mut found = vec![limits];
    let is_protected = element(&answer, "NewInstancesProtectedFromScaleIn").as_deref() == Some("true");
    found.extend(processes(&answer, is_protected));
    found.push(protection(is_protected));
    found.extend(capacity_rebalance(&answer));
    found.push(policies(aws));
    found.push(looked(aws, "lifecycle hooks", hooks_of(aws)));
    found.push(looked(aws, "scaling activities", activities(aws)));
    found.push(looked(aws, "launch template", template(aws, &answer)));
    found.extend(rights(aws));
    found
}

/// Checks the manager's permissions without changing anything. TerminateInstanceInAutoScalingGroup has no dry run, so
/// its permission is not checked.
fn rights(aws: &Aws) -> Vec<Examined> {
    let what = "permissions";
    let mut found = Vec::new();
    found.push(match set_to_what_it_is(aws) {
        Ok(()) => good(what, "autoscaling:SetDesiredCapacity is allowed"),
        // AWS checks the permission before anything else, so this error proves it.
        Err(error) if error.why.contains("ScalingActivityInProgress") => {
            good(what, "autoscaling:SetDesiredCapacity is allowed")
        }
        Err(error) if error.why.contains("AccessDenied") => bad(what, error.to_string()),
        Err(error) => doubtful(what, format!("cannot be examined: {error}")),
    });
    match super::Engine::ended(aws, &["i-00000000000000000".to_owned()]) {
        Err(error) if error.why.contains("UnauthorizedOperation") || error.why.contains("AccessDenied") => {
            found.push(doubtful(what, format!("a lost instance cannot be told from a detached one: {error}")));
        }
        _ => found.push(good(what, "ec2:DescribeInstances is allowed")),
    }
    found
}

/// Sets the desired capacity to its present number, which changes nothing. A request that AWS rejects for another
/// reason would not prove the permission, and simulating the policy needs a further permission.
fn set_to_what_it_is(aws: &Aws) -> Result<(), EngineError> {
    let answer = aws.describe()?;
    let desired = element(&answer, "DesiredCapacity").ok_or_else(|| aws.no_group())?;
    let parameters =
        [("AutoScalingGroupName", aws.group.as_str()), ("DesiredCapacity", &desired), ("HonorCooldown", "true")];
    aws.call("SetDesiredCapacity", &parameters, LOOK).map(drop)
}

fn good(what: &'static str, text: impl Into<String>) -> Examined {
    Examined { what, verdict: Verdict::Good, text: text.into() }
}

fn doubtful(what: &'static str, text: impl Into<String>) -> Examined {
    Examined { what, verdict: Verdict::Doubtful, text: text.into() }
}

fn bad(what: &'static str, text: impl Into<String>) -> Examined {
    Examined { what, verdict: Verdict::Bad, text: text.into() }
}

/// AWS refused a request. That matters only if the manager sends this request.
fn looked(aws: &Aws, what: &'static str, outcome: Result<Examined, EngineError>) -> Examined {
    outcome.unwrap_or_else(|error| match error.kind {
        ErrorKind::NoGroup => bad(what, aws.no_group().why),
        _ => doubtful(what, format!("cannot be read: {error}")),
    })
}

fn limits(answer: &str) -> Option<Examined> {
    let number = |name: &str| element(answer, name).and_then(|number| number.parse::<u32>().ok());
    let (least, most, desired) = (number("MinSize")?, number("MaxSize")?, number("DesiredCapacity")?);
    let text = format!("minimum {least}, maximum {most}, desired {desired}");
    Some(if most == 0 {
        bad("group", format!("{text}; nothing can start: raise the maximum to max_instances"))
    } else if least > 0 {
        doubtful("group", format!("{text}; the fleet never gets to 0: set the minimum to 0"))
    } else {
        good("group", text)
    })
}

fn processes(answer: &str, is_protected: bool) -> Vec<Examined> {
    let suspended: Vec<String> = members(answer, "SuspendedProcesses", ["ProcessName"])
        .unwrap_or_default()
        .into_iter()
        .filter_map(|[name]| name)
        .collect();
    let is_suspended = |name: &str| suspended.iter().any(|suspended| suspended == name);
    let mut found: Vec<Examined> = NEEDED
        .into_iter()
        .filter(|name| is_suspended(name))
        .map(|name| bad("suspended processes", format!("{name} is suspended; resume it, or the group does not change")))
        .collect();
    // Rebalancing leaves protected instances alone.
    found.extend(DISTURBING.into_iter().filter(|name| !is_suspended(name) && !is_protected).map(|name| {
        doubtful(
            "suspended processes",
            format!("{name} is not suspended: it terminates instances while jobs run; suspend it"),
        )
    }));
    if found.is_empty() {
        let suspended = if suspended.is_empty() { "none".to_owned() } else { suspended.join(", ") };
        found.push(good("suspended processes", suspended));
    }
    found
}

fn protection(is_protected: bool) -> Examined {
    match is_protected {
        true => good("scale-in protection", "new instances are protected"),
        false => doubtful(
            "scale-in protection",
            "new instances are not protected: if something lowers the desired capacity, AWS chooses the instance to \
             terminate, even one with a job; switch on protection of new instances",
        ),
    }
}

fn capacity_rebalance(answer: &str) -> Option<Examined> {
    (element(answer, "CapacityRebalance").as_deref() == Some("true")).then(|| {
        doubtful(
            "capacity rebalance",
            "it is on: AWS replaces spot instances before they get a notice, even with a job; switch it off",
        )
    })
}

/// Checks for other scaling policies and scheduled actions that change the desired capacity.
fn policies(aws: &Aws) -> Examined {
    let names = |action: &str, list: &str, name: &'static str| -> Result<Vec<String>, EngineError> {
        let answer = aws.of_group(action)?;
        let all = members(&answer, list, [name]).map_err(|why| aws.nonsense(action, why))?;
        Ok(all.into_iter().filter_map(|[name]| name).collect())
    };
    let found = names("DescribePolicies", "ScalingPolicies", "PolicyName").and_then(|mut policies| {
        policies.extend(names("DescribeScheduledActions", "ScheduledUpdateGroupActions", "ScheduledActionName")?);
        Ok(policies)
    });
    match found {
        Ok(found) if found.is_empty() => {
            good("scaling policies", "none, so the manager alone sets the desired capacity")
        }
        Ok(found) => bad(
            "scaling policies",
            format!("{} also set the desired capacity, against the manager; delete them", found.join(", ")),
        ),
        Err(error) => doubtful("scaling policies", format!("cannot be read: {error}")),
    }
}

fn hooks_of(aws: &Aws) -> Result<Examined, EngineError> {
    let hooks = hooks::read(aws)?;
    if let Some(hook) = hooks.iter().find(|hook| hook.launching) {
        let text = format!(
            "`{}` holds each new instance for up to {} s unless something completes it; the agent does not: remove it, or \
             complete it in user data",
            hook.name,
            hook.timeout.as_secs()
        );
        return Ok(doubtful("lifecycle hooks", text));
    }
    let names: Vec<&str> = hooks.iter().map(|hook| hook.name.as_str()).collect();
    Ok(match names.is_empty() {
        true => good("lifecycle hooks", "none"),
        false => good("lifecycle hooks", format!("{}; the manager extends and completes them", names.join(", "))),
    })
}

fn activities(aws: &Aws) -> Result<Examined, EngineError> {
    const RECENT: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
    let since = jiff::Timestamp::now().checked_sub(RECENT).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let failed = super::Engine::failed_starts(aws, since)?;
    Ok(match failed.last() {
        None => good("scaling activities", "no start failed in the last hour"),
        Some(last) => bad(
            "scaling activities",
            format!("{} start(s) failed in the last hour: {}; {}", failed.len(), last.cause, last.kind.remedy()),
        ),
    })
}

/// Checks the launch template: an instance that powers off must be terminated, not stopped, and the metadata service
/// must require tokens.
fn template(aws: &Aws, answer: &str) -> Result<Examined, EngineError> {
    let what = "launch template";
    let version = element(answer, "Version").unwrap_or_else(|| "$Default".to_owned());
    let Some(id) = element(answer, "LaunchTemplateId") else {
        return Ok(doubtful(what, "the group has none that can be examined; use a launch template"));
    };
    let parameters = [("LaunchTemplateId", id.as_str()), ("LaunchTemplateVersion.1", &version)];
    let request = AwsRequest::query(EC2_VERSION, "DescribeLaunchTemplateVersions", &parameters);
    let answer = aws.ec2.call(&request, LOOK).map_err(of_call)?;
    let shutdown = element(&answer, "instanceInitiatedShutdownBehavior");
    let tokens = element(&answer, "httpTokens");
    Ok(if shutdown.as_deref() != Some("terminate") {
        doubtful(
            what,
            "an instance that powers itself off is stopped first and billed for its disks; set \
             InstanceInitiatedShutdownBehavior to terminate",
        )
    } else if tokens.as_deref() != Some("required") {
        doubtful(what, "metadata is served without a token (IMDSv1); set HttpTokens to required")
    } else {
        good(what, format!("{id} version {version}: terminates on power-off, IMDSv2"))
    })
}
