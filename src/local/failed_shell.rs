//! `--shell-on-failure`: a shell where a job failed.

use std::process::Command;

use super::attempt::{Ground, Left};

/// Opens a shell in the tree of a job, or in a container of its image with that tree, and waits for its end.
pub fn open(ground: &Ground, name: &str, left: &Left) {
    let project = &left.tree.project;
    let mut command = match &left.image {
        None => {
            let mut command = Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
            command.arg("-i").current_dir(project).envs(left.exports.iter().cloned());
            command.env("CI_PROJECT_DIR", project);
            command
        }
        Some(image) => in_container(ground, left, image),
    };
    ground.screen.say(&format!("a shell where `{name}` failed ({}); it ends with `exit`", project.display()));
    if let Err(error) = command.status() {
        let program = command.get_program().to_string_lossy().into_owned();
        ground.screen.say(&format!("warning: no shell for `{name}`: {program}: {error}"));
    }
}

/// The container of the job is gone: another one of the same image, through docker's own command line, which knows how
/// to hand over a terminal.
fn in_container(ground: &Ground, left: &Left, image: &str) -> Command {
    let builds = ground.containers.as_ref().map(|containers| containers.builds()).unwrap_or_else(|| "/builds".into());
    let inside = builds.join(left.tree.project.file_name().unwrap_or_default());
    let objects = ground.objects.display();
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "-it", "--entrypoint", "sh"]);
    command.arg("-v").arg(format!("{}:{}", left.tree.builds.display(), builds.display()));
    command.arg("-v").arg(format!("{objects}:{objects}:ro"));
    command.arg("-w").arg(&inside).arg("-e").arg(format!("CI_PROJECT_DIR={}", inside.display()));
    for (key, value) in &left.exports {
        // The value goes over the environment: arguments are for everybody to see.
        command.arg("-e").arg(key).env(key, value);
    }
    command.arg(image);
    command
}
