//! The feature flags of a job: from the configuration, else from the job's variable, else the default.

use std::collections::BTreeMap;

use crate::config::feature_flags::{FLAGS, FeatureFlag, idle_reason};

/// Git gets the job's token from the agent, so that no file contains it.
pub const WITHOUT_TOKENS: &str = "FF_GIT_URLS_WITHOUT_TOKENS";

/// The job has its own network.
pub const OWN_NETWORK: &str = "FF_NETWORK_PER_BUILD";

/// Expressions in the payload are interpolated.
pub const INPUTS: &str = "FF_ENABLE_JOB_INPUTS_INTERPOLATION";

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
    pub fn is_on(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }

    /// All flags, for the job's environment.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.0.iter().map(|(name, value)| (*name, *value))
    }

    /// The flags that differ from their default, for the header of the log.
    pub fn changed(&self) -> Vec<String> {
        let differs = |flag: &&FeatureFlag| self.is_on(flag.name) != flag.default;
        FLAGS.iter().filter(differs).map(|flag| format!("{}:{}", flag.name, !flag.default)).collect()
    }

    /// The changed flags without effect for this job, `in_containers` or not.
    pub fn idle(&self, in_containers: bool) -> Vec<&'static str> {
        let is_idle = |flag: &&FeatureFlag| {
            let value = self.is_on(flag.name);
            value != flag.default && idle_reason(flag, value, in_containers).is_some()
        };
        FLAGS.iter().filter(is_idle).map(|flag| flag.name).collect()
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
        assert!(!flags.is_on("FF_TIMESTAMPS") && flags.is_on("FF_HASH_CACHE_KEYS"));
        assert!(!flags.is_on("FF_SCRIPT_SECTIONS") && flags.is_on("FF_USE_DIRECT_DOWNLOAD"));
        assert_eq!(flags.changed(), ["FF_HASH_CACHE_KEYS:true", "FF_TIMESTAMPS:false"]);
        assert_eq!(warnings, ["FF_SCRIPT_SECTIONS: `yes` is not a boolean; using the default false"]);
    }

    #[test]
    fn reports_a_flag_without_effect_only_if_it_was_changed() {
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
}
