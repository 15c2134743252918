//! Feature flags (`FF_…`) by gitlab-runner's names: the configuration first, then the job's variable, then the
//! default.

use std::collections::BTreeMap;

/// Names and defaults. All are exported to the job; which ones change what mayfly does is said in the documentation.
const FLAGS: &[(&str, bool)] = &[
    ("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", false),
    ("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", false),
    ("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR", false),
    ("FF_ENABLE_BASH_EXIT_CODE_CHECK", false),
    ("FF_HASH_CACHE_KEYS", false),
    ("FF_MASK_ALL_DEFAULT_TOKENS", true),
    ("FF_NETWORK_PER_BUILD", false),
    ("FF_POSIXLY_CORRECT_ESCAPES", false),
    ("FF_SCRIPT_SECTIONS", false),
    ("FF_SECRET_RESOLVING_FAILS_IF_MISSING", true),
    ("FF_TIMESTAMPS", true),
    ("FF_USE_DIRECT_DOWNLOAD", true),
    ("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", true),
    ("FF_USE_FASTZIP", true),
    ("FF_USE_GITALY_CORRELATION_ID", true),
    ("FF_USE_GIT_BUNDLE_URIS", true),
    ("FF_USE_INIT_WITH_DOCKER_EXECUTOR", false),
    ("FF_USE_LEGACY_BASH_EVAL", false),
    ("FF_USE_NATIVE_CONTAINER_STOP", false),
];

/// The flags of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags(BTreeMap<&'static str, bool>);

impl Flags {
    /// Resolves every flag; a value that is no boolean is told in the second part and changes nothing.
    pub fn resolve(config: &BTreeMap<String, bool>, variable: &dyn Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut flags = BTreeMap::new();
        for (name, default) in FLAGS {
            let from_job = || {
                let text = variable(name)?;
                let parsed = super::variables::boolean(&text);
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
        let differs = |(name, default): &&(&str, bool)| self.is_on(name) != *default;
        FLAGS.iter().filter(differs).map(|(name, default)| format!("{name}:{}", !default)).collect()
    }
}
