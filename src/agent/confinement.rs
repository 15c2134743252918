//! Which protections the sandbox for file tasks of a container runner lacks on this machine. The agent logs it at the
//! start; `mayfly check` reports it.

use std::path::{Path, PathBuf};

use crate::config::Runner;
use crate::executor::cgroup::CgroupParents;
use crate::shim::confine::probe;

/// Describes the missing protections. Errors: the machine cannot run the sandbox at all, so jobs in containers fail.
pub fn confinement(runner: &Runner, working_directory: &Path, parents: &CgroupParents) -> Result<Vec<String>, String> {
    let builds = runner.container_builds_dir.clone().unwrap_or_else(|| PathBuf::from("builds"));
    let builds = working_directory.join(builds);
    let existing = builds.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(working_directory);
    let mut missing = probe::examine(existing, runner.confined.uid)?.0;
    let unlimited = match runner.cgroups {
        true => parents.missing().join(", "),
        false => "memory, pids, cpu (`cgroups = false`)".to_owned(),
    };
    if !unlimited.is_empty() {
        missing.push(format!("no limits of {unlimited}: no control group can be created"));
    }
    Ok(missing)
}

/// Logs the missing protections of a runner that uses the sandbox.
pub fn warn(runner: &Runner, working_directory: &Path, parents: &CgroupParents) {
    if !runner.executor.has_containers() || !nix::unistd::Uid::effective().is_root() {
        return;
    }
    match confinement(runner, working_directory, parents) {
        Err(why) => log::error!(
            "the sandbox for file tasks cannot be set up; jobs in containers will fail runner={} error={why}",
            runner.name
        ),
        Ok(missing) => {
            for protection in missing {
                log::warn!("the sandbox for file tasks lacks a protection runner={} missing={protection}", runner.name);
            }
        }
    }
}
