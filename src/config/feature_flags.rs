//! Feature flags (`FF_…`) by gitlab-runner's names: default and effect of each, in one table.

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As in gitlab-runner.
    Honoured,
    /// As in gitlab-runner for jobs in containers; no effect on other jobs.
    InContainers,
    /// No effect: mayfly always behaves as if the flag had this value.
    Always(bool),
    /// No effect, for this reason.
    NoEffect(&'static str),
}

use Support::{Always, Honoured, InContainers, NoEffect};

const STEPS: &str = "scripts run without the step runner";
const WINDOWS: &str = "it is about Windows and PowerShell";
const KUBERNETES: &str = "it is about the Kubernetes executor";
const LOCAL: &str = "the agent runs on the instance itself";
const FETCH: &str = "sources are always fetched in one way";
const STREAM: &str = "archives are streamed in one request";

/// A flag: name, default, effect.
pub type Flag = (&'static str, bool, Support);

/// All flags, in the order of their names. Jobs get each of them as a variable.
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
    ("FF_EXPORT_HIGH_CARDINALITY_METRICS", false, NoEffect("metrics have no labels of single jobs")),
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
    ("FF_SUSPENDABLE_ENVIRONMENTS", false, NoEffect("environments are not suspended")),
    ("FF_TEST_FEATURE", false, NoEffect("it only exists for the tests of gitlab-runner")),
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
    ("FF_USE_JOB_ROUTER", false, NoEffect("jobs are requested from GitLab itself")),
    ("FF_USE_LEGACY_BASH_EVAL", false, NoEffect("scripts are never evaluated by `eval`")),
    ("FF_USE_LEGACY_GCS_CACHE_ADAPTER", false, NoEffect("caches are kept on the instance and in S3")),
    ("FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY", false, NoEffect(KUBERNETES)),
    ("FF_USE_LEGACY_S3_CACHE_ADAPTER", false, NoEffect("there is one S3 client")),
    ("FF_USE_NATIVE_CONTAINER_STOP", false, InContainers),
    ("FF_USE_PARALLEL_ARTIFACT_TRANSFER", false, NoEffect(STREAM)),
    ("FF_USE_PARALLEL_CACHE_TRANSFER", false, NoEffect(STREAM)),
    ("FF_USE_POD_ACTIVE_DEADLINE_SECONDS", true, NoEffect(KUBERNETES)),
    ("FF_USE_POWERSHELL_PATH_RESOLVER", false, NoEffect(WINDOWS)),
    ("FF_USE_WINDOWS_JOB_OBJECT", false, NoEffect(WINDOWS)),
    ("FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", false, NoEffect(WINDOWS)),
    ("FF_WAIT_FOR_POD_TO_BE_REACHABLE", false, NoEffect(KUBERNETES)),
];

/// The flag with this name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|(known, ..)| *known == name)
}

/// Why a flag that is set to `value` changes nothing for the jobs of a runner; `None` if it does what it says.
pub fn idle_reason((_, _, effect): &Flag, value: bool, has_containers: bool) -> Option<String> {
    match effect {
        Honoured => None,
        InContainers if has_containers => None,
        InContainers => Some("it is about jobs in containers".to_owned()),
        Always(ours) if value == *ours => None,
        Always(ours) => Some(format!("mayfly always behaves as with {ours}")),
        NoEffect(why) => Some((*why).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_in_its_place_and_once() {
        assert!(FLAGS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn a_flag_that_changes_nothing_has_a_reason() {
        let reason = |name, value, has_containers| idle_reason(find(name).expect("known"), value, has_containers);
        assert_eq!(reason("FF_ENABLE_JOB_CLEANUP", true, false), None);
        assert_eq!(reason("FF_POSIXLY_CORRECT_ESCAPES", true, false), None, "what mayfly does anyway");
        assert!(reason("FF_USE_FASTZIP", false, false).is_some_and(|why| why.contains("as with true")));
        assert!(reason("FF_NETWORK_PER_BUILD", true, false).is_some());
        assert_eq!(reason("FF_NETWORK_PER_BUILD", true, true), None);
        assert!(reason("FF_USE_GIT_NATIVE_CLONE", true, true).is_some());
    }
}
