//! Warnings about settings that are likely mistakes on this machine.

use crate::config::leave::{LeaveSettings, LeaveStrategy};
use crate::config::lifetime::LifetimeBounds;
use crate::instance::Instance;

/// Returns a warning if the `leave` settings, with their defaults applied, are likely wrong for this machine.
pub fn shutdown_warning(bounds: &LifetimeBounds, leave: &LeaveSettings, instance: &dyn Instance) -> Option<String> {
    let bound = [
        ("max_builds", bounds.max_builds.is_some()),
        ("idle_timeout", !bounds.idle.is_empty()),
        ("max_age", bounds.max_age.is_some()),
    ];
    let bound = bound.into_iter().find(|(_, is_set)| *is_set).map(|(key, _)| key);
    match (leave.strategy, bound, instance.cloud(), instance.is_in_group()) {
        (LeaveStrategy::Exit, Some(bound), Some(_), true) => Some(format!(
            "`leave = \"exit\"` with `{bound}`: the agent exits, but its instance of the Auto Scaling group keeps running \
             without taking jobs, and costs money; remove `leave`, or set it to \"aws-asg\""
        )),
        (LeaveStrategy::Exit, Some(bound), Some(cloud), false) => Some(format!(
            "`leave = \"exit\"` with `{bound}`: the agent exits, but the {cloud} instance keeps running without taking \
             jobs, and costs money; set `leave = \"poweroff\"` below [mayfly]"
        )),
        (LeaveStrategy::Poweroff, _, _, true) => Some(
            "`leave = \"poweroff\"` inside an Auto Scaling group: the group replaces each instance that powers off; remove \
             `leave`, or set it to \"aws-asg\""
                .to_owned(),
        ),
        _ => None,
    }
}
