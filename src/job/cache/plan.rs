//! Makes the cache plans from a payload.

use std::path::PathBuf;
use std::time::Duration;

use super::key::{CacheKey, KeyFormat};
use super::s3::S3Store;
use super::{CacheLocation, CachePlan, CacheRestore, CacheSave, RestorePlan, SavePlan, TransferSettings};
use crate::archive::ArchiveFormat;
use crate::config::cache::StorageLimits;
use crate::failure::JobError;
use crate::http::tls::TlsFiles;
use crate::job::artifacts::{ScriptOutcome, level};
use crate::job::flags::{self, Flags};
use crate::job::transfer::{ProjectDir, expand_like_shell, meter_frequency};
use crate::payload::variables::Variables;
use crate::payload::{Cache, Payload};

/// The settings for cache plans.
pub struct CacheSettings<'a> {
    pub project: ProjectDir,
    /// The directory of local caches of this project.
    pub store: PathBuf,
    /// The directory of local caches of all projects.
    pub root: PathBuf,
    /// The object store, if one is configured.
    pub remote: Option<&'a S3Store>,
    /// Additional trusted certificate authorities.
    pub tls: TlsFiles,
    /// The `User-Agent` of requests.
    pub user_agent: String,
    /// The lifetime of presigned requests: the timeout of the job.
    pub job_timeout: Duration,
    /// The limits of local caches.
    pub limits: StorageLimits,
}

/// The plan for restoring; `None` if the job has no cache. Fails for an unknown policy.
pub fn restore_plan(
    payload: &Payload,
    variables: &Variables,
    flags: &Flags,
    settings: &CacheSettings<'_>,
) -> Result<Option<RestorePlan>, JobError> {
    let mut planner = Planner::new(payload, variables, flags, settings);
    let mut caches = Vec::new();
    for cache in payload.cache.iter().filter(|cache| is_wanted(cache)) {
        caches.push(planner.restore(cache)?);
    }
    Ok(planner.finish(caches))
}

/// The plan for saving; `None` if there is nothing to save. Fails for an unknown policy.
pub fn save_plan(
    payload: &Payload,
    variables: &Variables,
    flags: &Flags,
    settings: &CacheSettings<'_>,
    outcome: ScriptOutcome,
) -> Result<Option<SavePlan>, JobError> {
    let mut planner = Planner::new(payload, variables, flags, settings);
    let mut caches = Vec::new();
    for cache in payload.cache.iter().filter(|cache| is_wanted(cache) && outcome.matches_when(&cache.when)) {
        caches.push(planner.save(cache)?);
    }
    Ok(planner.finish(caches))
}

fn is_wanted(cache: &Cache) -> bool {
    cache.untracked || !cache.paths.is_empty()
}

fn transfer_settings(variables: &Variables, settings: &CacheSettings<'_>) -> TransferSettings {
    let minutes = variables.value("CACHE_REQUEST_TIMEOUT").and_then(|text| text.trim().parse().ok());
    TransferSettings {
        tls: settings.tls.authorities(),
        user_agent: settings.user_agent.clone(),
        timeout: Duration::from_secs(60 * minutes.filter(|minutes| (1..=1440).contains(minutes)).unwrap_or(10)),
        meter: meter_frequency(variables),
    }
}

/// The policy of a cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Both,
    Pull,
    Push,
}

struct Planner<'a> {
    payload: &'a Payload,
    variables: &'a Variables,
    settings: &'a CacheSettings<'a>,
    key_format: KeyFormat,
    /// `FF_CLEAN_UP_FAILED_CACHE_EXTRACT`.
    clear: bool,
    warnings: Vec<String>,
}

impl<'a> Planner<'a> {
    /// The plan; `None` without caches.
    fn finish<T>(self, caches: Vec<T>) -> Option<CachePlan<T>> {
        (!caches.is_empty()).then(|| CachePlan {
            project: self.settings.project.clone(),
            warnings: self.warnings,
            caches,
            transfer: transfer_settings(self.variables, self.settings),
            limits: self.settings.limits,
            store: self.settings.root.clone(),
        })
    }

    fn new(payload: &'a Payload, variables: &'a Variables, flags: &Flags, settings: &'a CacheSettings<'a>) -> Self {
        let key_format = if flags.is_on(flags::FF_HASH_CACHE_KEYS) { KeyFormat::Hashed } else { KeyFormat::Readable };
        let clear = flags.is_on(flags::FF_CLEAN_UP_FAILED_CACHE_EXTRACT);
        Self { payload, variables, settings, key_format, clear, warnings: Vec::new() }
    }

    fn restore(&mut self, cache: &Cache) -> Result<CacheRestore, JobError> {
        let key = self.key(cache);
        if self.policy(cache)? == Policy::Push {
            return Ok(CacheRestore::Skip(format!("Not downloading cache {} due to policy", key.shown)));
        }
        let mut candidates = vec![key];
        for fallback in &cache.fallback_keys {
            let raw = self.variables.expand(fallback);
            candidates.push(self.named(&raw));
        }
        if let Some(raw) = self.variables.value("CACHE_FALLBACK_KEY").filter(|raw| !raw.is_empty()) {
            // GitLab appends this suffix to the keys of protected branches, so a variable must not contain it in any
            // spelling.
            let claims = |name: &str| name.trim_end_matches(['.', ' ', '/']).ends_with("-protected");
            let key = CacheKey::new(&raw, self.key_format);
            if claims(&raw) || claims(&key.name) {
                self.warnings.push(format!("CACHE_FALLBACK_KEY {raw:?} not allowed to end in \"-protected\""));
            } else {
                candidates.push(self.with_warning(key));
            }
        }
        let locations: Vec<_> =
            candidates.iter().filter(|key| !key.name.is_empty()).map(|key| self.location(key)).collect();
        Ok(match locations.is_empty() {
            true => CacheRestore::Skip("Skipping cache extraction due to empty cache key".to_owned()),
            false => {
                CacheRestore::FirstOf { locations, clear: if self.clear { self.paths(cache) } else { Vec::new() } }
            }
        })
    }

    fn save(&mut self, cache: &Cache) -> Result<CacheSave, JobError> {
        let key = self.key(cache);
        if self.policy(cache)? == Policy::Pull {
            return Ok(CacheSave::Skip(format!("Not uploading cache {} due to policy", key.shown)));
        }
        if key.name.is_empty() {
            return Ok(CacheSave::Skip("Skipping cache archiving due to empty cache key".to_owned()));
        }
        let variables = self.variables;
        let format = variables.value("CACHE_COMPRESSION_FORMAT").map(|word| word.trim().to_ascii_lowercase());
        let format = match format.as_deref() {
            Some("tarzstd") => ArchiveFormat::TarZstd,
            Some("zipzstd") => ArchiveFormat::ZipZstd,
            _ => ArchiveFormat::Zip,
        };
        let asked = || variables.value("CACHE_MAX_UPLOADED_ARCHIVE_SIZE").and_then(|text| text.trim().parse().ok());
        let configured = self.settings.remote.map(|store| store.max_upload).filter(|max| *max > 0);
        Ok(CacheSave::Files {
            location: self.location(&key),
            paths: self.paths(cache),
            untracked: cache.untracked,
            format,
            level: level(variables, "CACHE_COMPRESSION_LEVEL"),
            max_upload: configured.or_else(asked).filter(|max| *max > 0),
        })
    }

    fn policy(&self, cache: &Cache) -> Result<Policy, JobError> {
        match self.variables.expand(&cache.policy).as_str() {
            "" | "pull-push" => Ok(Policy::Both),
            "pull" => Ok(Policy::Pull),
            "push" => Ok(Policy::Push),
            other => Err(JobError::configuration(format!("cache policy `{other}` must be pull-push, pull or push"))),
        }
    }

    fn paths(&self, cache: &Cache) -> Vec<String> {
        cache.paths.iter().map(|path| expand_like_shell(path, &|name| self.variables.value(name))).collect()
    }

    fn key(&mut self, cache: &Cache) -> CacheKey {
        let raw = match cache.key.is_empty() {
            true => format!("{}/{}", self.payload.job_info.name, self.payload.git_info.reference),
            false => self.variables.expand(&cache.key),
        };
        self.named(&raw)
    }

    fn named(&mut self, raw: &str) -> CacheKey {
        self.with_warning(CacheKey::new(raw, self.key_format))
    }

    fn with_warning(&mut self, mut key: CacheKey) -> CacheKey {
        self.warnings.extend(key.warning.take());
        key
    }

    fn location(&mut self, key: &CacheKey) -> CacheLocation {
        let project = self.payload.job_info.project_id;
        let object = key.object();
        let remote = self.settings.remote.and_then(|store| {
            let signed = store.sign(project, &object, &key.shown, self.settings.job_timeout);
            signed.map_err(|why| self.warnings.push(format!("cannot use the shared cache: {why}"))).ok()
        });
        CacheLocation { key: key.shown.clone(), local: self.settings.store.join(&key.name).join("cache.zip"), remote }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::payload::Variable;

    fn settings() -> CacheSettings<'static> {
        CacheSettings {
            project: ProjectDir { builds: "/b".into(), directory: "/b/p".into(), seen: "/b/p".into() },
            store: "/c/p".into(),
            root: "/c".into(),
            remote: None,
            tls: TlsFiles::default(),
            user_agent: String::new(),
            job_timeout: Duration::from_secs(3600),
            limits: StorageLimits::default(),
        }
    }

    fn plans(cache: Cache, pairs: &[(&str, &str)]) -> (Result<Option<RestorePlan>, JobError>, Option<SavePlan>) {
        let mut variables = Variables::new(Path::new("/b/p.tmp"));
        for (key, value) in pairs {
            variables.push(Variable { key: (*key).to_owned(), value: (*value).to_owned(), ..Variable::default() });
        }
        let mut payload = Payload { cache: vec![cache], ..Payload::default() };
        payload.job_info.name = "unit".to_owned();
        payload.git_info.reference = "main".to_owned();
        let (flags, _) = Flags::resolve(&Default::default(), &|_| None);
        let save = save_plan(&payload, &variables, &flags, &settings(), ScriptOutcome::Success).unwrap_or_default();
        (restore_plan(&payload, &variables, &flags, &settings()), save)
    }

    fn cache(key: &str, policy: &str) -> Cache {
        Cache { key: key.to_owned(), policy: policy.to_owned(), paths: vec!["x".to_owned()], ..Cache::default() }
    }

    fn keys(plan: &RestorePlan) -> Vec<&str> {
        match &plan.caches[0] {
            CacheRestore::FirstOf { locations, .. } => locations.iter().map(|location| location.key.as_str()).collect(),
            CacheRestore::Skip(why) => vec![why],
        }
    }

    #[test]
    fn tries_fallback_keys_after_the_key() {
        let mut entry = cache("$BRANCH-deps", "");
        entry.fallback_keys = vec!["main-deps".to_owned()];
        let (restore, _) = plans(entry, &[("BRANCH", "feature"), ("CACHE_FALLBACK_KEY", "last")]);
        assert_eq!(keys(&restore.unwrap().unwrap()), ["feature-deps", "main-deps", "last"]);
        let (restore, save) = plans(cache("", ""), &[("CACHE_FALLBACK_KEY", "x-protected. ")]);
        let restore = restore.unwrap().unwrap();
        assert_eq!((keys(&restore), restore.warnings.len()), (vec!["unit/main"], 1));
        let CacheSave::Files { location, .. } = &save.unwrap().caches[0] else { panic!() };
        assert_eq!(location.local, Path::new("/c/p/unit/main/cache.zip"));
    }

    #[test]
    fn refuses_fallback_keys_that_imitate_protected_ones() {
        for raw in
            ["k-protected", "k-protected\t", "k-protected/x/..", "k-protected/%2e", "k-protected%2f", "./k-protected."]
        {
            let (restore, _) = plans(cache("own", ""), &[("CACHE_FALLBACK_KEY", raw)]);
            let restore = restore.unwrap().unwrap();
            assert_eq!(keys(&restore), ["own"], "{raw:?}");
            assert!(restore.warnings[0].contains("not allowed"), "{raw:?}");
        }
        let (restore, _) = plans(cache("own", ""), &[("CACHE_FALLBACK_KEY", "k-protected-not")]);
        assert_eq!(keys(&restore.unwrap().unwrap()), ["own", "k-protected-not"]);
    }

    #[test]
    fn the_policy_selects_restoring_and_saving() {
        let (restore, save) = plans(cache("k", "pull"), &[]);
        assert_eq!(keys(&restore.unwrap().unwrap()), ["k"]);
        assert!(matches!(&save.unwrap().caches[0], CacheSave::Skip(why) if why.contains("due to policy")));
        let (restore, save) = plans(cache("k", "$WAY"), &[("WAY", "push")]);
        assert_eq!(keys(&restore.unwrap().unwrap()), ["Not downloading cache k due to policy"]);
        assert!(matches!(save.unwrap().caches[0], CacheSave::Files { .. }));
        assert!(plans(cache("k", "sometimes"), &[]).0.is_err());
    }

    #[test]
    fn saves_caches_by_the_result() {
        let variables = Variables::new(Path::new("/b/p.tmp"));
        let (flags, _) = Flags::resolve(&Default::default(), &|_| None);
        let of = |when: &str| Cache { when: when.to_owned(), ..cache(&format!("key-{when}"), "") };
        let caches = ["", "on_success", "on_failure", "always"].map(of);
        let payload = Payload { cache: caches.to_vec(), ..Payload::default() };
        for (outcome, expected) in [
            (ScriptOutcome::Success, &["key-", "key-on_success", "key-always"][..]),
            (ScriptOutcome::Failure, &["key-on_failure", "key-always"]),
        ] {
            let plan = save_plan(&payload, &variables, &flags, &settings(), outcome).unwrap().unwrap();
            let keys = plan.caches.iter().map(|save| match save {
                CacheSave::Files { location, .. } => location.key.as_str(),
                CacheSave::Skip(why) => why,
            });
            assert_eq!(keys.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn the_job_sets_the_timeout_of_transfers() {
        for (text, minutes) in [("3", 3), (" 90 ", 90), ("0", 10), ("soon", 10), ("", 10)] {
            let (restore, save) = plans(cache("k", ""), &[("CACHE_REQUEST_TIMEOUT", text)]);
            let expected = Duration::from_secs(60 * minutes);
            assert_eq!(
                (restore.unwrap().unwrap().transfer.timeout, save.unwrap().transfer.timeout),
                (expected, expected),
                "{text}"
            );
        }
    }

    #[test]
    fn ignores_a_cache_without_paths() {
        let (restore, save) = plans(Cache { paths: Vec::new(), ..cache("k", "") }, &[]);
        assert!(restore.unwrap().is_none() && save.is_none());
        let (restore, _) = plans(cache("..", ""), &[]);
        assert_eq!(keys(&restore.unwrap().unwrap()), ["Skipping cache extraction due to empty cache key"]);
    }
}
