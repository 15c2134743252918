//! Checks whether an Auto Scaling group is configured for a manager: for `mayfly check`, and for warnings when a pool
//! starts.

use super::{Aws, CALL_TIMEOUT, EC2_VERSION, EngineError, GROUPS, hooks, of_call, setting};
use crate::instance::aws::transport::AwsRequest;
use crate::instance::aws::xml::{element, field_within, members};
use crate::manager::engine::{ErrorKind, Examined, Verdict};

/// Processes of a group that terminate instances without a request.
const DISTURBING: [&str; 1] = ["AZRebalance"];
/// Processes that a group needs to start and to terminate instances.
const NEEDED: [&str; 2] = ["Launch", "Terminate"];

/// Runs all checks. A check that cannot run is reported in the result.
pub fn examine(aws: &Aws, max_instances: Option<u32>) -> Vec<Examined> {
    let answer = match aws.describe() {
        Ok(answer) => answer,
        Err(error) => return vec![bad("group", error.to_string())],
    };
    let Some(limits) = limits(&answer, max_instances) else { return vec![bad("group", aws.no_group().why)] };
    let mut found = vec![limits];
    let is_protected = setting(&answer, "NewInstancesProtectedFromScaleIn").as_deref() == Some("true");
    found.extend(processes(&answer, is_protected));
    found.push(protection(is_protected));
    found.extend(capacity_rebalance(&answer));
    found.extend(warm_pool(&answer));
    found.push(policies(aws));
    found.push(looked(aws, "lifecycle hooks", hooks_of(aws)));
    found.push(looked(aws, "scaling activities", activities(aws)));
    found.push(looked(aws, "launch template", template(aws, &answer)));
    found
}

pub fn good(what: &'static str, text: impl Into<String>) -> Examined {
    Examined { what, verdict: Verdict::Good, text: text.into() }
}

pub fn doubtful(what: &'static str, text: impl Into<String>) -> Examined {
    Examined { what, verdict: Verdict::Doubtful, text: text.into() }
}

pub fn bad(what: &'static str, text: impl Into<String>) -> Examined {
    Examined { what, verdict: Verdict::Bad, text: text.into() }
}

/// AWS refused a request. That matters only if the manager sends this request.
fn looked(aws: &Aws, what: &'static str, outcome: Result<Examined, EngineError>) -> Examined {
    outcome.unwrap_or_else(|error| match error.kind {
        ErrorKind::NoGroup => bad(what, aws.no_group().why),
        _ => doubtful(what, format!("cannot be read: {error}")),
    })
}

fn limits(answer: &str, max_instances: Option<u32>) -> Option<Examined> {
    let number = |name: &str| setting(answer, name).and_then(|number| number.parse::<u32>().ok());
    let (least, most, desired) = (number("MinSize")?, number("MaxSize")?, number("DesiredCapacity")?);
    let text = format!("minimum {least}, maximum {most}, desired {desired}");
    Some(if most == 0 {
        bad("group", format!("{text}; nothing can start: raise the maximum to max_instances"))
    } else if let Some(wanted) = max_instances.filter(|wanted| *wanted > most) {
        let minimum = if least > 0 { "; set the minimum to 0, or the fleet never gets to 0" } else { "" };
        doubtful(
            "group",
            format!(
                "{text}, so that the pool has no more than {most} instances; raise the maximum to {wanted}{minimum}"
            ),
        )
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
    (setting(answer, "CapacityRebalance").as_deref() == Some("true")).then(|| {
        doubtful(
            "capacity rebalance",
            "it is on: AWS replaces spot instances before they get a notice, even with a job; switch it off",
        )
    })
}

/// Instances of a warm pool are not members, unless they return to it after a termination: their agents have left then.
fn warm_pool(answer: &str) -> Option<Examined> {
    let what = "warm pool";
    field_within(answer, GROUPS, &["WarmPoolConfiguration"], "PoolState")?;
    Some(match element(answer, "ReuseOnScaleIn").as_deref() {
        Some("true") => doubtful(
            what,
            "terminated instances return to it, with what their jobs left on the disk; switch off reuse on scale-in",
        ),
        _ => good(what, "its instances count when the group takes them into service"),
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
    // Instances have templates of their own: that from which each was started.
    let of_template = |name: &str| field_within(answer, GROUPS, &["LaunchTemplate", "MixedInstancesPolicy"], name);
    let version = of_template("Version").unwrap_or_else(|| "$Default".to_owned());
    let Some(id) = of_template("LaunchTemplateId") else {
        return Ok(doubtful(what, "the group has none that can be examined; use a launch template"));
    };
    let parameters = [("LaunchTemplateId", id.as_str()), ("LaunchTemplateVersion.1", &version)];
    let request = AwsRequest::query(EC2_VERSION, "DescribeLaunchTemplateVersions", &parameters);
    let answer = aws.ec2.call(&request, CALL_TIMEOUT).map_err(of_call)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_pool_is_examined_and_its_size_is_not_that_of_the_group() {
        let answer = |reuse: &str| {
            format!(
                "<R><AutoScalingGroups><member><WarmPoolConfiguration><MinSize>2</MinSize><PoolState>Stopped</PoolState>{reuse}\
                 </WarmPoolConfiguration><MinSize>0</MinSize><MaxSize>5</MaxSize><DesiredCapacity>1</DesiredCapacity>\
                 </member></AutoScalingGroups></R>"
            )
        };
        let limits = limits(&answer(""), Some(5)).expect("the limits must be known");
        assert_eq!((limits.verdict, limits.text.as_str()), (Verdict::Good, "minimum 0, maximum 5, desired 1"));
        let reuse = "<InstanceReusePolicy><ReuseOnScaleIn>true</ReuseOnScaleIn></InstanceReusePolicy>";
        let verdict = |reuse: &str| warm_pool(&answer(reuse)).expect("a warm pool").verdict;
        assert_eq!((verdict(""), verdict(reuse)), (Verdict::Good, Verdict::Doubtful));
        assert_eq!(warm_pool("<R><AutoScalingGroups><member/></AutoScalingGroups></R>"), None);
    }
}
