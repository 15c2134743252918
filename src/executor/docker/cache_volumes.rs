//! Records the volumes in which containers keep caches from job to job (`volumes = ["/cache"]`). Removes the least
//! recently used ones while they are too old or too large in total (`cache_volumes_max_age`, `cache_volumes_max_size`).
//!
//! The agent records each cache volume that its jobs use, and finds other volumes that it created by their label. It
//! keeps the volumes of other programs. It removes a volume only while no job uses it and no job prepares its
//! containers; the engine refuses to remove a volume of an existing container.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::engine::{DockerEngine, DockerError};
use super::names::CACHE_OF;
use super::removal_gate::{Preparing, RemovalGate};
use crate::config::cache::StorageLimits;
use crate::decode;
use crate::http::Address;
use crate::monitor::machine;
use crate::sys;

/// The name of the record in the state directory.
const RECORD_FILE: &str = "volumes.json";

/// An engine's address and the name of a volume there.
type VolumeKey = (String, String);

/// The cache volumes of all engines.
pub struct CacheVolumes {
    state: PathBuf,
    gate: Arc<RemovalGate<VolumeRecord>>,
}

/// The last uses of volumes, and the jobs that use them.
#[derive(Default)]
pub struct VolumeRecord {
    /// The time at which each volume was last used, in seconds since the epoch.
    last_used: BTreeMap<VolumeKey, u64>,
    /// The number of jobs whose containers have the volume.
    in_use: BTreeMap<VolumeKey, u32>,
    limits: Vec<(Address, StorageLimits)>,
}

/// The cache volumes that a job uses. The agent removes none of them until this value is dropped.
pub struct VolumesInUse {
    volumes: Arc<CacheVolumes>,
    keys: Vec<VolumeKey>,
}

impl CacheVolumes {
    /// Loads the record from the state directory.
    pub fn load(state: &Path) -> Arc<Self> {
        let read = fs::read(state.join(RECORD_FILE)).ok();
        let recorded = read.and_then(|text| decode::json::<Vec<(VolumeKey, u64)>>(&text).ok()).unwrap_or_default();
        let gate =
            RemovalGate::new(VolumeRecord { last_used: crate::ordered::map(recorded), ..VolumeRecord::default() });
        Arc::new(Self { state: state.to_owned(), gate })
    }

    /// Sets the limits of these engines' volumes. If an engine has several limits, each applies.
    pub fn limit(&self, limits: Vec<(Address, StorageLimits)>) {
        let mut record = self.gate.lock();
        for (address, _) in &record.limits {
            machine::cache_volumes_measured(&address.to_string(), None);
        }
        record.limits = limits.into_iter().filter(|(_, limits)| *limits != StorageLimits::default()).collect();
    }

    /// Whether any limit is set.
    pub fn has_limits(&self) -> bool {
        !self.gate.lock().limits.is_empty()
    }

    /// Prevents removals while a job prepares its containers. Waits for the end of a running removal.
    pub fn prepare(&self) -> Preparing<VolumeRecord> {
        self.gate.prepare()
    }

    /// Marks volumes as used by a job until the result is dropped.
    pub fn claim(self: &Arc<Self>, engine: &Address, names: &[String]) -> VolumesInUse {
        let keys: Vec<VolumeKey> = names.iter().map(|name| (engine.to_string(), name.clone())).collect();
        let mut record = self.gate.lock();
        for key in &keys {
            *record.in_use.entry(key.clone()).or_default() += 1;
            record.last_used.insert(key.clone(), sys::unix_now());
        }
        if !keys.is_empty() {
            self.save(&record);
        }
        VolumesInUse { volumes: Arc::clone(self), keys }
    }

    /// Removes the volumes that exceed the limits.
    pub fn tidy(&self) {
        let limits = self.gate.lock().limits.clone();
        for (address, limits) in limits {
            let tidied = DockerEngine::connect(&address).and_then(|engine| self.tidy_engine(&engine, &address, limits));
            if let Err(error) = tidied {
                log::warn!("cannot limit the cache volumes engine={address} error={error}");
            }
        }
    }

    fn tidy_engine(&self, engine: &DockerEngine, address: &Address, limits: StorageLimits) -> Result<(), DockerError> {
        self.reconcile(engine, address)?;
        let mut sizes = HashMap::new();
        if limits.size.is_some() {
            sizes = engine.volume_sizes()?;
        }
        let mut total = self.total(address, &sizes);
        for (name, used) in self.oldest_first(address) {
            let is_too_old = limits.age.is_some_and(|age| sys::unix_now().saturating_sub(used) > age.as_secs());
            if !is_too_old && limits.size.is_none_or(|size| total <= size) {
                continue;
            }
            let bytes = sizes.get(&name).copied().unwrap_or(0);
            if self.remove(engine, address, &name, used) {
                total = total.saturating_sub(bytes);
                machine::cache_volume_removed(bytes);
                log::info!("unused cache volume removed volume={name} bytes={bytes} engine={address}");
            }
        }
        machine::cache_volumes_measured(&address.to_string(), limits.size.map(|_| total));
        Ok(())
    }

    /// Removes volumes from the record that the engine does not have, and adds those with this agent's label. The last
    /// use of the added volumes is unknown, so they count as used now.
    fn reconcile(&self, engine: &DockerEngine, address: &Address) -> Result<(), DockerError> {
        let label = self.state.display().to_string();
        // A job that starts during the request adds its volumes to the record only after this line.
        let before: Vec<VolumeKey> = self.gate.lock().last_used.keys().cloned().collect();
        let all = engine.volumes(&[])?;
        let address = address.to_string();
        let mut record = self.gate.lock();
        for key in
            before.iter().filter(|(host, name)| *host == address && !all.iter().any(|volume| volume.name == *name))
        {
            if !record.in_use.contains_key(key) {
                record.last_used.remove(key);
            }
        }
        for volume in all.iter().filter(|volume| volume.labels.get(CACHE_OF) == Some(&label)) {
            record.last_used.entry((address.clone(), volume.name.clone())).or_insert_with(sys::unix_now);
        }
        self.save(&record);
        Ok(())
    }

    fn total(&self, address: &Address, sizes: &HashMap<String, u64>) -> u64 {
        let address = address.to_string();
        let record = self.gate.lock();
        let here = record.last_used.keys().filter(|(engine, _)| *engine == address);
        here.filter_map(|(_, name)| sizes.get(name)).sum()
    }

    fn oldest_first(&self, address: &Address) -> Vec<(String, u64)> {
        let address = address.to_string();
        let record = self.gate.lock();
        let here = record.last_used.iter().filter(|((engine, _), _)| *engine == address);
        let mut found: Vec<(String, u64)> = here.map(|((_, name), used)| (name.clone(), *used)).collect();
        found.sort_unstable_by_key(|(_, used)| *used);
        found
    }

    /// Removes one volume unless a job uses it or has used it since `used`. Returns whether it was removed.
    fn remove(&self, engine: &DockerEngine, address: &Address, name: &str, used: u64) -> bool {
        let key = (address.to_string(), name.to_owned());
        let is_due =
            |record: &VolumeRecord| !record.in_use.contains_key(&key) && record.last_used.get(&key) == Some(&used);
        let mut is_removed = false;
        let settle = |record: &mut VolumeRecord, result| {
            match result {
                Ok(()) => {
                    record.last_used.remove(&key);
                    is_removed = true;
                }
                // A container of another program uses the volume.
                Err(error) if DockerError::is_conflict(&error) => {
                    log::debug!("cache volume kept: the engine reports that it is in use volume={name} error={error}");
                }
                Err(error) => log::warn!("cannot remove an unused cache volume volume={name} error={error}"),
            }
            self.save(record);
        };
        self.gate.remove(is_due, || engine.remove_volume(name), settle);
        is_removed
    }

    fn save(&self, record: &VolumeRecord) {
        let all: Vec<(&VolumeKey, &u64)> = record.last_used.iter().collect();
        let path = self.state.join(RECORD_FILE);
        let written = serde_json::to_vec(&all).map_err(io::Error::other);
        // If this write fails, the agent finds its volumes by their label.
        if let Err(error) = written.and_then(|text| sys::replace_file(&path, &text)) {
            log::debug!("cannot record the cache volumes path={} error={error}", path.display());
        }
    }
}

impl Drop for VolumesInUse {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut record = self.volumes.gate.lock();
        for key in &self.keys {
            if let Some(jobs) = record.in_use.get_mut(key) {
                *jobs -= 1;
                if *jobs == 0 {
                    record.in_use.remove(key);
                }
            }
            record.last_used.insert(key.clone(), sys::unix_now());
        }
        self.volumes.save(&record);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::testing::TestServer;

    const PING: &str = "HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nContent-Length: 2\r\n\r\nOK";

    fn json(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    /// Tidies with an engine that has the volumes `a`, `b`, `mine` (with the label) and `foreign`. Returns the recorded
    /// names.
    fn tidied(volumes: &Arc<CacheVolumes>, limits: StorageLimits, removals: usize) -> Vec<String> {
        let label = format!("{{{CACHE_OF:?}: {:?}}}", volumes.state.display().to_string());
        let listed = ["a", "b", "foreign"].map(|name| format!("{{\"Name\": \"{name}\", \"Labels\": null}}")).join(",");
        let list = json(&format!("{{\"Volumes\": [{listed}, {{\"Name\": \"mine\", \"Labels\": {label}}}]}}"));
        let size = |name: &str| format!("{{\"Name\": \"{name}\", \"UsageData\": {{\"Size\": 100, \"RefCount\": 0}}}}");
        let sizes = json(&format!("{{\"Volumes\": [{}]}}", ["a", "b", "mine", "foreign"].map(size).join(",")));
        let gone = "HTTP/1.1 204 No Content\r\n\r\n".to_owned();
        let of_sizes = limits.size.map(|_| sizes);
        let answers: Vec<String> =
            [PING.to_owned(), list].into_iter().chain(of_sizes).chain(vec![gone; removals]).collect();
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        let server = TestServer::new(&answers);
        let address = Address::Tcp(server.url.strip_prefix("http://").expect("a URL").to_owned(), None);
        let rename = |record: &mut VolumeRecord| {
            let of_engine = |((_, name), used): ((String, String), u64)| ((address.to_string(), name), used);
            record.last_used = std::mem::take(&mut record.last_used).into_iter().map(of_engine).collect();
        };
        rename(&mut volumes.gate.lock());
        let engine = DockerEngine::connect(&address).expect("an engine");
        volumes.tidy_engine(&engine, &address, limits).expect("tidy the engine");
        volumes.gate.lock().last_used.keys().map(|(_, name)| name.clone()).collect()
    }

    fn recorded(state: &Path, entries: &[(&str, u64)]) -> Arc<CacheVolumes> {
        let volumes = CacheVolumes::load(state);
        let used = entries.iter().map(|(name, ago)| ((String::new(), (*name).to_owned()), sys::unix_now() - ago));
        volumes.gate.lock().last_used = used.collect();
        volumes
    }

    #[test]
    fn the_least_recently_used_go_and_foreign_ones_stay() {
        let state = tempfile::tempdir().expect("a directory");
        let known = [("a", 30), ("b", 20), ("gone", 40)];
        let size = |size| StorageLimits { size: Some(size), age: None };
        assert_eq!(tidied(&recorded(state.path(), &known), size(300), 0), ["a", "b", "mine"]);
        assert_eq!(tidied(&recorded(state.path(), &known), size(200), 1), ["b", "mine"]);
        assert_eq!(tidied(&recorded(state.path(), &known), size(0), 3), Vec::<String>::new());
        let age = StorageLimits { size: None, age: Some(Duration::from_secs(25)) };
        assert_eq!(tidied(&recorded(state.path(), &known), age, 1), ["b", "mine"]);
    }

    #[test]
    fn a_volume_stays_while_a_job_uses_it_or_prepares_its_containers() {
        let state = tempfile::tempdir().expect("a directory");
        let volumes = recorded(state.path(), &[("a", 30)]);
        let preparing = volumes.prepare();
        let everything = StorageLimits { size: Some(0), age: None };
        assert_eq!(tidied(&volumes, everything, 0), ["a", "mine"]);
        drop(preparing);
        let engine = volumes.gate.lock().last_used.keys().next().expect("the use must be recorded").0.clone();
        let address = Address::Tcp(engine.strip_prefix("tcp://").unwrap_or(&engine).to_owned(), None);
        let in_use = volumes.claim(&address, &["a".to_owned()]);
        assert!(volumes.gate.lock().in_use.keys().any(|(host, name)| *host == engine && name == "a"));
        drop(in_use);
        assert!(volumes.gate.lock().in_use.is_empty());
        assert_eq!(CacheVolumes::load(state.path()).gate.lock().last_used.len(), 2, "recorded for the next start");
    }
}
