//! The feature flags of a job: from the configuration, else from the job's variable, else the default.

use std::collections::BTreeMap;

use crate::config::feature_flags::{FLAGS, FeatureFlag, JobHost, no_effect_reason};

/// A flag that changes how the agent runs a job. [`FLAGS`] has the default and the meaning of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(&'static str);

pub const FF_CLEAN_UP_FAILED_CACHE_EXTRACT: Flag = Flag("FF_CLEAN_UP_FAILED_CACHE_EXTRACT");
pub const FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR: Flag = Flag("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR");
pub const FF_ENABLE_BASH_EXIT_CODE_CHECK: Flag = Flag("FF_ENABLE_BASH_EXIT_CODE_CHECK");
pub const FF_ENABLE_JOB_CLEANUP: Flag = Flag("FF_ENABLE_JOB_CLEANUP");
pub const FF_ENABLE_JOB_INPUTS_INTERPOLATION: Flag = Flag("FF_ENABLE_JOB_INPUTS_INTERPOLATION");
pub const FF_GIT_URLS_WITHOUT_TOKENS: Flag = Flag("FF_GIT_URLS_WITHOUT_TOKENS");
pub const FF_HASH_CACHE_KEYS: Flag = Flag("FF_HASH_CACHE_KEYS");
pub const FF_NETWORK_PER_BUILD: Flag = Flag("FF_NETWORK_PER_BUILD");
pub const FF_SCRIPT_SECTIONS: Flag = Flag("FF_SCRIPT_SECTIONS");
pub const FF_TIMESTAMPS: Flag = Flag("FF_TIMESTAMPS");
pub const FF_USE_DIRECT_DOWNLOAD: Flag = Flag("FF_USE_DIRECT_DOWNLOAD");
pub const FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY: Flag = Flag("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY");
pub const FF_USE_GITALY_CORRELATION_ID: Flag = Flag("FF_USE_GITALY_CORRELATION_ID");
pub const FF_USE_INIT_WITH_DOCKER_EXECUTOR: Flag = Flag("FF_USE_INIT_WITH_DOCKER_EXECUTOR");
pub const FF_USE_NATIVE_CONTAINER_STOP: Flag = Flag("FF_USE_NATIVE_CONTAINER_STOP");

/// The flags of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags(BTreeMap<&'static str, bool>);

impl Flags {
    /// Resolves all flags. A value that is not a boolean is ignored; the second result contains a warning about it.
    pub fn resolve(config: &BTreeMap<String, bool>, variable: &dyn Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut flags = BTreeMap::new();
        for FeatureFlag { name, default, .. } in FLAGS {
            let from_job = || {
                let text = variable(name)?;
                let parsed = crate::payload::lenient::boolean(&text);
                if parsed.is_none() {
                    warnings.push(format!("{name}: `{text}` is not a boolean; using the default {default}"));
                }
                parsed
            };
            let value = config.get(*name).copied().or_else(from_job).unwrap_or(*default);
            flags.insert(*name, value);
        }
        (Self(flags), warnings)
    }

    /// Whether a flag is on.
    pub fn is_on(&self, flag: Flag) -> bool {
        self.value(flag.0)
    }

    fn value(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }

    /// All flags, for the job's environment.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.0.iter().map(|(name, value)| (*name, *value))
    }

    /// The flags that differ from their default, for the header of the log.
    pub fn changed(&self) -> Vec<String> {
        let differs = |flag: &&FeatureFlag| self.value(flag.name) != flag.default;
        FLAGS.iter().filter(differs).map(|flag| format!("{}:{}", flag.name, !flag.default)).collect()
    }

    /// The changed flags without effect for this job.
    pub fn without_effect(&self, jobs: JobHost) -> Vec<&'static str> {
        let has_no_effect = |flag: &&FeatureFlag| {
            let value = self.value(flag.name);
            value != flag.default && no_effect_reason(flag, value, jobs).is_some()
        };
        FLAGS.iter().filter(has_no_effect).map(|flag| flag.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_overrides_the_job_and_the_job_the_default() {
        let config = BTreeMap::from([("FF_TIMESTAMPS".to_owned(), false), ("FF_UNHEARD_OF".to_owned(), true)]);
        let job = |name: &str| match name {
            "FF_TIMESTAMPS" | "FF_HASH_CACHE_KEYS" => Some("true".to_owned()),
            "FF_SCRIPT_SECTIONS" => Some("yes".to_owned()),
            _ => None,
        };
        let (flags, warnings) = Flags::resolve(&config, &job);
        assert!(!flags.is_on(FF_TIMESTAMPS) && flags.is_on(FF_HASH_CACHE_KEYS));
        assert!(!flags.is_on(FF_SCRIPT_SECTIONS) && flags.is_on(FF_USE_DIRECT_DOWNLOAD));
        assert_eq!(flags.changed(), ["FF_HASH_CACHE_KEYS:true", "FF_TIMESTAMPS:false"]);
        assert_eq!(warnings, ["FF_SCRIPT_SECTIONS: `yes` is not a boolean; using the default false"]);
    }

    #[test]
    fn every_flag_of_jobs_is_in_the_table() {
        let all = [
            FF_CLEAN_UP_FAILED_CACHE_EXTRACT,
            FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR,
            FF_ENABLE_BASH_EXIT_CODE_CHECK,
            FF_ENABLE_JOB_CLEANUP,
            FF_ENABLE_JOB_INPUTS_INTERPOLATION,
            FF_GIT_URLS_WITHOUT_TOKENS,
            FF_HASH_CACHE_KEYS,
            FF_NETWORK_PER_BUILD,
            FF_SCRIPT_SECTIONS,
            FF_TIMESTAMPS,
            FF_USE_DIRECT_DOWNLOAD,
            FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY,
            FF_USE_GITALY_CORRELATION_ID,
            FF_USE_INIT_WITH_DOCKER_EXECUTOR,
            FF_USE_NATIVE_CONTAINER_STOP,
        ];
        for flag in all {
            assert!(FLAGS.iter().any(|known| known.name == flag.0), "{flag:?}");
        }
    }

    #[test]
    fn reports_a_flag_without_effect_only_if_it_was_changed() {
        let without_effect = |name: &'static str, value: &'static str| {
            let job = move |asked: &str| (asked == name).then(|| value.to_owned());
            Flags::resolve(&BTreeMap::new(), &job).0.without_effect(JobHost::Shell)
        };
        assert_eq!(without_effect("FF_USE_GIT_NATIVE_CLONE", "true"), ["FF_USE_GIT_NATIVE_CLONE"]);
        assert_eq!(without_effect("FF_USE_FASTZIP", "false"), ["FF_USE_FASTZIP"]);
        assert!(without_effect("FF_POSIXLY_CORRECT_ESCAPES", "true").is_empty(), "what we do anyway");
        assert!(without_effect("FF_TIMESTAMPS", "false").is_empty());
        assert!(without_effect("NONE", "").is_empty());
        assert_eq!(without_effect("FF_NETWORK_PER_BUILD", "true"), ["FF_NETWORK_PER_BUILD"]);
        let job = |_: &str| Some("true".to_owned());
        let (flags, _) = Flags::resolve(&BTreeMap::new(), &job);
        assert!(!flags.without_effect(JobHost::Containers).contains(&"FF_NETWORK_PER_BUILD"));
    }
}
