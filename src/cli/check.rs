//! `mayfly check`: tests whether jobs can run on this machine, without polling for one. Warnings do not make the
//! command fail.

mod runner;
mod server;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::job_args::JobArgs;
use super::report::Report;
use super::{ConfigFile, check_pools};
use crate::agent::fitness::check_git;
use crate::agent::{advice, metadata_blocking, start_checks};
use crate::config::leave::LeaveStrategy;
use crate::config::manager::Manager;
use crate::config::{self, Config, Finding, Severity, system_id};
use crate::executor::cgroup::CgroupParents;
use crate::executor::shell::find_program;
use crate::instance::aws::secrets;
use crate::instance::metadata_block::{self, MetadataBlock};
use crate::instance::{CheckResult, Instance, POWER_OFF, Plain};

/// The timeout for responses of GitLab and AWS.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The options of `check`.
#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    jobs: JobArgs,
}

/// Runs all checks. Problems are in the report and in the exit status; the function itself never fails.
pub fn main(options: &CheckArgs) -> Result<ExitCode, String> {
    let mut report = Report::default();
    match options.file.load_for_role() {
        Err(error) => report.fail("configuration", &error),
        Ok(loaded) => {
            report.ok("configuration", &options.file.path().display().to_string());
            report_findings(&mut report, &loaded.findings);
            match &loaded.config.mayfly.manager {
                None => check_agent(&mut report, &options.jobs, loaded.config),
                Some(manager) => check_manager(&mut report, manager, loaded.config.clone()),
            }
        }
    }
    Ok(report.conclude())
}

fn report_findings(report: &mut Report, findings: &[Finding]) {
    for finding in findings {
        match finding.severity {
            Severity::UnusableRunner => report.fail("configuration", &finding.to_string()),
            Severity::Note => report.ok("configuration", &finding.to_string()),
            Severity::Warning | Severity::UnknownKey => report.warn("configuration", &finding.to_string()),
        }
    }
}

/// The checks for `mayfly manager`, which runs no job on this machine.
fn check_manager(report: &mut Report, manager: &Manager, mut config: Config) {
    let state = config::manager_state_dir(&config, manager);
    check_state(report, &state, "[mayfly.manager]");
    check_listen_address(report, &config, &state);
    fetch_tokens(report, &mut config);
    check_pools::check(report, &config);
    let system_id = system_id::load_for_manager(&config.path, &state);
    for runner in &config.runners {
        server::check(report, &format!("pool `{}`", runner.name), &config, runner, &system_id);
    }
}

/// The checks for `mayfly run`: the machine, then each runner.
fn check_agent(report: &mut Report, jobs: &JobArgs, mut config: Config) {
    if config.runners.is_empty() && config.unusable.is_empty() {
        report.fail("runners", "the file has no [[runners]]; add one with `mayfly register`");
    }
    check_programs(report);
    let state = config::state_dir(&config);
    check_state(report, &state, "[mayfly]");
    check_listen_address(report, &config, &state);
    check_control_groups(report);
    let instance = check_instance(report, &config);
    fetch_tokens(report, &mut config);
    check_metadata(report, jobs, &config);
    // `check` never creates the system id.
    let system_id = system_id::peek(&config.path, instance.cloud_id().as_deref());
    for runner in &config.runners {
        let subject = format!("runner `{}`", runner.name);
        runner::check(report, &subject, jobs, &config, runner);
        server::check(report, &subject, &config, runner, &system_id);
    }
}

/// Fetches tokens that are stored in AWS.
fn fetch_tokens(report: &mut Report, config: &mut Config) {
    if let Err(why) = secrets::fetch_tokens(config, TIMEOUT) {
        report.fail("token", &why);
    }
}

fn check_control_groups(report: &mut Report) {
    match CgroupParents::find().has_step_groups() {
        true => report.ok("control groups", "the agent creates one for each script"),
        false => report.warn(
            "control groups",
            "the agent cannot create control groups, so it finds the processes of a script only as their subreaper; run it \
             as root, in a unit with Delegate=yes",
        ),
    }
}

/// Checks the instance, and the shutdown that `leave` configures. The agent refuses to start if a requirement of its
/// `leave` is not met.
fn check_instance(report: &mut Report, config: &Config) -> Arc<dyn Instance> {
    let instance = start_checks::find_running_instance(config).unwrap_or_else(|why| {
        report.fail("instance", &why);
        Arc::new(Plain)
    });
    let mut leave = config.leave.clone();
    leave.apply_default(instance.default_leave());
    if let Some(advice) = advice::shutdown_warning(&config.lifetime, &leave, &*instance) {
        report.warn("leave", &advice);
    }
    let keeps_running = leave.strategy == LeaveStrategy::Exit;
    for CheckResult { subject, outcome } in instance.inspect() {
        match outcome {
            _ if keeps_running && subject == POWER_OFF => {}
            Ok(text) => report.ok(subject, &text),
            Err(why) => report.warn(subject, &why),
        }
    }
    instance
}

fn check_metadata(report: &mut Report, jobs: &JobArgs, config: &Config) {
    if !config.mayfly.block_instance_metadata {
        return;
    }
    let tool = || metadata_block::check_tool().map_err(|why| format!("`block_instance_metadata`: {why}"));
    match metadata_blocking::job_users(config, jobs.user.as_deref()).and_then(|_| tool()) {
        Err(why) => report.fail("metadata", &why),
        Ok(_) if MetadataBlock::check().is_ok() => report.ok("metadata", "access of jobs is blocked"),
        Ok(tool) => report.ok("metadata", &format!("the agent will block access of jobs when it starts ({tool})")),
    }
}

fn check_programs(report: &mut Report) {
    match check_git() {
        Ok(version) => report.ok("git", &version),
        Err(unfit) => report.fail("git", &unfit.to_string()),
    }
    match find_program("bash").or_else(|| find_program("sh")) {
        Some(shell) => report.ok("shell", &shell.display().to_string()),
        None => report.fail("shell", "neither bash nor sh is installed; install bash"),
    }
}

fn check_state(report: &mut Report, state: &Path, table: &str) {
    match start_checks::check_state_dir(state, table) {
        Ok(()) => report.ok("state directory", &state.display().to_string()),
        Err(why) => report.fail("state directory", &why),
    }
}

fn check_listen_address(report: &mut Report, config: &Config, state: &Path) {
    let Some(address) = config.listen_address.as_ref().filter(|address| !address.is_empty()) else { return };
    match start_checks::check_listen_address(address, state) {
        Ok(()) => report.ok("listen_address", &format!("{address} can be used")),
        Err(why) => report.fail("listen_address", &why),
    }
}
