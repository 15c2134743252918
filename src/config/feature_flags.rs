//! Feature flags (`FF_…`) with gitlab-runner's names: default, effect and meaning of each.

/// The effect of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagSupport {
    /// Has the same effect as in gitlab-runner.
    Honoured,
    /// Has the same effect as in gitlab-runner, only for jobs in containers.
    InContainers,
    /// Has no effect: mayfly always behaves as if the flag had this value.
    Always(bool),
    /// Has no effect, for this reason.
    NoEffect(&'static str),
}

use FlagSupport::{Always, Honoured, InContainers, NoEffect};

const STEPS: &str = "mayfly does not use the step runner";
const WINDOWS: &str = "it applies to Windows and PowerShell only";
const KUBERNETES: &str = "it applies to the Kubernetes executor only";
const LOCAL: &str = "the agent runs on the instance itself";
const FETCH: &str = "mayfly has only one way to fetch sources";
const STREAM: &str = "archives are streamed in one request";

/// A feature flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureFlag {
    pub name: &'static str,
    /// The value that gitlab-runner uses by default.
    pub default: bool,
    pub support: FlagSupport,
    /// The effect of the flag, for the documentation.
    #[cfg(test)]
    pub meaning: &'static str,
}

const fn flag(name: &'static str, default: bool, support: FlagSupport, meaning: &'static str) -> FeatureFlag {
    #[cfg(not(test))]
    let _ = meaning;
    FeatureFlag {
        name,
        default,
        support,
        #[cfg(test)]
        meaning,
    }
}

const fn honoured(name: &'static str, default: bool, meaning: &'static str) -> FeatureFlag {
    flag(name, default, Honoured, meaning)
}

const fn in_containers(name: &'static str, default: bool, meaning: &'static str) -> FeatureFlag {
    flag(name, default, InContainers, meaning)
}

const fn always(name: &'static str, default: bool, value: bool) -> FeatureFlag {
    flag(name, default, Always(value), "")
}

const fn no_effect(name: &'static str, default: bool, why: &'static str) -> FeatureFlag {
    flag(name, default, NoEffect(why), "")
}

const ON: bool = true;
const OFF: bool = false;

/// All flags, sorted by name. Each is exported to jobs as a variable.
pub const FLAGS: &[FeatureFlag] = &[
    honoured("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", OFF, "Delete the files that a failed cache extraction wrote"),
    no_effect("FF_CONCRETE", OFF, STEPS),
    honoured("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", OFF, "Do not replace the runner token before it expires"),
    no_effect("FF_DISABLE_POWERSHELL_STDIN", OFF, WINDOWS),
    in_containers(
        "FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR",
        OFF,
        "Containers: keep the usual umask and give the files to the container's user",
    ),
    no_effect("FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR", OFF, KUBERNETES),
    honoured("FF_ENABLE_BASH_EXIT_CODE_CHECK", OFF, "Check the exit status after each line, in addition to `set -e`"),
    honoured("FF_ENABLE_JOB_CLEANUP", OFF, "Clean the project directory after the job"),
    honoured("FF_ENABLE_JOB_INPUTS_INTERPOLATION", ON, "Replace `${{ … }}` expressions in the job"),
    no_effect("FF_EXPORT_HIGH_CARDINALITY_METRICS", OFF, "mayfly's metrics have no labels for single jobs"),
    honoured("FF_GIT_URLS_WITHOUT_TOKENS", OFF, "Git gets the job token from the agent, so that no file contains it"),
    honoured("FF_HASH_CACHE_KEYS", OFF, "Name caches by the SHA-256 of their key"),
    no_effect("FF_KUBERNETES_HONOR_ENTRYPOINT", OFF, KUBERNETES),
    no_effect("FF_LOG_IMAGES_CONFIGURED_FOR_JOB", OFF, KUBERNETES),
    always("FF_MASK_ALL_DEFAULT_TOKENS", ON, ON),
    in_containers("FF_NETWORK_PER_BUILD", OFF, "Containers: one network for each job"),
    always("FF_POSIXLY_CORRECT_ESCAPES", OFF, ON),
    no_effect("FF_PRINT_POD_EVENTS", OFF, KUBERNETES),
    no_effect("FF_RESOLVE_FULL_TLS_CHAIN", OFF, "jobs always get the chain up to the trusted authority"),
    honoured("FF_SCRIPT_SECTIONS", OFF, "A collapsible log section for each multi-line command"),
    no_effect("FF_SCRIPT_TO_STEP_MIGRATION", OFF, STEPS),
    always("FF_SECRET_RESOLVING_FAILS_IF_MISSING", ON, ON),
    no_effect("FF_SUSPENDABLE_ENVIRONMENTS", OFF, "mayfly does not suspend environments"),
    no_effect("FF_TEST_FEATURE", OFF, "it exists only for the tests of gitlab-runner"),
    honoured("FF_TIMESTAMPS", ON, "Timestamps in the job's log"),
    honoured(
        "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY",
        ON,
        "Start with one poll of a runner, and adapt up to `request_concurrency`",
    ),
    no_effect("FF_USE_ADVANCED_POD_SPEC_CONFIGURATION", OFF, KUBERNETES),
    honoured("FF_USE_DIRECT_DOWNLOAD", ON, "Download artifacts from the object store when GitLab offers it"),
    no_effect("FF_USE_DOCKER_AUTOSCALER_DIAL_STDIO", ON, LOCAL),
    no_effect("FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR", OFF, KUBERNETES),
    no_effect("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", OFF, "GitLab sets the interval"),
    honoured(
        "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY",
        ON,
        "Wait longer between attempts of a stage: 5 seconds at first, 5 minutes at most",
    ),
    always("FF_USE_FASTZIP", ON, ON),
    no_effect("FF_USE_FLEETING_ACQUIRE_HEARTBEATS", OFF, LOCAL),
    honoured("FF_USE_GITALY_CORRELATION_ID", ON, "Send the correlation id of the job with git requests"),
    always("FF_USE_GIT_BUNDLE_URIS", ON, ON),
    no_effect("FF_USE_GIT_NATIVE_CLONE", OFF, FETCH),
    no_effect("FF_USE_GIT_PROACTIVE_AUTH", OFF, FETCH),
    in_containers("FF_USE_INIT_WITH_DOCKER_EXECUTOR", OFF, "Containers: run an init process as PID 1"),
    no_effect("FF_USE_JOB_ROUTER", OFF, "mayfly polls GitLab directly"),
    no_effect("FF_USE_LEGACY_BASH_EVAL", OFF, "mayfly never runs scripts with `eval`"),
    no_effect("FF_USE_LEGACY_GCS_CACHE_ADAPTER", OFF, "mayfly stores caches only on the instance and in S3"),
    no_effect("FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY", OFF, KUBERNETES),
    no_effect("FF_USE_LEGACY_S3_CACHE_ADAPTER", OFF, "mayfly has only one S3 client"),
    in_containers("FF_USE_NATIVE_CONTAINER_STOP", OFF, "Containers: stop scripts with the image's stop signal"),
    no_effect("FF_USE_PARALLEL_ARTIFACT_TRANSFER", OFF, STREAM),
    no_effect("FF_USE_PARALLEL_CACHE_TRANSFER", OFF, STREAM),
    no_effect("FF_USE_POD_ACTIVE_DEADLINE_SECONDS", ON, KUBERNETES),
    no_effect("FF_USE_POWERSHELL_PATH_RESOLVER", OFF, WINDOWS),
    no_effect("FF_USE_WINDOWS_JOB_OBJECT", OFF, WINDOWS),
    no_effect("FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", OFF, WINDOWS),
    no_effect("FF_WAIT_FOR_POD_TO_BE_REACHABLE", OFF, KUBERNETES),
];

pub fn find(name: &str) -> Option<&'static FeatureFlag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Why a flag with this value has no effect on the jobs of a runner; `None` if the flag has an effect.
pub fn idle_reason(flag: &FeatureFlag, value: bool, has_containers: bool) -> Option<String> {
    match flag.support {
        Honoured => None,
        InContainers if has_containers => None,
        InContainers => Some("it applies to jobs in containers only".to_owned()),
        Always(ours) if value == ours => None,
        Always(ours) => Some(format!("mayfly always behaves as if it were {ours}")),
        NoEffect(why) => Some(why.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sorted_and_unique() {
        assert!(FLAGS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn a_flag_without_effect_has_a_reason() {
        let reason = |name, value, has_containers| {
            idle_reason(find(name).expect("the feature flag must be known"), value, has_containers)
        };
        assert_eq!(reason("FF_ENABLE_JOB_CLEANUP", true, false), None);
        assert_eq!(reason("FF_POSIXLY_CORRECT_ESCAPES", true, false), None, "what mayfly does anyway");
        assert!(reason("FF_USE_FASTZIP", false, false).is_some_and(|why| why.contains("as if it were true")));
        assert!(reason("FF_NETWORK_PER_BUILD", true, false).is_some());
        assert_eq!(reason("FF_NETWORK_PER_BUILD", true, true), None);
        assert!(reason("FF_USE_GIT_NATIVE_CLONE", true, true).is_some());
    }
}
