//! Volumes: create, list, remove.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::spec::CreateVolume;
use super::{Call, Engine, Error, SLOW_CALL_TIMEOUTS, lenient, with_labels};
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

impl Engine {
    /// Creates a volume, or returns the existing one with that name.
    pub fn create_volume(&self, volume: &CreateVolume) -> Result<Volume, Error> {
        self.call_json(&Call::new(Method::Post, "/volumes/create").json(volume).timeouts(SLOW_CALL_TIMEOUTS))
    }

    /// Lists volumes with all these labels.
    pub fn volumes(&self, labels: &[(&str, &str)]) -> Result<Vec<Volume>, Error> {
        let list: List =
            self.call_json(&Call::new(Method::Get, format!("/volumes?filters={}", with_labels(labels))))?;
        Ok(list.volumes)
    }

    /// Removes a volume; it need not exist. Fails with 409 while a container uses it.
    pub fn remove_volume(&self, name: &str) -> Result<(), Error> {
        match self.call_without_result(
            &Call::new(Method::Delete, format!("/volumes/{}", escape(name, b""))).timeouts(SLOW_CALL_TIMEOUTS),
        ) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }
}
