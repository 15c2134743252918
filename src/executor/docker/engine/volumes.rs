//! Volumes: create, list, remove.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::spec::CreateVolume;
use super::{Call, DockerEngine, DockerError, SLOW_CALL_TIMEOUTS, lenient, with_labels};
use crate::http::{Method, escape};

/// A volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Volume {
    pub name: String,
    /// The path on the machine, for the local driver.
    pub mountpoint: String,
    #[serde(deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct List {
    #[serde(deserialize_with = "lenient")]
    volumes: Vec<Volume>,
}

/// The disk usage of the engine's volumes (`GET /system/df`).
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DiskUsage {
    #[serde(deserialize_with = "lenient")]
    volumes: Vec<VolumeUsage>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct VolumeUsage {
    name: String,
    #[serde(deserialize_with = "lenient")]
    usage_data: Usage,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Usage {
    /// The size in bytes; -1 if the driver does not know it.
    size: i64,
}

impl DockerEngine {
    /// Creates a volume, or returns the existing one with that name.
    pub fn create_volume(&self, volume: &CreateVolume) -> Result<Volume, DockerError> {
        self.call_json(&Call::new(Method::Post, "/volumes/create").json(volume).timeouts(SLOW_CALL_TIMEOUTS))
    }

    /// Lists volumes with all these labels.
    pub fn volumes(&self, labels: &[(&str, &str)]) -> Result<Vec<Volume>, DockerError> {
        let list: List =
            self.call_json(&Call::new(Method::Get, format!("/volumes?filters={}", with_labels(labels))))?;
        Ok(list.volumes)
    }

    /// The size of each volume in bytes. The engine reads all files of the volumes to measure them.
    pub fn volume_sizes(&self) -> Result<HashMap<String, u64>, DockerError> {
        let call = Call::new(Method::Get, "/system/df?type=volume").timeouts(SLOW_CALL_TIMEOUTS);
        let usage: DiskUsage = self.call_json(&call)?;
        let sizes = usage.volumes.into_iter().map(|volume| (volume.name, u64::try_from(volume.usage_data.size)));
        Ok(sizes.filter_map(|(name, size)| Some((name, size.ok()?))).collect())
    }

    /// Removes a volume, which need not exist. Fails with 409 while a container uses the volume.
    pub fn remove_volume(&self, name: &str) -> Result<(), DockerError> {
        match self.call_without_result(
            &Call::new(Method::Delete, format!("/volumes/{}", escape(name, b""))).timeouts(SLOW_CALL_TIMEOUTS),
        ) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }
}
