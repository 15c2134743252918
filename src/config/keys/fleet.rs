//! Keys of fleets.

use super::ValueType::{Duration, List, Number, Text};
use super::{Key, key, manager_only, no_effect, table};

const BUCKETS: &str = "an agent measures only its own instance";
const FLOOR: &str = "MinSize of the Auto Scaling group is the minimum, and every instance polls by itself";
const CEILING: &str = "MaxSize of the Auto Scaling group is the limit";
const GROWTH: &str = "the Auto Scaling group starts instances according to its desired capacity";
const TEMPLATE: &str = "the launch template of the Auto Scaling group defines the instances";
const ON_THE_SPOT: &str = "the agent runs on the instance; nothing connects to it";
const OFF_PEAK: &str = "gitlab-runner 14.0 removed it; use [[runners.machine.autoscaling]]";
const OWN_END: &str = "an instance terminates itself, within leave_fallback_after";

/// Keys below `[runners.machine]`.
pub(super) const MACHINE: &[Key] = &[
    key("MaxBuilds", Number, "no limit", "As `max_builds` below `[mayfly]`"),
    key("IdleTime", Number, "no limit", "Seconds; as `idle_timeout` below `[mayfly]`"),
    table("autoscaling", "", "`[[runners.machine.autoscaling]]`"),
    manager_only("IdleCount", FLOOR),
    manager_only("IdleCountMin", FLOOR),
    manager_only("IdleScaleFactor", FLOOR),
    manager_only("MaxGrowthRate", GROWTH),
    no_effect("MachineName", TEMPLATE),
    no_effect("MachineDriver", TEMPLATE),
    no_effect("MachineOptions", TEMPLATE),
    no_effect("MachineOptionsWithName", TEMPLATE),
    no_effect("MaxRemovalAttempts", OWN_END),
    no_effect("OffPeakPeriods", OFF_PEAK),
    no_effect("OffPeakTimezone", OFF_PEAK),
    no_effect("OffPeakIdleCount", OFF_PEAK),
    no_effect("OffPeakIdleTime", OFF_PEAK),
    no_effect("shutdown_drain", OWN_END),
];

/// Keys below `[[runners.machine.autoscaling]]`.
pub(super) const MACHINE_AUTOSCALING: &[Key] = &[
    key("Periods", List, "required", "When this section applies: [periods](../guides/shutdown.md#periods)"),
    key("Timezone", Text, "the machine's", "Time zone of the periods"),
    key("IdleTime", Number, "0", "Seconds; as above"),
    manager_only("IdleCount", FLOOR),
    manager_only("IdleCountMin", FLOOR),
    manager_only("IdleScaleFactor", FLOOR),
];

/// Keys below `[runners.autoscaler]`.
pub(super) const AUTOSCALER: &[Key] = &[
    key("max_use_count", Number, "no limit", "As `max_builds` below `[mayfly]`"),
    key("capacity_per_instance", Number, "1", "Jobs at once on this instance"),
    key(
        "instance_ready_command",
        Text,
        "none",
        "Shell command that must succeed before the first poll, as [`ready_command`](#mayfly)",
    ),
    table("policy", "", "`[[runners.autoscaler.policy]]`"),
    manager_only("max_instances", CEILING),
    manager_only("plugin", TEMPLATE),
    manager_only("plugin_config", TEMPLATE),
    no_effect("connector_config", ON_THE_SPOT),
    no_effect("log_internal_ip", ON_THE_SPOT),
    no_effect("log_external_ip", ON_THE_SPOT),
    manager_only("instance_acquire_timeout", "the agent polls only if a slot is free"),
    manager_only("update_interval", GROWTH),
    manager_only("update_interval_when_expecting", GROWTH),
    manager_only("deletion_retry_interval", OWN_END),
    manager_only("delete_instances_on_shutdown", OWN_END),
    manager_only("shutdown_deletion_interval", OWN_END),
    manager_only("shutdown_deletion_retries", OWN_END),
    manager_only("failure_threshold", "the Auto Scaling group checks the health of its instances"),
    no_effect("reservation_throttling", "the agent polls only if a slot is free"),
    manager_only("scale_throttle", GROWTH),
    no_effect("instance_operation_time_buckets", BUCKETS),
    no_effect("instance_creation_time_buckets", BUCKETS),
    no_effect("instance_is_running_time_buckets", BUCKETS),
    no_effect("instance_deletion_time_buckets", BUCKETS),
    no_effect("instance_readiness_time_buckets", BUCKETS),
    no_effect("instance_life_duration_buckets", BUCKETS),
    no_effect("vm_isolation", "mayfly runs no virtual machines inside an instance"),
    no_effect("state_storage", "the journal below state_dir is always on"),
];

/// Keys below `[[runners.autoscaler.policy]]`.
pub(super) const AUTOSCALER_POLICY: &[Key] = &[
    key("periods", List, "always", "When this policy applies: [periods](../guides/shutdown.md#periods)"),
    key("timezone", Text, "the machine's", "Time zone of the periods"),
    key("idle_time", Duration, "`\"5m\"`", "As `idle_timeout` below `[mayfly]`"),
    manager_only("idle_count", FLOOR),
    manager_only("scale_factor", FLOOR),
    manager_only("scale_factor_limit", CEILING),
    manager_only("preemptive_mode", FLOOR),
];
