//! Keys at the top level and below `[mayfly]`.

use super::ValueType::{Bool, Duration, List, Map, Number, Text};
use super::{Key, MANAGER, USAGE, key, no_effect, table};

const SESSION: &str = "mayfly has no web terminals";

/// Keys at the top level.
pub(super) const GLOBAL: &[Key] = &[
    key("concurrent", Number, "1", "Jobs at once on this machine, over all runners"),
    key("check_interval", Number, "3", "Seconds between two polls of a runner that got no job"),
    key("shutdown_timeout", Number, "30", "Seconds that running jobs have after SIGTERM"),
    key(
        "user",
        Text,
        "the agent's user",
        "User that runs the jobs; the agent must run as root. Without it, jobs can read the runner \
         token. With `%n` for the number of the slot (`ci-%n`), each slot has a user of its own \
         ([security.md](../security.md#a-user-for-jobs))",
    ),
    key("listen_address", Text, "none", "Address that serves [metrics and health](metrics.md)"),
    key("log_level", Text, "`info`", "`debug`, `info`, `warn` or `error`"),
    key("log_format", Text, "`runner`", "`runner`, `text` or `json`"),
    key("connection_max_age", Duration, "`\"15m\"`", "Time that an unused connection to GitLab is kept open"),
    key("labels", Map, "none", "Labels of this runner manager in GitLab, for all runners"),
    table("runners", "none", "`[[runners]]`: one table for each runner"),
    table("mayfly", "", "`[mayfly]`: keys that gitlab-runner does not have"),
    no_effect("sentry_dsn", USAGE),
    no_effect("session_server", SESSION),
    no_effect("machine", MANAGER),
    no_effect("experimental", USAGE),
];

/// Keys below `[mayfly]`.
pub(super) const MAYFLY: &[Key] = &[
    key(
        "state_dir",
        Text,
        "`/var/lib/mayfly`, or `~/.local/state/mayfly`; with `--config FILE`, a directory for that file \
         below it",
        "Directory of the journal and of the logs of running jobs: [the state directory](#the-state-directory)",
    ),
    key(
        "block_instance_metadata",
        Bool,
        "`false`",
        "Block access of jobs to the instance metadata service: [security](../security.md)",
    ),
    key("max_builds", Number, "no limit", "Shut down after this number of jobs"),
    key("idle_timeout", Duration, "no limit", "Shut down after this time without a job"),
    key("max_age", Duration, "no limit", "Shut down at this age, after the running jobs"),
    key(
        "leave",
        Text,
        "`\"aws-asg\"` in an Auto Scaling group, else `\"exit\"`",
        "What the agent does with the instance at shutdown: `\"exit\"`, `\"command\"`, `\"poweroff\"` or \
         `\"aws-asg\"`",
    ),
    key("leave_command", Text, "none", "Shell command for `leave = \"command\"`"),
    key(
        "poweroff_command",
        Text,
        "`\"systemctl poweroff\"`",
        "Shell command for `leave = \"poweroff\"` and for the fallback",
    ),
    key(
        "leave_fallback_after",
        Duration,
        "`\"5m\"`",
        "Time from unregistering until the agent powers off an instance that still runs",
    ),
    key(
        "min_free_space",
        Number,
        "a twentieth of the file system, 1 GiB at most",
        "Free bytes that the state, builds and cache directories need",
    ),
    key("min_free_inodes", Number, "a hundredth of the file system's, 10000 at most", "Free inodes that they need"),
    key(
        "max_system_failures",
        Number,
        "3",
        "Jobs in a row that may fail with `runner_system_failure` before the runner pauses; 0 for no \
         pause",
    ),
    key(
        "unfit",
        Text,
        "`\"wait\"`",
        "What the agent does on a machine that stays \
         [unfit](../guides/images.md#a-machine-that-cannot-run-jobs): `\"wait\"` or `\"leave\"`",
    ),
    key(
        "unfit_timeout",
        Duration,
        "`\"10m\"`",
        "Time that an unfit machine has before `unfit = \"leave\"` shuts it down",
    ),
    key(
        "ready_command",
        Text,
        "none",
        "Shell command that must succeed before the first poll; `instance_ready_command` of \
         `[runners.autoscaler]` likewise",
    ),
    key(
        "ready_timeout",
        Duration,
        "`\"10m\"`",
        "Time after which a machine counts as unfit if its commands have not succeeded",
    ),
    key("give_up_after", Duration, "never", "Time after which the agent powers off a machine without any runner"),
    key(
        "orphan_timeout",
        Duration,
        "`\"30m\"`",
        "For an agent of a `mayfly manager`: time without a response of the manager after which the agent \
         finishes its jobs and shuts down; with `leave = \"exit\"` it powers off. `0` for never",
    ),
    key(
        "instance_id",
        Text,
        "the cloud's instance id, or the machine id",
        "The id by which a `mayfly manager` knows this agent; `$NAME` is replaced. For several agents on \
         one machine",
    ),
    table("manager", "none", "`[mayfly.manager]`: settings of `mayfly manager`"),
    table("aws", "", "`[mayfly.aws]`"),
];

/// Keys below `[mayfly.manager]`.
pub(super) const MAYFLY_MANAGER: &[Key] = &[
    key("listen", Text, "`\":9443\"`", "Address where agents connect"),
    key(
        "certificate_file",
        Text,
        "required",
        "Certificate chain (PEM) that agents see; its name must be that of the agents' `url`",
    ),
    key("key_file", Text, "required", "Private key of the certificate (PEM)"),
    key(
        "plain_http",
        Bool,
        "`false`",
        "Serve HTTP without a certificate; tokens and job payloads then cross the network unencrypted",
    ),
    key(
        "agent_token",
        Text,
        "none",
        "Token that proves membership of the fleet, at least 8 characters; agents have it as `token`. \
         `aws-ssm:` and `aws-secretsmanager:` work as for runner tokens",
    ),
    key(
        "state_dir",
        Text,
        "`manager` below the state directory",
        "Directory for the jobs and agents that must survive a crash; mode 0700. Payloads and tokens in \
         it are encrypted with the file `key` beside them",
    ),
    key(
        "registration_timeout",
        Duration,
        "`\"5m\"`",
        "Time in which a running instance must register; the manager terminates one that does not. After \
         `failure_threshold` in a row, growth stops",
    ),
];

/// Keys below `[mayfly.aws]`.
pub(super) const MAYFLY_AWS: &[Key] = &[
    key(
        "region",
        Text,
        "`AWS_REGION`, `AWS_DEFAULT_REGION`, the profile, the instance's region",
        "Region of the AWS APIs",
    ),
    key(
        "auto_scaling_group",
        Text,
        "the instance's tag, or `DescribeAutoScalingInstances`",
        "Name of the Auto Scaling group",
    ),
    key(
        "lifecycle_hooks",
        List,
        "`DescribeLifecycleHooks`",
        "Names of the terminating hooks that the agent completes; `[]` for none",
    ),
    key("protect_while_busy", Bool, "`true` with `leave = \"aws-asg\"`", "Set scale-in protection while a job runs"),
    table("raise_on_job", "off", "`[mayfly.aws.raise_on_job]`: raise the desired capacity when jobs start"),
];

/// Keys below `[mayfly.aws.raise_on_job]`.
pub(super) const RAISE: &[Key] = &[
    key("idle_count", Number, "1", "Idle instances to keep beside the busy ones"),
    key("scale_factor", Number, "0", "Idle instances for each busy one, if that is more than `idle_count`"),
    key("scale_factor_limit", Number, "0 (no limit)", "Maximum of the idle instances that `scale_factor` gives"),
];
