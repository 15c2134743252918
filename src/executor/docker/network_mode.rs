//! The network that the containers of a job share.

use crate::config::docker::DockerConfig;

/// The network that the containers of a job share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// The engine's default bridge, which has no DNS: addresses are written to the containers' hosts files.
    Bridge,
    /// The machine's network.
    Host,
    /// A network with DNS for container names.
    Named(String),
    /// No network, or the network of another container.
    Other(String),
}

impl NetworkMode {
    /// The configured network; if none is configured, the job's own network, or the default bridge without one.
    pub fn for_job(docker: &DockerConfig, own_network: Option<&str>) -> Self {
        match (docker.network_mode.as_str(), own_network) {
            ("", Some(name)) => Self::Named(name.to_owned()),
            ("" | "bridge" | "default", _) => Self::Bridge,
            ("host", _) => Self::Host,
            (mode, _) if mode == "none" || mode.starts_with("container:") => Self::Other(mode.to_owned()),
            (name, _) => Self::Named(name.to_owned()),
        }
    }

    /// The mode as the engine names it.
    pub fn mode(&self) -> &str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Named(name) | Self::Other(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_the_configured_network_or_the_jobs_own() {
        for (mode, of_job, expected) in [
            ("", None, NetworkMode::Bridge),
            ("", Some("mine"), NetworkMode::Named("mine".to_owned())),
            ("bridge", Some("mine"), NetworkMode::Bridge),
            ("host", Some("mine"), NetworkMode::Host),
            ("none", None, NetworkMode::Other("none".to_owned())),
            ("container:x", None, NetworkMode::Other("container:x".to_owned())),
            ("ours", Some("mine"), NetworkMode::Named("ours".to_owned())),
        ] {
            let docker = DockerConfig { network_mode: mode.to_owned(), ..DockerConfig::default() };
            assert_eq!(NetworkMode::for_job(&docker, of_job), expected, "{mode}");
        }
    }
}
