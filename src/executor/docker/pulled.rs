//! Records the images that jobs of this agent have pulled, and removes those that no job has used for `images_max_age`.
//!
//! Only images that a pull downloaded are recorded, by id. The agent keeps images that were on the machine before, that
//! another user tagged, or that a container uses. It removes no image while a job prepares its containers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::{DockerEngine, DockerError};
use super::removal_gate::{Preparing, RemovalGate};
use crate::decode;
use crate::http::Address;
use crate::monitor::machine;
use crate::sys;

/// The name of the record in the state directory.
const RECORD_FILE: &str = "images.json";

/// An image of a job's containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedImage {
    /// The id of the image.
    pub id: String,
    /// Whether a pull for this job downloaded the image.
    pub pulled: bool,
}

/// The images that jobs of this agent have pulled, of all engines.
pub struct PulledImages {
    state: PathBuf,
    gate: Arc<RemovalGate<ImageRecord>>,
}

/// The last uses of images.
#[derive(Default)]
pub struct ImageRecord {
    /// The time at which each image was last used, in seconds since the epoch, by engine and id.
    used: BTreeMap<(String, String), u64>,
    /// For each engine, the time after which unused images are removed.
    limits: Vec<(Address, Duration)>,
}

impl PulledImages {
    /// Loads the record from the state directory.
    pub fn load(state: &Path) -> Arc<Self> {
        let read = fs::read(state.join(RECORD_FILE)).ok();
        let recorded = read.and_then(|text| decode::json::<Vec<(String, String, u64)>>(&text).ok()).unwrap_or_default();
        let used = crate::ordered::map(recorded.into_iter().map(|(engine, id, at)| ((engine, id), at)));
        let gate = RemovalGate::new(ImageRecord { used, limits: Vec::new() });
        Arc::new(Self { state: state.to_owned(), gate })
    }

    /// Sets the time after which unused images are removed, for each engine.
    pub fn limit(&self, limits: Vec<(Address, Duration)>) {
        self.gate.lock().limits = limits;
    }

    /// Whether any engine has a limit.
    pub fn has_limits(&self) -> bool {
        !self.gate.lock().limits.is_empty()
    }

    /// Prevents the removal of images until the result is dropped; waits for a running removal.
    pub fn prepare(&self) -> Preparing<ImageRecord> {
        self.gate.prepare()
    }

    /// Records that a job uses these images.
    pub fn record_use(&self, engine: &Address, images: &[UsedImage]) {
        let mut record = self.gate.lock();
        for image in images {
            let key = (engine.to_string(), image.id.clone());
            if image.pulled || record.used.contains_key(&key) {
                record.used.insert(key, sys::unix_now());
            }
        }
        self.save(&record);
    }

    /// Removes the images that no job has used within the limit.
    pub fn tidy(&self) {
        let limits = self.gate.lock().limits.clone();
        for (address, age) in limits {
            let due = self.due(&address.to_string(), age);
            if due.is_empty() {
                continue;
            }
            match DockerEngine::connect(&address) {
                Ok(engine) => due.iter().for_each(|id| self.remove(&engine, &address, id, age)),
                Err(error) => log::warn!("cannot remove unused images engine={address} error={error}"),
            }
        }
    }

    fn due(&self, engine: &str, age: Duration) -> Vec<String> {
        let is_due = |((host, _), used): &(&(String, String), &u64)| host == engine && is_older(**used, age);
        self.gate.lock().used.iter().filter(is_due).map(|((_, id), _)| id.clone()).collect()
    }

    /// Removes an image, unless a job prepares its containers or has used the image meanwhile.
    fn remove(&self, engine: &DockerEngine, address: &Address, id: &str, age: Duration) {
        let key = (address.to_string(), id.to_owned());
        let is_due = |record: &ImageRecord| record.used.get(&key).is_some_and(|used| is_older(*used, age));
        let settle = |record: &mut ImageRecord, result| {
            match result {
                Ok(()) => {
                    record.used.remove(&key);
                    machine::image_removed();
                    log::info!("unused image removed image={id} engine={address}");
                }
                // A container uses the image, or another user has tagged it.
                Err(error) if DockerError::is_conflict(&error) => {
                    log::debug!("image kept: the engine reports that it is in use image={id} error={error}");
                }
                Err(error) => log::warn!("cannot remove an unused image image={id} error={error}"),
            }
            self.save(record);
        };
        self.gate.remove(is_due, || engine.remove_image(id), settle);
    }

    fn save(&self, record: &ImageRecord) {
        let all: Vec<_> = record.used.iter().map(|((engine, id), used)| (engine, id, used)).collect();
        let path = self.state.join(RECORD_FILE);
        let written = serde_json::to_vec(&all).map_err(io::Error::other);
        // If the record cannot be written, an agent that restarts does not find these images in the record and keeps
        // them.
        if let Err(error) = written.and_then(|text| sys::replace_file(&path, &text)) {
            log::debug!("cannot record the pulled images path={} error={error}", path.display());
        }
    }
}

fn is_older(used: u64, age: Duration) -> bool {
    sys::unix_now().saturating_sub(used) > age.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pulled_images_are_recorded_and_every_use_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let images = PulledImages::load(directory.path());
        let engine = Address::Unix("/run/engine.sock".into());
        let used = |id: &str, pulled| UsedImage { id: id.to_owned(), pulled };
        images.record_use(&engine, &[used("pulled", true), used("of the machine", false)]);
        let name = engine.to_string();
        images.gate.lock().used.values_mut().for_each(|used| *used -= 100);
        assert_eq!(images.due(&name, Duration::from_secs(50)), ["pulled"]);
        assert!(PulledImages::load(directory.path()).due(&name, Duration::ZERO).is_empty(), "used now");
        images.record_use(&engine, &[used("pulled", false)]);
        assert!(images.due(&name, Duration::from_secs(50)).is_empty());
        assert!(images.due("another", Duration::ZERO).is_empty());
    }
}
