//! Reports the state of the instance and its permissions for `mayfly check`, without changing anything.

use std::time::Duration;

use super::autoscaling::LifecycleHook;
use super::client::AwsClient;
use super::endpoint::EC2;
use super::group::OwnGroup;
use super::region;
use super::transport::AwsRequest;
use super::xml::element;
use crate::instance::{CheckResult, POWER_OFF, Refusal, TargetState};

/// Checks the instance with this id, whose target lifecycle state is `target`.
pub fn check_all(
    id: &str,
    region: Option<&str>,
    group: &OwnGroup,
    target: Result<TargetState, Refusal>,
) -> Vec<CheckResult> {
    let instance = region::find(region).map(|region| format!("{id} in {region}"));
    let mut all = vec![CheckResult { subject: "instance", outcome: instance }];
    all.extend(check_group(group, target));
    all.extend(effect_of_power_off(id, region).map(|outcome| CheckResult { subject: POWER_OFF, outcome }));
    all
}

fn check_group(group: &OwnGroup, target: Result<TargetState, Refusal>) -> Vec<CheckResult> {
    let result = |outcome| CheckResult { subject: "Auto Scaling", outcome };
    if target == Ok(TargetState::NoGroup) {
        return vec![result(Ok("in no group".to_owned()))];
    }
    let described = group.name().and_then(|name| Ok(format!("group {name}, target lifecycle state {:?}", target?)));
    let hooks = group.hooks().map(|hooks| hook_names(&hooks)).map_err(|refusal| refusal.to_string());
    vec![
        result(described.map_err(|refusal| refusal.to_string())),
        CheckResult { subject: "lifecycle hooks", outcome: hooks },
    ]
}

fn hook_names(hooks: &[LifecycleHook]) -> String {
    match hooks {
        [] => "no hook holds an instance before its termination".to_owned(),
        hooks => hooks.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>().join(", "),
    }
}

/// The effect of a power off on the instance, because it is the last resort of a shutdown; `None` if the agent may not
/// read it.
fn effect_of_power_off(id: &str, region: Option<&str>) -> Option<Result<String, String>> {
    let parameters = [("InstanceId", id), ("Attribute", "instanceInitiatedShutdownBehavior")];
    let request = AwsRequest::query("2016-11-15", "DescribeInstanceAttribute", &parameters);
    let answer = AwsClient::new(EC2, region).call(&request, Duration::ZERO).ok()?;
    Some(match element(&answer, "value")?.as_str() {
        "terminate" => Ok("ends the instance".to_owned()),
        _ => Err("only stops the instance, which keeps costing money; set the shutdown behaviour of its launch \
                  template to `terminate`"
            .to_owned()),
    })
}
