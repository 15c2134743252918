//! Commands in a running container.

use serde::{Deserialize, Serialize};

use super::{Call, DockerEngine, DockerError};
use crate::http::Method;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CreateExec<'a> {
    cmd: &'a [&'a str],
    user: &'a str,
    attach_stdout: bool,
    attach_stderr: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct StartExec {
    detach: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

impl DockerEngine {
    /// Starts a command in a container as `user` (empty: the container's user), without waiting for it and without its
    /// output. Fails with 409 if the container does not run.
    pub fn exec_detached(&self, container: &str, user: &str, command: &[&str]) -> Result<(), DockerError> {
        let create = CreateExec { cmd: command, user, attach_stdout: false, attach_stderr: false };
        let created: Created =
            self.call_json(&Call::new(Method::Post, format!("/containers/{container}/exec")).json(&create))?;
        self.call_without_result(
            &Call::new(Method::Post, format!("/exec/{}/start", created.id)).json(&StartExec { detach: true }),
        )
    }
}
