//! The developer's container engine: the one that the docker command line uses, or a rootless one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::executor::docker::engine::DockerError;
use crate::executor::docker::host as engine_host;
use crate::executor::docker::names::digest;
use crate::executor::user;

/// The socket of an engine that runs as root.
const ROOT_SOCKET: &str = "/var/run/docker.sock";
/// The sockets of rootless engines below the user's runtime directory.
const ROOTLESS_SOCKETS: [&str; 2] = ["docker.sock", "podman/podman.sock"];

/// An engine's address, as in `[runners.docker]`.
#[derive(Debug, PartialEq)]
pub struct EngineHost {
    /// `unix:///path` or `tcp://host:port`
    pub host: String,
    /// The directory of the TLS certificates.
    pub certificates: Option<PathBuf>,
}

/// The engine of the current Docker context, or a rootless engine if no engine runs as root. `None`: `DOCKER_HOST` or
/// the socket of an engine that runs as root applies. Fails if the context cannot be read.
pub fn find() -> Result<Option<EngineHost>, String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if variable("DOCKER_HOST").is_some() {
        return Ok(None);
    }
    let configuration = variable("DOCKER_CONFIG").map_or_else(|| user::current().home.join(".docker"), PathBuf::from);
    let context = variable("DOCKER_CONTEXT").or_else(|| current_context(&configuration));
    if let Some(name) = context.filter(|name| name != "default") {
        return engine_of_context(&configuration, &name).map(Some);
    }
    let runtime = variable("XDG_RUNTIME_DIR").filter(|_| !Path::new(ROOT_SOCKET).exists());
    let sockets =
        runtime.into_iter().flat_map(|directory| ROOTLESS_SOCKETS.map(|name| Path::new(&directory).join(name)));
    let socket = sockets.into_iter().find(|socket| socket.exists());
    Ok(socket.map(|socket| EngineHost { host: format!("unix://{}", socket.display()), certificates: None }))
}

/// The context that `docker context use` has chosen.
fn current_context(configuration: &Path) -> Option<String> {
    let text = fs::read(configuration.join("config.json")).ok()?;
    let configuration: Value = serde_json::from_slice(&text).ok()?;
    configuration["currentContext"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The engine of a Docker context.
fn engine_of_context(configuration: &Path, name: &str) -> Result<EngineHost, String> {
    let (contexts, id) = (configuration.join("contexts"), digest(name));
    let file = contexts.join("meta").join(&id).join("meta.json");
    let failed = |why: String| format!("Docker context `{name}`: {}: {why}", file.display());
    let text = fs::read(&file).map_err(|error| {
        failed(format!("{error}; `docker context ls` lists the contexts, `docker context use` chooses one"))
    })?;
    let meta: Value = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    let no_address = || {
        failed(
            "the file contains no address of an engine; choose another context with `docker context use`, or set \
             DOCKER_HOST"
                .to_owned(),
        )
    };
    let host = meta["Endpoints"]["docker"]["Host"].as_str().ok_or_else(no_address)?.to_owned();
    engine_host::check(&host).map_err(|why| {
        failed(format!("{why}, choose another context with `docker context use`, or set DOCKER_HOST"))
    })?;
    let certificates = contexts.join("tls").join(&id).join("docker");
    Ok(EngineHost { host, certificates: Some(certificates).filter(|directory| directory.is_dir()) })
}

/// Why the engine cannot be used, and what a developer can do about it.
pub fn advice(error: &DockerError) -> String {
    match error {
        DockerError::Missing { address } => format!(
            "there is no container engine at {address}; start Docker or Podman, or set DOCKER_HOST to the address of \
             an engine"
        ),
        DockerError::NotPermitted { address } => format!(
            "your user has no access to the container engine at {address}; add the user to the group of the socket \
             (usually `docker`), or set DOCKER_HOST to the address of a rootless engine"
        ),
        DockerError::NotRunning { address } => {
            format!(
                "the container engine at {address} does not run; start it, or set DOCKER_HOST to the address of \
                 another engine"
            )
        }
        DockerError::NeedsTls { address } => format!(
            "the container engine at {address} speaks TLS; set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH to the \
             directory with `ca.pem`, `cert.pem` and `key.pem`, or choose a Docker context that has certificates"
        ),
        DockerError::UntrustedEngine { address, why, ca_file: None } => format!(
            "the certificate of the container engine at {address} is not trusted ({why}); set DOCKER_CERT_PATH to the \
             directory with the certificate of its authority (`ca.pem`)"
        ),
        DockerError::UntrustedClient { address, why, ca_file: None } => format!(
            "the container engine at {address} requires a client certificate ({why}); set DOCKER_CERT_PATH to the \
             directory with `cert.pem` and `key.pem`"
        ),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_contexts_as_the_docker_command_line_writes_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let configuration = directory.path();
        // The directory that `docker context create execx` makes.
        assert_eq!(digest("execx"), "f23edc3db6906d60b0559814e08911272f9b5a5fe8d974dc54b3e736ebca0bb1");
        let meta = configuration.join("contexts/meta").join(digest("remote"));
        fs::create_dir_all(&meta).expect("create the directory");
        let text =
            r#"{"Name":"remote","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://h:1","SkipTLSVerify":false}}}"#;
        fs::write(meta.join("meta.json"), text).expect("write a file");
        assert_eq!(
            engine_of_context(configuration, "remote"),
            Ok(EngineHost { host: "tcp://h:1".to_owned(), certificates: None })
        );
        let certificates = configuration.join("contexts/tls").join(digest("remote")).join("docker");
        fs::create_dir_all(&certificates).expect("create the directory");
        assert_eq!(engine_of_context(configuration, "remote").expect("a context").certificates, Some(certificates));
        for host in ["ssh://user@h", "tcp://h/path", "unix://relative"] {
            fs::write(meta.join("meta.json"), text.replace("tcp://h:1", host)).expect("write a file");
            let why = engine_of_context(configuration, "remote").expect_err("must be refused");
            assert!(why.contains("Docker context `remote`") && why.contains(&format!("`{host}`")), "{why}");
        }
        assert!(engine_of_context(configuration, "other").expect_err("missing").contains("Docker context `other`"));
        assert_eq!(current_context(configuration), None);
        fs::write(configuration.join("config.json"), r#"{"currentContext":"remote"}"#).expect("write a file");
        assert_eq!(current_context(configuration).as_deref(), Some("remote"));
    }
}
