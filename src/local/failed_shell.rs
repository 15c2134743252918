//! `--shell-on-failure`: opens a shell with the state of a failed job.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::attempt::{FailedJob, RunContext};
use crate::http::Address;

/// Opens a shell in the job's tree, or in a container of its image with that tree, and waits for the shell to end.
pub fn open(context: &RunContext, name: &str, job: &FailedJob) {
    let project = &job.tree.project;
    let mut command = match &job.image {
        None => {
            let mut command = Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
            command.arg("-i").current_dir(project).envs(job.exports.iter().cloned());
            command.env("CI_PROJECT_DIR", project);
            command
        }
        Some(image) => shell_in_container(context, job, image),
    };
    context.screen.show_message(&format!(
        "opening a shell in the tree of the failed job `{name}` ({}); leave it with `exit`",
        project.display()
    ));
    if let Err(error) = command.status() {
        let program = command.get_program().to_string_lossy().into_owned();
        context.screen.show_message(&format!("warning: cannot open a shell for `{name}`: {program}: {error}"));
    }
}

/// The command that starts a shell in a new container of the job's image, because the container of the job no longer
/// exists. The command line of Docker or Podman handles the terminal.
fn shell_in_container(context: &RunContext, job: &FailedJob, image: &str) -> Command {
    let builds = context.containers.as_ref().map(|containers| containers.builds()).unwrap_or_else(|| "/builds".into());
    let inside = builds.join(job.tree.project.file_name().unwrap_or_default());
    let socket = match context.containers.as_ref().map(|containers| containers.address()) {
        Some(Address::Unix(socket)) => Some(socket.as_path()),
        _ => None,
    };
    let mut command = engine_client(&std::env::var_os("PATH").unwrap_or_default(), socket);
    command.args(["run", "--rm", "-it", "--entrypoint", "sh"]);
    command.arg("-v").arg(format!("{}:{}", job.tree.builds.display(), builds.display()));
    for objects in job.objects.iter().map(|objects| objects.display()) {
        command.arg("-v").arg(format!("{objects}:{objects}:ro"));
    }
    command.arg("-w").arg(&inside).arg("-e").arg(format!("CI_PROJECT_DIR={}", inside.display()));
    for (key, value) in &job.exports {
        // The value is not an argument: other users can read arguments, but not the environment.
        command.arg("-e").arg(key).env(key, value);
    }
    command.arg(image);
    command
}

/// The command `docker`, or `podman` if only Podman is installed in `path`, for the engine at this socket.
fn engine_client(path: &OsStr, socket: Option<&Path>) -> Command {
    let is_installed = |name: &str| std::env::split_paths(path).any(|directory| directory.join(name).is_file());
    let is_podman = !is_installed("docker") && is_installed("podman");
    let mut command = Command::new(if is_podman { "podman" } else { "docker" });
    if let Some(url) = socket.map(|socket| format!("unix://{}", socket.display())) {
        match is_podman {
            true => command.args(["--remote", "--url", &url]),
            false => command.env("DOCKER_HOST", url),
        };
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_is_used_where_docker_is_not_installed() {
        let [both, podman] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        for place in [both.path().join("docker"), both.path().join("podman"), podman.path().join("podman")] {
            std::fs::write(place, "").expect("write a file");
        }
        let socket = Some(Path::new("/run/s"));
        let program = |path: &Path| engine_client(path.as_os_str(), socket).get_program().to_owned();
        assert_eq!((program(both.path()), program(Path::new("/nonexistent"))), ("docker".into(), "docker".into()));
        let command = engine_client(podman.path().as_os_str(), socket);
        assert_eq!(command.get_program(), "podman");
        assert!(command.get_args().eq(["--remote", "--url", "unix:///run/s"]));
    }
}
