//! The images of a job and its services.

use serde::Deserialize;

use super::{Variable, lenient};

/// The image of the job or of a service, with its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Image {
    #[serde(deserialize_with = "lenient::text")]
    pub name: String,
    /// Host names of a service, separated by spaces or commas.
    #[serde(deserialize_with = "lenient::text")]
    pub alias: String,
    #[serde(deserialize_with = "lenient::texts")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "lenient::texts")]
    pub command: Vec<String>,
    #[serde(deserialize_with = "lenient::list")]
    pub variables: Vec<Variable>,
    /// In the order of attempts.
    #[serde(deserialize_with = "lenient::texts")]
    pub pull_policy: Vec<String>,
    #[serde(deserialize_with = "lenient::value")]
    pub executor_opts: ExecutorOptions,
}

/// Settings of an image for one kind of executor (`image:docker`, `image:kubernetes`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExecutorOptions {
    #[serde(deserialize_with = "lenient::value")]
    pub docker: DockerOptions,
    /// Settings for another executor; ignored.
    #[serde(deserialize_with = "lenient::keys")]
    pub kubernetes: Vec<String>,
    /// Unknown kinds of executors.
    #[serde(flatten, deserialize_with = "lenient::names")]
    pub unknown: Vec<String>,
}

/// `image:docker`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DockerOptions {
    #[serde(deserialize_with = "lenient::text")]
    pub platform: String,
    #[serde(deserialize_with = "lenient::text")]
    pub user: String,
    /// Unsupported keys.
    #[serde(flatten, deserialize_with = "lenient::names")]
    pub unknown: Vec<String>,
}
