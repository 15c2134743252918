//! Instances that a group could not start, from its scaling activities.

use jiff::Timestamp;

use crate::instance::aws::xml::members;
use crate::manager::engine::{FailedStart, FailureKind};

/// Parts of AWS messages, and the kind of failure that each one means; the first match applies.
const MESSAGE_PARTS: [(&str, FailureKind); 16] = [
    ("InstanceLimitExceeded", FailureKind::Quota),
    ("VcpuLimitExceeded", FailureKind::Quota),
    ("vCPU capacity", FailureKind::Quota),
    ("MaxSpotInstanceCountExceeded", FailureKind::Quota),
    ("You have requested more", FailureKind::Quota),
    ("limit exceeded", FailureKind::Quota),
    ("InsufficientInstanceCapacity", FailureKind::Capacity),
    ("do not have sufficient", FailureKind::Capacity),
    ("no Spot capacity", FailureKind::Capacity),
    ("InsufficientFreeAddressesInSubnet", FailureKind::Capacity),
    ("InvalidAMIID", FailureKind::Image),
    ("AMI", FailureKind::Image),
    ("image id", FailureKind::Image),
    ("launch template", FailureKind::LaunchTemplate),
    ("Launch template", FailureKind::LaunchTemplate),
    ("LaunchTemplate", FailureKind::LaunchTemplate),
];

/// The failed launches in a response of `DescribeScalingActivities`, the oldest first. Errors: the response is not XML.
pub fn failed_launches(response: &str, since: Timestamp) -> Result<Vec<FailedStart>, String> {
    let names = ["StatusCode", "StatusMessage", "StartTime", "Description", "Cause"];
    let all = members(response, "Activities", names)?;
    let mut failed: Vec<FailedStart> = all
        .into_iter()
        .filter(|[status, _, _, description, _]| {
            let launches = description.as_deref().is_none_or(|text| text.starts_with("Launching"));
            matches!(status.as_deref(), Some("Failed" | "Cancelled")) && launches
        })
        .filter_map(|[_, message, at, description, cause]| {
            let at: Timestamp = at?.parse().ok()?;
            let text = [message, description, cause].into_iter().flatten().find(|text| !text.is_empty())?;
            (at >= since).then(|| FailedStart { at, kind: kind(&text), cause: one_line(&text) })
        })
        .collect();
    failed.sort_unstable_by_key(|failed| failed.at);
    Ok(failed)
}

fn kind(text: &str) -> FailureKind {
    MESSAGE_PARTS.iter().find(|(word, _)| text.contains(word)).map_or(FailureKind::Other, |(_, kind)| *kind)
}

fn one_line(text: &str) -> String {
    const MAX_CAUSE_CHARS: usize = 300;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_CAUSE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_aws_have_their_kind() {
        for (text, expected) in [
            (
                "You have requested more vCPU capacity than your current vCPU limit of 32 allows for the instance bucket \
                 that the specified instance type belongs to. Launching EC2 instance failed.",
                FailureKind::Quota,
            ),
            (
                "Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded.",
                FailureKind::Quota,
            ),
            (
                "We currently do not have sufficient c7i.large capacity in the Availability Zone you requested \
                 (eu-west-1a). Launching EC2 instance failed.",
                FailureKind::Capacity,
            ),
            ("The image id '[ami-1]' does not exist. Launching EC2 instance failed.", FailureKind::Image),
            (
                "You must use a valid fully-formed launch template. Launching EC2 instance failed.",
                FailureKind::LaunchTemplate,
            ),
            ("Authentication Failure. Launching EC2 instance failed.", FailureKind::Other),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn only_failed_launches_after_a_time_count() {
        let activity = |status: &str, at: &str, description: &str| {
            format!(
                "<member><Description>{description}</Description><StatusCode>{status}</StatusCode><StartTime>{at}</StartTime>\
                 <StatusMessage>Because\n  of {at}</StatusMessage></member>"
            )
        };
        let xml = format!(
            "<R><Activities>{}{}{}{}</Activities></R>",
            activity("Failed", "2026-01-02T00:00:05Z", "Launching a new EC2 instance"),
            activity("Failed", "2026-01-02T00:00:03Z", "Launching a new EC2 instance: i-1"),
            activity("Successful", "2026-01-02T00:00:04Z", "Launching a new EC2 instance: i-2"),
            activity("Failed", "2026-01-01T00:00:00Z", "Launching a new EC2 instance"),
        );
        let failed = failed_launches(&xml, "2026-01-02T00:00:00Z".parse().expect("a time")).expect("must be XML");
        let causes: Vec<&str> = failed.iter().map(|failed| failed.cause.as_str()).collect();
        assert_eq!(causes, ["Because of 2026-01-02T00:00:03Z", "Because of 2026-01-02T00:00:05Z"]);
        assert!(failed_launches("no XML", Timestamp::UNIX_EPOCH).is_err());
    }
}
