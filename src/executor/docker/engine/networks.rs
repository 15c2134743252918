//! Networks: made, looked at, removed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::spec::CreateNetwork;
use super::{Call, Engine, Error, SLOW_CALL_TIMEOUTS, lenient, with_labels};
use crate::http::{Method, escape};

/// A network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
    /// Containers in it, by id (in the answer about one network only).
    #[serde(deserialize_with = "lenient")]
    pub containers: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

impl Engine {
    /// Makes a network; returns its id. Errors: 409 for a name that is taken.
    pub fn create_network(&self, network: &CreateNetwork) -> Result<String, Error> {
        let created: Created =
            self.call_json(&Call::new(Method::Post, "/networks/create").json(network).timeouts(SLOW_CALL_TIMEOUTS))?;
        Ok(created.id)
    }

    /// A network by name or id.
    pub fn network(&self, name: &str) -> Result<Network, Error> {
        self.call_json(&Call::new(Method::Get, format!("/networks/{}", escape(name, b""))))
    }

    /// Networks with all of these labels.
    pub fn networks(&self, labels: &[(&str, &str)]) -> Result<Vec<Network>, Error> {
        self.call_json(&Call::new(Method::Get, format!("/networks?filters={}", with_labels(labels))))
    }

    /// Removes a network; none is fine. Errors: 403 while containers are in it.
    pub fn remove_network(&self, name: &str) -> Result<(), Error> {
        match self.call_without_result(
            &Call::new(Method::Delete, format!("/networks/{}", escape(name, b""))).timeouts(SLOW_CALL_TIMEOUTS),
        ) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }
}
