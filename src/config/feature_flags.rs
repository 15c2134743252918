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

/// A value in the table of flags.
#[derive(Clone, Copy)]
enum FlagValue {
    On,
    Off,
}

use FlagValue::{Off, On};

impl FlagValue {
    const fn is_on(self) -> bool {
        matches!(self, On)
    }
}

/// How the jobs of a runner run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobHost {
    /// In the instance's shell.
    Shell,
    Containers,
}

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

const fn flag(name: &'static str, default: FlagValue, support: FlagSupport, meaning: &'static str) -> FeatureFlag {
    #[cfg(not(test))]
    let _ = meaning;
    FeatureFlag {
        name,
        default: default.is_on(),
        support,
        #[cfg(test)]
        meaning,
    }
}

const fn honoured(name: &'static str, default: FlagValue, meaning: &'static str) -> FeatureFlag {
    flag(name, default, Honoured, meaning)
}

const fn in_containers(name: &'static str, default: FlagValue, meaning: &'static str) -> FeatureFlag {
    flag(name, default, InContainers, meaning)
}

const fn always(name: &'static str, default: FlagValue, value: FlagValue) -> FeatureFlag {
    flag(name, default, Always(value.is_on()), "")
}

const fn no_effect(name: &'static str, default: FlagValue, why: &'static str) -> FeatureFlag {
    flag(name, default, NoEffect(why), "")
}

/// All flags, sorted by name. Each is exported to jobs as a variable.
pub const FLAGS: &[FeatureFlag] = &[
    honoured("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", Off, "Delete the files that a failed cache extraction wrote"),
    no_effect("FF_CONCRETE", Off, STEPS),
    honoured("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", Off, "Do not replace the runner token before it expires"),
    no_effect("FF_DISABLE_POWERSHELL_STDIN", Off, WINDOWS),
    in_containers(
        "FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR",
        Off,
        "Containers: keep the usual umask and give the files to the container's user",
    ),
    no_effect("FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR", Off, KUBERNETES),
    honoured("FF_ENABLE_BASH_EXIT_CODE_CHECK", Off, "Check the exit status after each line, in addition to `set -e`"),
    honoured("FF_ENABLE_JOB_CLEANUP", Off, "Clean the project directory after the job"),
    honoured("FF_ENABLE_JOB_INPUTS_INTERPOLATION", On, "Replace `${{ … }}` expressions in the job"),
    no_effect("FF_EXPORT_HIGH_CARDINALITY_METRICS", Off, "mayfly's metrics have no labels for single jobs"),
    honoured("FF_GIT_URLS_WITHOUT_TOKENS", Off, "Git gets the job token from the agent, so that no file contains it"),
    honoured("FF_HASH_CACHE_KEYS", Off, "Name caches by the SHA-256 of their key"),
    no_effect("FF_KUBERNETES_HONOR_ENTRYPOINT", Off, KUBERNETES),
    no_effect("FF_LOG_IMAGES_CONFIGURED_FOR_JOB", Off, KUBERNETES),
    always("FF_MASK_ALL_DEFAULT_TOKENS", On, On),
    in_containers("FF_NETWORK_PER_BUILD", Off, "Containers: one network for each job"),
    always("FF_POSIXLY_CORRECT_ESCAPES", Off, On),
    no_effect("FF_PRINT_POD_EVENTS", Off, KUBERNETES),
    no_effect("FF_RESOLVE_FULL_TLS_CHAIN", Off, "jobs always get the chain up to the trusted authority"),
    honoured("FF_SCRIPT_SECTIONS", Off, "A collapsible log section for each multi-line command"),
    no_effect("FF_SCRIPT_TO_STEP_MIGRATION", Off, STEPS),
    always("FF_SECRET_RESOLVING_FAILS_IF_MISSING", On, On),
    no_effect("FF_SUSPENDABLE_ENVIRONMENTS", Off, "mayfly does not suspend environments"),
    no_effect("FF_TEST_FEATURE", Off, "it exists only for the tests of gitlab-runner"),
    honoured("FF_TIMESTAMPS", On, "Timestamps in the job's log"),
    honoured(
        "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY",
        On,
        "Start with one poll of a runner, and adapt up to `request_concurrency`",
    ),
    no_effect("FF_USE_ADVANCED_POD_SPEC_CONFIGURATION", Off, KUBERNETES),
    honoured("FF_USE_DIRECT_DOWNLOAD", On, "Download artifacts from the object store when GitLab offers it"),
    no_effect("FF_USE_DOCKER_AUTOSCALER_DIAL_STDIO", On, LOCAL),
    no_effect("FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR", Off, KUBERNETES),
    no_effect("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", Off, "GitLab sets the interval"),
    honoured(
        "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY",
        On,
        "Wait longer between attempts of a stage: 5 seconds at first, 5 minutes at most",
    ),
    always("FF_USE_FASTZIP", On, On),
    no_effect("FF_USE_FLEETING_ACQUIRE_HEARTBEATS", Off, LOCAL),
    honoured("FF_USE_GITALY_CORRELATION_ID", On, "Send the correlation id of the job with git requests"),
    always("FF_USE_GIT_BUNDLE_URIS", On, On),
    no_effect("FF_USE_GIT_NATIVE_CLONE", Off, FETCH),
    no_effect("FF_USE_GIT_PROACTIVE_AUTH", Off, FETCH),
    in_containers("FF_USE_INIT_WITH_DOCKER_EXECUTOR", Off, "Containers: run an init process as PID 1"),
    no_effect("FF_USE_JOB_ROUTER", Off, "mayfly polls GitLab directly"),
    no_effect("FF_USE_LEGACY_BASH_EVAL", Off, "mayfly never runs scripts with `eval`"),
    no_effect("FF_USE_LEGACY_GCS_CACHE_ADAPTER", Off, "mayfly stores caches only on the instance and in S3"),
    no_effect("FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY", Off, KUBERNETES),
    no_effect("FF_USE_LEGACY_S3_CACHE_ADAPTER", Off, "mayfly has only one S3 client"),
    in_containers("FF_USE_NATIVE_CONTAINER_STOP", Off, "Containers: stop scripts with the image's stop signal"),
    no_effect("FF_USE_PARALLEL_ARTIFACT_TRANSFER", Off, STREAM),
    no_effect("FF_USE_PARALLEL_CACHE_TRANSFER", Off, STREAM),
    no_effect("FF_USE_POD_ACTIVE_DEADLINE_SECONDS", On, KUBERNETES),
    no_effect("FF_USE_POWERSHELL_PATH_RESOLVER", Off, WINDOWS),
    no_effect("FF_USE_WINDOWS_JOB_OBJECT", Off, WINDOWS),
    no_effect("FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", Off, WINDOWS),
    no_effect("FF_WAIT_FOR_POD_TO_BE_REACHABLE", Off, KUBERNETES),
];

pub fn find(name: &str) -> Option<&'static FeatureFlag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Why a flag with this value has no effect on the jobs of a runner; `None` if the flag has an effect.
pub fn no_effect_reason(flag: &FeatureFlag, value: bool, jobs: JobHost) -> Option<String> {
    match flag.support {
        Honoured => None,
        InContainers if jobs == JobHost::Containers => None,
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
        let reason =
            |name, value, jobs| no_effect_reason(find(name).expect("the feature flag must be known"), value, jobs);
        assert_eq!(reason("FF_ENABLE_JOB_CLEANUP", true, JobHost::Shell), None);
        assert_eq!(reason("FF_POSIXLY_CORRECT_ESCAPES", true, JobHost::Shell), None, "what mayfly does anyway");
        assert!(reason("FF_USE_FASTZIP", false, JobHost::Shell).is_some_and(|why| why.contains("as if it were true")));
        assert!(reason("FF_NETWORK_PER_BUILD", true, JobHost::Shell).is_some());
        assert_eq!(reason("FF_NETWORK_PER_BUILD", true, JobHost::Containers), None);
        assert!(reason("FF_USE_GIT_NATIVE_CLONE", true, JobHost::Containers).is_some());
    }
}
