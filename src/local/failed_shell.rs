//! `--shell-on-failure`: opens a shell with the state of a failed job.

use std::process::Command;

use super::attempt::{FailedJob, RunContext};
use crate::http::Address;

/// Opens a shell in the job's tree, or in a container of its image with that tree, and waits for the shell to end.
pub fn open(context: &RunContext, name: &str, left: &FailedJob) {
    let project = &left.tree.project;
    let mut command = match &left.image {
        None => {
            let mut command = Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
            command.arg("-i").current_dir(project).envs(left.exports.iter().cloned());
            command.env("CI_PROJECT_DIR", project);
            command
        }
        Some(image) => in_container(context, left, image),
    };
    context.screen.say(&format!(
        "opening a shell in the tree of the failed job `{name}` ({}); leave it with `exit`",
        project.display()
    ));
    if let Err(error) = command.status() {
        let program = command.get_program().to_string_lossy().into_owned();
        context.screen.say(&format!("warning: cannot open a shell for `{name}`: {program}: {error}"));
    }
}

/// The job's container no longer exists. Starts another one of the same image with the docker command line, which
/// handles the terminal.
fn in_container(context: &RunContext, left: &FailedJob, image: &str) -> Command {
    let builds = context.containers.as_ref().map(|containers| containers.builds()).unwrap_or_else(|| "/builds".into());
    let inside = builds.join(left.tree.project.file_name().unwrap_or_default());
    let mut command = Command::new("docker");
    if let Some(Address::Unix(socket)) = context.containers.as_ref().map(|containers| containers.address()) {
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
    }
    command.args(["run", "--rm", "-it", "--entrypoint", "sh"]);
    command.arg("-v").arg(format!("{}:{}", left.tree.builds.display(), builds.display()));
    for objects in left.objects.iter().map(|objects| objects.display()) {
        command.arg("-v").arg(format!("{objects}:{objects}:ro"));
    }
    command.arg("-w").arg(&inside).arg("-e").arg(format!("CI_PROJECT_DIR={}", inside.display()));
    for (key, value) in &left.exports {
        // Only the name is an argument: other users can read arguments, but not the environment.
        command.arg("-e").arg(key).env(key, value);
    }
    command.arg(image);
    command
}
