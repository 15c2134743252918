//! Keys of a runner: `[[runners]]` and its tables, without containers, caches and fleets.

use super::ValueType::{Bool, Duration, List, Map, Number, Text, Time};
use super::{Key, MANAGER, USAGE, as_above, key, no_effect, table, table_as_above};

const MONITORING: &str = "metrics are the same for all runners; see `listen_address`";
const OTHER_EXECUTOR: &str = "this executor does not exist in mayfly";

/// Keys below `[[runners]]`.
pub(super) const RUNNER: &[Key] = &[
    key("name", Text, "empty", "Name of the runner in logs and metrics"),
    key("url", Text, "required", "URL of GitLab"),
    key(
        "token",
        Text,
        "required",
        "Authentication token (`glrt-…`), or [where it is stored in AWS](aws.md#runner-tokens)",
    ),
    key("id", Number, "", "Written by `mayfly register` and by token rotation"),
    as_above("token_obtained_at", Time),
    as_above("token_expires_at", Time),
    key(
        "executor",
        Text,
        "required for GitLab",
        "`shell`, `instance`, `docker`, `docker-autoscaler` or `docker+machine`; not needed if `url` is \
         a `mayfly manager`, which sends it with each job",
    ),
    key("limit", Number, "0 (no limit)", "Jobs of this runner at once").shown_flag(
        "limit",
        "RUNNER_LIMIT",
        "JOBS",
        "Maximum number of concurrent jobs of this runner",
    ),
    key("request_concurrency", Number, "1", "Polls of this runner at once").shown_flag(
        "request-concurrency",
        "RUNNER_REQUEST_CONCURRENCY",
        "POLLS",
        "Maximum number of concurrent polls of this runner",
    ),
    key("strict_check_interval", Bool, "`false`", "Wait for `check_interval` also after a poll that returned a job")
        .flag("strict-check-interval", "RUNNER_STRICT_CHECK_INTERVAL"),
    key("output_limit", Number, "4096", "KiB of a job's log").shown_flag(
        "output-limit",
        "RUNNER_OUTPUT_LIMIT",
        "KIB",
        "Maximum size of a job's log in KiB",
    ),
    key("shell", Text, "`bash` if it exists, else `sh`", "`bash` or `sh`").shown_flag(
        "shell",
        "RUNNER_SHELL",
        "SHELL",
        "The shell that runs scripts: bash or sh",
    ),
    key("environment", List, "none", "`[\"NAME=value\"]`: variables of every job").shown_flag(
        "env",
        "RUNNER_ENV",
        "KEY=VALUE",
        "A variable of every job; repeatable",
    ),
    key(
        "builds_dir",
        Text,
        "`builds` in the working directory",
        "Directory of the builds; for jobs in containers the path inside the container (`/builds`)",
    )
    .shown_flag("builds-dir", "RUNNER_BUILDS_DIR", "DIR", "The directory of the builds"),
    key(
        "cache_dir",
        Text,
        "`cache` in the working directory",
        "Directory of local caches; for jobs in containers see `[runners.mayfly]`",
    )
    .flag("cache-dir", "RUNNER_CACHE_DIR"),
    key("clone_url", Text, "`url`", "URL that git uses instead of `url`").shown_flag(
        "clone-url",
        "CLONE_URL",
        "URL",
        "The URL that git uses instead of --url",
    ),
    key("pre_get_sources_script", Text, "none", "Script before and after the sources are fetched").shown_flag(
        "pre-get-sources-script",
        "RUNNER_PRE_GET_SOURCES_SCRIPT",
        "SCRIPT",
        "Commands to run before the sources are fetched",
    ),
    as_above("post_get_sources_script", Text).shown_flag(
        "post-get-sources-script",
        "RUNNER_POST_GET_SOURCES_SCRIPT",
        "SCRIPT",
        "Commands to run after the sources are fetched",
    ),
    key("pre_build_script", Text, "none", "Script before and after `script`, in the same shell").shown_flag(
        "pre-build-script",
        "RUNNER_PRE_BUILD_SCRIPT",
        "SCRIPT",
        "Commands to run before the script of each job, in the same shell",
    ),
    as_above("post_build_script", Text).shown_flag(
        "post-build-script",
        "RUNNER_POST_BUILD_SCRIPT",
        "SCRIPT",
        "Commands to run after the script of each job, in the same shell",
    ),
    key(
        "prepare_timeout",
        Duration,
        "the job's timeout",
        "Limit for images, services and containers, until the sources are fetched",
    )
    .flag("prepare-timeout", "RUNNER_PREPARE_TIMEOUT"),
    key("get_sources_timeout", Duration, "the job's timeout", "Limit for fetching the sources")
        .flag("get-sources-timeout", "RUNNER_GET_SOURCES_TIMEOUT"),
    key("unhealthy_requests_limit", Number, "3", "Rejected polls in a row after which polling pauses")
        .flag("unhealthy-requests-limit", "RUNNER_UNHEALTHY_REQUESTS_LIMIT"),
    key("unhealthy_interval", Duration, "`\"1h\"`", "Length of that pause").flag("unhealthy-interval", ""),
    key("job_status_final_update_retry_limit", Number, "10", "Attempts to report the final state of a job")
        .flag("job-status-final-update-retry-limit", "RUNNER_job_status_final_update_retry_limit"),
    key("debug_trace_disabled", Bool, "`false`", "Ignore `CI_DEBUG_TRACE`")
        .flag("debug-trace-disabled", "RUNNER_DEBUG_TRACE_DISABLED"),
    key("labels", Map, "none", "Labels of this runner manager in GitLab"),
    key(
        "tls-ca-file",
        Text,
        "`certs/HOST.crt` beside `config.toml`, if it exists",
        "CA certificates that are trusted in addition to the system's",
    )
    .shown_flag(
        "tls-ca-file",
        "CI_SERVER_TLS_CA_FILE",
        "FILE",
        "A file with certificate authorities to trust in addition to the system's",
    ),
    key("tls-cert-file", Text, "`certs/HOST.auth.crt`, `certs/HOST.auth.key`", "Client certificate and key")
        .shown_flag("tls-cert-file", "CI_SERVER_TLS_CERT_FILE", "FILE", "The client certificate"),
    as_above("tls-key-file", Text).shown_flag(
        "tls-key-file",
        "CI_SERVER_TLS_KEY_FILE",
        "FILE",
        "The key of the client certificate",
    ),
    table("custom_build_dir", "", "Tables; see below and [`[runners.docker]`](docker.md)"),
    table_as_above("feature_flags").flag("feature-flags", "FEATURE_FLAGS"),
    table_as_above("artifact"),
    table_as_above("cache"),
    table_as_above("docker"),
    table_as_above("machine"),
    table_as_above("autoscaler"),
    table_as_above("mayfly"),
    no_effect("safe_directory_checkout", "the user that owns the sources fetches them")
        .of_kind(Bool)
        .flag("safe-directory-checkout", ""),
    no_effect("clean_git_config", "the agent always rewrites git's configuration")
        .of_kind(Bool)
        .flag("clean-git-config", ""),
    no_effect("pre_clone_script", "it was renamed to pre_get_sources_script"),
    no_effect("post_clone_script", "it was renamed to post_get_sources_script"),
    no_effect("proxy_exec", "the shim replaces it").of_kind(Bool).flag("proxy-exec", ""),
    no_effect("use_slot_cgroups", "each script has its own control group"),
    no_effect("slot_cgroup_template", "each script has its own control group"),
    no_effect("instance", MANAGER),
    no_effect("ssh", OTHER_EXECUTOR),
    no_effect("kubernetes", OTHER_EXECUTOR),
    no_effect("custom", OTHER_EXECUTOR),
    no_effect("parallels", OTHER_EXECUTOR),
    no_effect("virtualbox", OTHER_EXECUTOR),
    no_effect("monitoring", MONITORING),
    no_effect("referees", "mayfly does not upload machine metrics with a job"),
    no_effect("experimental", USAGE),
];

/// Keys below `[runners.mayfly]`.
pub(super) const RUNNER_MAYFLY: &[Key] = &[
    key("kill_grace", Duration, "`\"10s\"`", "Time from SIGTERM to SIGKILL for the processes of a job"),
    key("cgroups", Bool, "`true`", "Create a control group for each script"),
    key(
        "builds_dir",
        Text,
        "`builds` in the working directory",
        "Jobs in containers: directory of the builds on the machine",
    ),
    key(
        "cache_dir",
        Text,
        "`cache` in the working directory",
        "Jobs in containers: directory of local caches on the machine",
    ),
    key(
        "cache_max_size",
        Number,
        "no limit",
        "Bytes of all local caches; the agent deletes the least recently used first",
    ),
    key("cache_max_age", Duration, "no limit", "The agent deletes local caches that were not used for this time"),
    key(
        "builds_max_size",
        Number,
        "no limit",
        "Bytes of the build directories that finished jobs left; the agent deletes the least recently \
         used first, never one that a job uses. Directories of an earlier version, of gitlab-runner and of former \
         runner tokens count too, except those of `GIT_CLONE_PATH`",
    ),
    key("builds_max_age", Duration, "no limit", "The agent deletes build directories that no job used for this time"),
    key(
        "images_max_age",
        Duration,
        "no limit",
        "Jobs in containers: the agent deletes images that its jobs pulled and that no job used for this \
         time. It keeps images that it did not pull, that a container uses, or that have another name as well",
    ),
    key(
        "cache_volumes_max_size",
        Number,
        "no limit",
        "Jobs in containers: bytes of all volumes that `volumes = [\"/cache\"]` creates on one engine; \
         the agent deletes the least recently used first, never one that a job uses. It does not \
         count volumes that gitlab-runner made until a job of this agent uses them, nor directories below \
         `cache_dir` of `[runners.docker]`",
    ),
    key(
        "cache_volumes_max_age",
        Duration,
        "no limit",
        "Jobs in containers: the agent deletes those volumes that no job used for this time",
    ),
    key("ecr_login", Bool, "`true`", "Jobs in containers: get registry credentials from Amazon ECR"),
    key(
        "confined_uid",
        Number,
        "`1900000000`",
        "Jobs in containers: user of the [sandbox](../security.md#sandbox); must be unused on the machine",
    ),
    key(
        "confined_memory",
        Text,
        "half of the memory",
        "Memory limit of the sandbox if `[runners.docker]` has no `memory`",
    ),
    key("confined_processes", Number, "`1024`", "Limit of processes and threads in the sandbox"),
    key(
        "allowed_credential_helpers",
        List,
        "none",
        "Jobs in containers: names of the `docker-credential-NAME` programs that `DOCKER_AUTH_CONFIG` of \
         a job may use",
    ),
    key("auto_scaling_group", Text, "none", "For `mayfly manager`: the Auto Scaling group of a `docker+machine` pool"),
    key("region", Text, "detected", "For `mayfly manager`: the region of that group"),
    key(
        "agent_role",
        Text,
        "none",
        "For `mayfly manager`: ARN of the instances' role. Agents of the pool then prove this role with \
         a signed STS request (`token = \"aws-sts\"`) instead of the fleet's token",
    ),
];

/// Keys below `[runners.custom_build_dir]`.
pub(super) const CUSTOM_BUILD_DIR: &[Key] =
    &[key("enabled", Bool, "`true` for containers, else `false`", "Allow `GIT_CLONE_PATH` below `builds_dir`")
        .flag("custom-build-dir-enabled", "CUSTOM_BUILD_DIR_ENABLED")];

/// Keys below `[runners.artifact]`.
pub(super) const ARTIFACT: &[Key] = &[
    key("upload_timeout", Duration, "`\"1h\"`", "Limit for one upload"),
    key("response_header_timeout", Duration, "`\"10m\"`", "Limit from the end of the upload until GitLab answers"),
];
