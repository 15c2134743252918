//! Feature flags (`FF_…`) by gitlab-runner's names: the configuration first, then the job's variable, then the
//! default.

use std::collections::BTreeMap;

/// What a flag does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// What it does in gitlab-runner.
    Honoured,
    /// The same, for jobs in containers; nothing for others.
    OfContainers,
    /// Nothing: we behave as if it always had this value.
    Always(bool),
    /// Nothing: it is about something that we do not have.
    Nothing,
}

use Effect::{Always, Honoured, Nothing, OfContainers};

/// The job's token stands in no file: git asks for it.
pub const WITHOUT_TOKENS: &str = "FF_GIT_URLS_WITHOUT_TOKENS";

/// The job has a network of its own.
pub const OWN_NETWORK: &str = "FF_NETWORK_PER_BUILD";

/// Expressions in the job's text are replaced by what they come to.
pub const INPUTS: &str = "FF_ENABLE_JOB_INPUTS_INTERPOLATION";

/// Names, defaults and effects, in the order of the names. All are exported to the job.
const FLAGS: &[(&str, bool, Effect)] = &[
    ("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", false, Honoured),
    ("FF_CONCRETE", false, Nothing),
    ("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", false, Honoured),
    ("FF_DISABLE_POWERSHELL_STDIN", false, Nothing),
    ("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR", false, OfContainers),
    ("FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR", false, Nothing),
    ("FF_ENABLE_BASH_EXIT_CODE_CHECK", false, Honoured),
    ("FF_ENABLE_JOB_CLEANUP", false, Honoured),
    (INPUTS, true, Honoured),
    ("FF_EXPORT_HIGH_CARDINALITY_METRICS", false, Nothing),
    (WITHOUT_TOKENS, false, Honoured),
    ("FF_HASH_CACHE_KEYS", false, Honoured),
    ("FF_KUBERNETES_HONOR_ENTRYPOINT", false, Nothing),
    ("FF_LOG_IMAGES_CONFIGURED_FOR_JOB", false, Nothing),
    ("FF_MASK_ALL_DEFAULT_TOKENS", true, Always(true)),
    ("FF_NETWORK_PER_BUILD", false, OfContainers),
    ("FF_POSIXLY_CORRECT_ESCAPES", false, Always(true)),
    ("FF_PRINT_POD_EVENTS", false, Nothing),
    ("FF_RESOLVE_FULL_TLS_CHAIN", false, Nothing),
    ("FF_SCRIPT_SECTIONS", false, Honoured),
    ("FF_SCRIPT_TO_STEP_MIGRATION", false, Nothing),
    ("FF_SECRET_RESOLVING_FAILS_IF_MISSING", true, Always(true)),
    ("FF_SUSPENDABLE_ENVIRONMENTS", false, Nothing),
    ("FF_TEST_FEATURE", false, Nothing),
    ("FF_TIMESTAMPS", true, Honoured),
    ("FF_USE_ADAPTIVE_REQUEST_CONCURRENCY", true, Honoured),
    ("FF_USE_ADVANCED_POD_SPEC_CONFIGURATION", false, Nothing),
    ("FF_USE_DIRECT_DOWNLOAD", true, Honoured),
    ("FF_USE_DOCKER_AUTOSCALER_DIAL_STDIO", true, Nothing),
    ("FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR", false, Nothing),
    ("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", false, Nothing),
    ("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", true, Honoured),
    ("FF_USE_FASTZIP", true, Always(true)),
    ("FF_USE_FLEETING_ACQUIRE_HEARTBEATS", false, Nothing),
    ("FF_USE_GITALY_CORRELATION_ID", true, Honoured),
    ("FF_USE_GIT_BUNDLE_URIS", true, Always(true)),
    ("FF_USE_GIT_NATIVE_CLONE", false, Nothing),
    ("FF_USE_GIT_PROACTIVE_AUTH", false, Nothing),
    ("FF_USE_INIT_WITH_DOCKER_EXECUTOR", false, OfContainers),
    ("FF_USE_JOB_ROUTER", false, Nothing),
    ("FF_USE_LEGACY_BASH_EVAL", false, Nothing),
    ("FF_USE_LEGACY_GCS_CACHE_ADAPTER", false, Nothing),
    ("FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY", false, Nothing),
    ("FF_USE_LEGACY_S3_CACHE_ADAPTER", false, Nothing),
    ("FF_USE_NATIVE_CONTAINER_STOP", false, OfContainers),
    ("FF_USE_PARALLEL_ARTIFACT_TRANSFER", false, Nothing),
    ("FF_USE_PARALLEL_CACHE_TRANSFER", false, Nothing),
    ("FF_USE_POD_ACTIVE_DEADLINE_SECONDS", true, Nothing),
    ("FF_USE_POWERSHELL_PATH_RESOLVER", false, Nothing),
    ("FF_USE_WINDOWS_JOB_OBJECT", false, Nothing),
    ("FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", false, Nothing),
    ("FF_WAIT_FOR_POD_TO_BE_REACHABLE", false, Nothing),
];

/// The flags of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags(BTreeMap<&'static str, bool>);

impl Flags {
    /// Resolves every flag; a value that is no boolean is told in the second part and changes nothing.
    pub fn resolve(config: &BTreeMap<String, bool>, variable: &dyn Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut flags = BTreeMap::new();
        for (name, default, _) in FLAGS {
            let from_job = || {
                let text = variable(name)?;
                let parsed = crate::payload::lenient::boolean(&text);
                if parsed.is_none() {
                    warnings.push(format!("{name}: `{text}` is neither true nor false; {default} it stays"));
                }
                parsed
            };
            let value = config.get(*name).copied().or_else(from_job).unwrap_or(*default);
            flags.insert(*name, value);
        }
        (Self(flags), warnings)
    }

    /// Whether a flag is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }

    /// All of them, for the job's environment.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.0.iter().map(|(name, value)| (*name, *value))
    }

    /// Those that differ from their default, as the log's header names them.
    pub fn changed(&self) -> Vec<String> {
        let differs = |(name, default, _): &&(&str, bool, Effect)| self.is_on(name) != *default;
        FLAGS.iter().filter(differs).map(|(name, default, _)| format!("{name}:{}", !default)).collect()
    }

    /// Those that someone changed in the belief that it does something for this job, `in_containers` or not.
    pub fn idle(&self, in_containers: bool) -> Vec<&'static str> {
        let idle = |(name, default, effect): &&(&str, bool, Effect)| {
            let value = self.is_on(name);
            value != *default
                && match effect {
                    Honoured => false,
                    OfContainers => !in_containers,
                    Always(ours) => value != *ours,
                    Nothing => true,
                }
        };
        FLAGS.iter().filter(idle).map(|(name, ..)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_wins_over_the_job_and_the_job_over_the_default() {
        let config = BTreeMap::from([("FF_TIMESTAMPS".to_owned(), false), ("FF_UNHEARD_OF".to_owned(), true)]);
        let job = |name: &str| match name {
            "FF_TIMESTAMPS" | "FF_HASH_CACHE_KEYS" => Some("true".to_owned()),
            "FF_SCRIPT_SECTIONS" => Some("yes".to_owned()),
            _ => None,
        };
        let (flags, warnings) = Flags::resolve(&config, &job);
        assert!(!flags.is_on("FF_TIMESTAMPS") && flags.is_on("FF_HASH_CACHE_KEYS"));
        assert!(!flags.is_on("FF_SCRIPT_SECTIONS") && flags.is_on("FF_USE_DIRECT_DOWNLOAD"));
        assert_eq!(flags.changed(), ["FF_HASH_CACHE_KEYS:true", "FF_TIMESTAMPS:false"]);
        assert_eq!(warnings, ["FF_SCRIPT_SECTIONS: `yes` is neither true nor false; false it stays"]);
    }

    #[test]
    fn a_flag_without_effect_is_told_only_where_it_was_changed() {
        let of = |name: &'static str, value: &'static str| {
            let job = move |asked: &str| (asked == name).then(|| value.to_owned());
            Flags::resolve(&BTreeMap::new(), &job).0.idle(false)
        };
        assert_eq!(of("FF_USE_GIT_NATIVE_CLONE", "true"), ["FF_USE_GIT_NATIVE_CLONE"]);
        assert_eq!(of("FF_USE_FASTZIP", "false"), ["FF_USE_FASTZIP"]);
        assert!(of("FF_POSIXLY_CORRECT_ESCAPES", "true").is_empty(), "what we do anyway");
        assert!(of("FF_TIMESTAMPS", "false").is_empty());
        assert!(of("NONE", "").is_empty());
        assert_eq!(of("FF_NETWORK_PER_BUILD", "true"), ["FF_NETWORK_PER_BUILD"]);
        let job = |_: &str| Some("true".to_owned());
        let (flags, _) = Flags::resolve(&BTreeMap::new(), &job);
        assert!(!flags.idle(true).contains(&"FF_NETWORK_PER_BUILD"));
    }

    #[test]
    fn every_name_stands_in_its_place_and_once() {
        assert!(FLAGS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
