//! Networks: create, inspect, remove.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::spec::CreateNetwork;
use super::{Call, DockerEngine, DockerError, SLOW_CALL_TIMEOUTS, lenient, with_labels};
use crate::http::{Method, escape};

/// A network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    pub id: String,
    pub name: String,
    #[serde(deserialize_with = "lenient")]
    pub labels: BTreeMap<String, String>,
    /// Containers in it, by id (only when a single network is inspected).
    #[serde(deserialize_with = "lenient")]
    pub containers: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

impl DockerEngine {
    /// Creates a network; returns its id. Fails with 409 if the name is in use.
    pub fn create_network(&self, network: &CreateNetwork) -> Result<String, DockerError> {
        let created: Created =
            self.call_json(&Call::new(Method::Post, "/networks/create").json(network).timeouts(SLOW_CALL_TIMEOUTS))?;
        Ok(created.id)
    }

    /// Inspects a network by name or id.
    pub fn network(&self, name: &str) -> Result<Network, DockerError> {
        self.call_json(&Call::new(Method::Get, format!("/networks/{}", escape(name, b""))))
    }

    /// Lists networks with all these labels.
    pub fn networks(&self, labels: &[(&str, &str)]) -> Result<Vec<Network>, DockerError> {
        self.call_json(&Call::new(Method::Get, format!("/networks?filters={}", with_labels(labels))))
    }

    /// Removes a network, which need not exist. Fails with 403 while the network has containers.
    pub fn remove_network(&self, name: &str) -> Result<(), DockerError> {
        match self.call_without_result(
            &Call::new(Method::Delete, format!("/networks/{}", escape(name, b""))).timeouts(SLOW_CALL_TIMEOUTS),
        ) {
            Err(error) if error.is_missing() => Ok(()),
            outcome => outcome,
        }
    }
}
