//! Feature flags (`FF_…`) with gitlab-runner's names: default and effect of each.

/// The effect of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Has the same effect as in gitlab-runner.
    Honoured,
    /// Has the same effect as in gitlab-runner, only for jobs in containers.
    InContainers,
    /// Has no effect: mayfly always behaves as if the flag had this value.
    Always(bool),
    /// Has no effect, for this reason.
    NoEffect(&'static str),
}

use Support::{Always, Honoured, InContainers, NoEffect};

const STEPS: &str = "mayfly does not use the step runner";
const WINDOWS: &str = "it applies to Windows and PowerShell only";
const KUBERNETES: &str = "it applies to the Kubernetes executor only";
const LOCAL: &str = "the agent runs on the instance itself";
const FETCH: &str = "mayfly has only one way to fetch sources";
const STREAM: &str = "archives are streamed in one request";

/// A flag: name, default, effect.
pub type Flag = (&'static str, bool, Support);

/// All flags, sorted by name. Each is exported to jobs as a variable.
pub const FLAGS: &[Flag] = &[
    ("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", false, Honoured),
    ("FF_CONCRETE", false, NoEffect(STEPS)),
    ("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", false, Honoured),
    ("FF_DISABLE_POWERSHELL_STDIN", false, NoEffect(WINDOWS)),
    ("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR", false, InContainers),
    ("FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR", false, NoEffect(KUBERNETES)),
    ("FF_ENABLE_BASH_EXIT_CODE_CHECK", false, Honoured),
    ("FF_ENABLE_JOB_CLEANUP", false, Honoured),
    ("FF_ENABLE_JOB_INPUTS_INTERPOLATION", true, Honoured),
    ("FF_EXPORT_HIGH_CARDINALITY_METRICS", false, NoEffect("mayfly's metrics have no labels for single jobs")),
    ("FF_GIT_URLS_WITHOUT_TOKENS", false, Honoured),
    ("FF_HASH_CACHE_KEYS", false, Honoured),
    ("FF_KUBERNETES_HONOR_ENTRYPOINT", false, NoEffect(KUBERNETES)),
    ("FF_LOG_IMAGES_CONFIGURED_FOR_JOB", false, NoEffect(KUBERNETES)),
    ("FF_MASK_ALL_DEFAULT_TOKENS", true, Always(true)),
    ("FF_NETWORK_PER_BUILD", false, InContainers),
    ("FF_POSIXLY_CORRECT_ESCAPES", false, Always(true)),
    ("FF_PRINT_POD_EVENTS", false, NoEffect(KUBERNETES)),
    ("FF_RESOLVE_FULL_TLS_CHAIN", false, NoEffect("jobs always get the chain up to the trusted authority")),
    ("FF_SCRIPT_SECTIONS", false, Honoured),
    ("FF_SCRIPT_TO_STEP_MIGRATION", false, NoEffect(STEPS)),
    ("FF_SECRET_RESOLVING_FAILS_IF_MISSING", true, Always(true)),
    ("FF_SUSPENDABLE_ENVIRONMENTS", false, NoEffect("mayfly does not suspend environments")),
    ("FF_TEST_FEATURE", false, NoEffect("it exists only for the tests of gitlab-runner")),
    ("FF_TIMESTAMPS", true, Honoured),
    ("FF_USE_ADAPTIVE_REQUEST_CONCURRENCY", true, Honoured),
    ("FF_USE_ADVANCED_POD_SPEC_CONFIGURATION", false, NoEffect(KUBERNETES)),
    ("FF_USE_DIRECT_DOWNLOAD", true, Honoured),
    ("FF_USE_DOCKER_AUTOSCALER_DIAL_STDIO", true, NoEffect(LOCAL)),
    ("FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR", false, NoEffect(KUBERNETES)),
    ("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", false, NoEffect("GitLab sets the interval")),
    ("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", true, Honoured),
    ("FF_USE_FASTZIP", true, Always(true)),
    ("FF_USE_FLEETING_ACQUIRE_HEARTBEATS", false, NoEffect(LOCAL)),
    ("FF_USE_GITALY_CORRELATION_ID", true, Honoured),
    ("FF_USE_GIT_BUNDLE_URIS", true, Always(true)),
    ("FF_USE_GIT_NATIVE_CLONE", false, NoEffect(FETCH)),
    ("FF_USE_GIT_PROACTIVE_AUTH", false, NoEffect(FETCH)),
    ("FF_USE_INIT_WITH_DOCKER_EXECUTOR", false, InContainers),
    ("FF_USE_JOB_ROUTER", false, NoEffect("mayfly polls GitLab directly")),
    ("FF_USE_LEGACY_BASH_EVAL", false, NoEffect("mayfly never runs scripts with `eval`")),
    ("FF_USE_LEGACY_GCS_CACHE_ADAPTER", false, NoEffect("mayfly stores caches only on the instance and in S3")),
    ("FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY", false, NoEffect(KUBERNETES)),
    ("FF_USE_LEGACY_S3_CACHE_ADAPTER", false, NoEffect("mayfly has only one S3 client")),
    ("FF_USE_NATIVE_CONTAINER_STOP", false, InContainers),
    ("FF_USE_PARALLEL_ARTIFACT_TRANSFER", false, NoEffect(STREAM)),
    ("FF_USE_PARALLEL_CACHE_TRANSFER", false, NoEffect(STREAM)),
    ("FF_USE_POD_ACTIVE_DEADLINE_SECONDS", true, NoEffect(KUBERNETES)),
    ("FF_USE_POWERSHELL_PATH_RESOLVER", false, NoEffect(WINDOWS)),
    ("FF_USE_WINDOWS_JOB_OBJECT", false, NoEffect(WINDOWS)),
    ("FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", false, NoEffect(WINDOWS)),
    ("FF_WAIT_FOR_POD_TO_BE_REACHABLE", false, NoEffect(KUBERNETES)),
];

pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|(known, ..)| *known == name)
}

/// Why a flag with this value has no effect on the jobs of a runner; `None` if it has one.
pub fn idle_reason((_, _, effect): &Flag, value: bool, has_containers: bool) -> Option<String> {
    match effect {
        Honoured => None,
        InContainers if has_containers => None,
        InContainers => Some("it applies to jobs in containers only".to_owned()),
        Always(ours) if value == *ours => None,
        Always(ours) => Some(format!("mayfly always behaves as if it were {ours}")),
        NoEffect(why) => Some((*why).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sorted_and_unique() {
        assert!(FLAGS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn a_flag_without_effect_has_a_reason() {
        let reason = |name, value, has_containers| idle_reason(find(name).expect("known"), value, has_containers);
        assert_eq!(reason("FF_ENABLE_JOB_CLEANUP", true, false), None);
        assert_eq!(reason("FF_POSIXLY_CORRECT_ESCAPES", true, false), None, "what mayfly does anyway");
        assert!(reason("FF_USE_FASTZIP", false, false).is_some_and(|why| why.contains("as if it were true")));
        assert!(reason("FF_NETWORK_PER_BUILD", true, false).is_some());
        assert_eq!(reason("FF_NETWORK_PER_BUILD", true, true), None);
        assert!(reason("FF_USE_GIT_NATIVE_CLONE", true, true).is_some());
    }
}
