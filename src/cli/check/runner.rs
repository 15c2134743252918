//! Checks whether the jobs of one runner can run on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, access};

use crate::agent;
use crate::agent::fitness::{ENGINE_TIMEOUT, FitnessCheck, Requirements, ScriptRunner};
use crate::cli::job_args::JobArgs;
use crate::cli::permission;
use crate::cli::report::Report;
use crate::config::{Config, Runner};
use crate::executor::Executor;
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::engine::DockerEngine;
use crate::executor::docker::host;
use crate::executor::roots;
use crate::executor::shell::Shell;
use crate::shim::spec::User;

/// Checks the engine or the shell, the sandbox, the directories and the certificate files of a runner (`subject`).
pub fn check(report: &mut Report, subject: &str, jobs: &JobArgs, config: &Config, runner: &Runner) {
    let has_containers = runner.executor.has_containers();
    match has_containers {
        true => check_engine(report, subject, runner),
        false => check_shell(report, subject, jobs, config, runner),
    }
    check_fitness(report, subject, jobs, config, runner);
    if has_containers && Uid::effective().is_root() {
        check_confinement(report, subject, jobs, runner);
    }
    check_certificate_files(report, subject, runner);
}

/// Checks that the container engine answers, and reports which layers of the sandbox for file tasks work.
fn check_engine(report: &mut Report, subject: &str, runner: &Runner) {
    let address = match host::address(&runner.docker) {
        Ok(address) => address,
        Err(why) => return report.fail(subject, &why),
    };
    match DockerEngine::connect_within(&address, ENGINE_TIMEOUT)
        .and_then(|engine| Ok((engine.info()?, engine.revision())))
    {
        Ok((info, revision)) => {
            let version = &info.server_version;
            report.ok(subject, &format!("container engine {version} at {address}, version {revision} of its API"));
        }
        Err(error) => return report.fail(subject, &error.to_string()),
    }
    if !Uid::effective().is_root() {
        report.warn(
            subject,
            "the agent does not run as root, so git accesses files of jobs without a sandbox; run mayfly as root",
        );
    }
}

/// Checks whether the sandbox for file tasks works, and which of its layers the machine lacks.
fn check_confinement(report: &mut Report, subject: &str, jobs: &JobArgs, runner: &Runner) {
    let directory = match jobs.working_directory() {
        Ok(directory) => directory,
        Err(why) => return report.fail(subject, &why),
    };
    check_roots(report, subject, &agent::directories_of(&directory, runner), None);
    match agent::confinement(runner, &directory, &CgroupParents::find()) {
        Err(why) => report.fail(subject, &why),
        Ok(missing) if missing.is_empty() => report.ok(subject, "the sandbox for file tasks is complete"),
        Ok(missing) => missing
            .iter()
            .for_each(|protection| report.warn(subject, &format!("the sandbox for file tasks: {protection}"))),
    }
}

/// Warns if another user can replace the directories for builds and caches.
fn check_roots(report: &mut Report, subject: &str, roots: &[PathBuf], user: Option<&User>) {
    roots.iter().filter_map(|path| roots::warning(path, user)).for_each(|why| report.warn(subject, &why));
}

fn check_shell(report: &mut Report, subject: &str, jobs: &JobArgs, config: &Config, runner: &Runner) {
    let pattern = jobs.user_or_configured(config);
    let shell = match Shell::new(runner.shell.as_deref(), pattern, config.concurrent, CgroupParents::default()) {
        Ok(shell) => shell,
        Err(why) => return report.fail(subject, &why),
    };
    if let Err(error) = shell.check() {
        return report.fail(subject, &error.message);
    }
    match shell.user() {
        Some(_) if shell.shares_caches() => {
            let (pattern, slots) = (pattern.unwrap_or_default(), config.concurrent);
            report.ok(subject, &format!("jobs run as {pattern}, one user for each of {slots} slots"));
        }
        Some(user) => report.ok(subject, &format!("jobs run as user {}", user.name)),
        None if Uid::effective().is_root() => {
            report.warn(subject, "jobs run as root and can read the runner token; set `user` to a user for jobs")
        }
        None => report.warn(
            subject,
            "jobs run as the agent's own user and can read the runner token; run the agent as root, and set `user`",
        ),
    }
    match jobs.working_directory() {
        Ok(directory) => check_builds_dir(report, subject, &directory, runner, &shell),
        Err(why) => report.fail(subject, &why),
    }
}

/// Checks that jobs can write their builds directory, and that other users cannot replace it.
fn check_builds_dir(report: &mut Report, subject: &str, working_directory: &Path, runner: &Runner, shell: &Shell) {
    check_roots(report, subject, &agent::directories_of(working_directory, runner), shell.user());
    let builds = working_directory.join(runner.builds_dir.as_deref().unwrap_or(Path::new("builds")));
    let agent_can_create = || {
        let existing = builds.ancestors().find(|ancestor| ancestor.exists());
        existing.is_some_and(|path| path.is_dir() && access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok())
    };
    let usable = match shell.user() {
        // The agent creates a directory for each user below `builds_dir`.
        Some(user) if shell.shares_caches() => permission::can_reach(user, &builds.join(&user.name)),
        // The agent creates `builds_dir` for the user, but does not change its parent directories.
        Some(user) if !builds.exists() && agent_can_create() => permission::can_reach(user, &builds),
        Some(user) => permission::can_write(user, &builds),
        None if agent_can_create() => Ok(()),
        None => Err(format!("jobs cannot write {}", builds.display())),
    };
    match usable {
        Ok(()) => report.ok(subject, &format!("builds in {}", builds.display())),
        Err(why) => report.fail(subject, &format!("{why}; change its owner or mode, or set `builds_dir`")),
    }
}

/// The fitness check that the agent makes before each poll.
fn check_fitness(report: &mut Report, subject: &str, jobs: &JobArgs, config: &Config, runner: &Runner) {
    let Ok(working_directory) = jobs.working_directory() else { return };
    let user = jobs.user_or_configured(config);
    let [builds, caches] = agent::directories_of(&working_directory, runner);
    let requirements = Requirements::new(config, builds, caches, ScriptRunner::new(runner, user, config.concurrent));
    match FitnessCheck::new(requirements).run() {
        Ok(()) => report.ok(subject, "the machine is fit for its jobs: disk space, shell or engine, git"),
        Err(unfit) => report.fail(subject, &format!("the agent would not poll for jobs: {unfit}")),
    }
}

fn check_certificate_files(report: &mut Report, subject: &str, runner: &Runner) {
    let files = [
        ("tls-ca-file", &runner.tls.ca_file),
        ("tls-cert-file", &runner.tls.cert_file),
        ("tls-key-file", &runner.tls.key_file),
    ];
    if runner.tls.cert_file.is_some() != runner.tls.key_file.is_some() {
        report.warn(subject, "`tls-cert-file` and `tls-key-file` have an effect only together; set both");
    }
    for (key, path) in files {
        let Some(path) = path else { continue };
        if let Err(error) = fs::File::open(path) {
            report.fail(subject, &format!("`{key}`: {} cannot be read: {error}; correct the path", path.display()));
        }
    }
}
