//! `mayfly check`: tests whether jobs can run on this machine, without polling for one. Warnings do not make the
//! command fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use clap::Args;
use nix::unistd::{AccessFlags, access};

use super::report::Report;
use super::{ConfigFile, check_pools, permission};
use crate::agent::fitness::{ENGINE_TIMEOUT, FitnessCheck, Requirements, ScriptRunner, check_git};
use crate::agent::{self, advice, metadata_blocking, start_checks};
use crate::config::leave::LeaveStrategy;
use crate::config::{self, Config, Runner, Severity, system_id};
use crate::coordinator::gitlab::{ApiError, GitLab, TokenStatus};
use crate::executor::Executor;
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::engine::DockerEngine;
use crate::executor::docker::host;
use crate::executor::roots;
use crate::executor::shell::{Shell, find_program};
use crate::http::{self, diagnose::diagnose};
use crate::instance::aws::secrets;
use crate::instance::metadata_block::{self, MetadataBlock};
use crate::instance::{CheckResult, POWER_OFF, Plain};
use crate::shim::spec::User;
use crate::sync;

/// With a larger clock error, checks of certificates and tokens can fail.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

/// The timeout for responses of GitLab and AWS.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The options of `check`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// The working directory: the base of a relative `builds_dir` and `cache_dir`
    #[arg(short = 'd', long, value_name = "DIR")]
    working_directory: Option<PathBuf>,
    /// Run jobs as this user
    #[arg(short, long)]
    user: Option<String>,
}

/// Runs all checks. Problems are in the report and in the exit status; the function itself never fails.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    let mut report = Report::default();
    let path = options.file.path();
    match options.file.load_for_role() {
        Err(error) => report.fail("configuration", &error),
        Ok(loaded) => {
            report.ok("configuration", &path.display().to_string());
            for finding in &loaded.findings {
                match finding.severity {
                    Severity::UnusableRunner => report.fail("configuration", &finding.to_string()),
                    Severity::Note => report.ok("configuration", &finding.to_string()),
                    Severity::Warning | Severity::UnknownKey => report.warn("configuration", &finding.to_string()),
                }
            }
            match loaded.config.mayfly.manager {
                None => check_configuration(&mut report, options, &loaded.config),
                Some(_) => check_manager(&mut report, &loaded.config),
            }
        }
    }
    Ok(report.conclude())
}

/// The checks for `mayfly manager`, which runs no job on this machine.
fn check_manager(report: &mut Report, config: &Config) {
    if let Some(manager) = &config.mayfly.manager {
        let state = config::manager_state_dir(config, manager);
        check_state(report, &state, "[mayfly.manager]");
        check_listen_address(report, config, &state);
    }
    let mut config = config.clone();
    if let Err(why) = secrets::fetch_tokens(&mut config, TIMEOUT) {
        report.fail("token", &why);
    }
    check_pools::check(report, &config);
    let system_id = match &config.mayfly.manager {
        Some(manager) => system_id::of_manager(&config.path, &config::manager_state_dir(&config, manager)),
        None => system_id::peek(&config.path, None),
    };
    for runner in &config.runners {
        check_server(report, &format!("pool `{}`", runner.name), &config, runner, &system_id);
    }
}

fn check_configuration(report: &mut Report, options: &Options, config: &Config) {
    if config.runners.is_empty() && config.unusable.is_empty() {
        report.fail("runners", "the file has no [[runners]]; add one with `mayfly register`");
    }
    check_programs(report);
    let state = config::state_dir(config);
    check_state(report, &state, "[mayfly]");
    check_listen_address(report, config, &state);
    if CgroupParents::find().exist() {
        report.ok("control groups", "the agent creates one for each script");
    } else {
        report.warn(
            "control groups",
            "the agent cannot create control groups, so it finds the processes of a script only as their subreaper; run it \
             as root, in a unit with Delegate=yes",
        );
    }
    // The agent refuses to start if a requirement of its `leave` is not met.
    let instance = start_checks::find_running_instance(config).unwrap_or_else(|why| {
        report.fail("instance", &why);
        Arc::new(Plain)
    });
    let mut leave = config.leave.clone();
    leave.apply_default(instance.is_in_group());
    if let Some(advice) = advice::shutdown_warning(&config.lifetime, &leave, &*instance) {
        report.warn("leave", &advice);
    }
    let is_left_on = leave.strategy == LeaveStrategy::Exit;
    for CheckResult { subject: what, outcome } in instance.inspect() {
        if is_left_on && what == POWER_OFF {
            continue;
        }
        match outcome {
            Ok(text) => report.ok(what, &text),
            Err(why) => report.warn(what, &why),
        }
    }
    let mut config = config.clone();
    if let Err(why) = secrets::fetch_tokens(&mut config, TIMEOUT) {
        report.fail("token", &why);
    }
    let config = &config;
    check_metadata(report, options, config);
    // `check` never creates the system id.
    let system_id = system_id::peek(&config.path, instance.cloud_id().as_deref());
    for runner in &config.runners {
        let place = format!("runner `{}`", runner.name);
        match runner.executor.has_containers() {
            true => check_engine(report, &place, runner),
            false => check_user(report, &place, options, config, runner),
        }
        check_fitness(report, &place, options, config, runner);
        if runner.executor.has_containers() && nix::unistd::Uid::effective().is_root() {
            check_confinement(report, &place, options, runner);
        }
        check_files(report, &place, runner);
        check_server(report, &place, config, runner, &system_id);
    }
}

fn check_metadata(report: &mut Report, options: &Options, config: &Config) {
    if !config.mayfly.block_instance_metadata {
        return;
    }
    let tool = || metadata_block::check_tool().map_err(|why| format!("`block_instance_metadata`: {why}"));
    match metadata_blocking::job_users(config, options.user.as_deref()).and_then(|_| tool()) {
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

/// Checks that the container engine answers, and reports which layers of the sandbox for file tasks work.
fn check_engine(report: &mut Report, place: &str, runner: &Runner) {
    let address = match host::address(&runner.docker) {
        Ok(address) => address,
        Err(why) => return report.fail(place, &why),
    };
    match DockerEngine::connect_within(&address, ENGINE_TIMEOUT)
        .and_then(|engine| Ok((engine.info()?, engine.revision())))
    {
        Ok((info, revision)) => {
            let version = &info.server_version;
            report.ok(place, &format!("container engine {version} at {address}, version {revision} of its API"));
        }
        Err(error) => return report.fail(place, &error.to_string()),
    }
    if !nix::unistd::Uid::effective().is_root() {
        report.warn(
            place,
            "the agent does not run as root, so git accesses files of jobs without a sandbox; run mayfly as root",
        );
    }
}

/// Checks whether the sandbox for file tasks works, and which of its layers the machine lacks.
fn check_confinement(report: &mut Report, place: &str, options: &Options, runner: &Runner) {
    let directory = match agent::working_directory(options.working_directory.as_deref()) {
        Ok(directory) => directory,
        Err(why) => return report.fail(place, &why),
    };
    check_roots(report, place, &agent::directories_of(&directory, runner), None);
    match agent::confinement(runner, &directory, &CgroupParents::find()) {
        Err(why) => report.fail(place, &why),
        Ok(missing) if missing.is_empty() => report.ok(place, "the sandbox for file tasks is complete"),
        Ok(missing) => missing
            .iter()
            .for_each(|protection| report.warn(place, &format!("the sandbox for file tasks: {protection}"))),
    }
}

/// Warns if another user can replace the directories for builds and caches.
fn check_roots(report: &mut Report, place: &str, roots: &[PathBuf], user: Option<&User>) {
    roots.iter().filter_map(|path| roots::warning(path, user)).for_each(|why| report.warn(place, &why));
}

fn check_user(report: &mut Report, place: &str, options: &Options, config: &Config, runner: &Runner) {
    let user = options.user.as_deref().or(config.user.as_deref());
    let shell = match Shell::new(runner.shell.as_deref(), user, config.concurrent, CgroupParents::default()) {
        Ok(shell) => shell,
        Err(why) => return report.fail(place, &why),
    };
    if let Err(error) = shell.check() {
        return report.fail(place, &error.message);
    }
    match shell.user() {
        Some(_) if shell.shares_caches() => {
            let pattern = user.unwrap_or_default();
            report.ok(place, &format!("jobs run as {pattern}, one user for each of {} slots", config.concurrent));
        }
        Some(user) => report.ok(place, &format!("jobs run as user {}", user.name)),
        None if nix::unistd::Uid::effective().is_root() => {
            report.warn(place, "jobs run as root and can read the runner token; set `user` to a user for jobs")
        }
        None => report.warn(
            place,
            "jobs run as the agent's own user and can read the runner token; run the agent as root, and set `user`",
        ),
    }
    let directory = match agent::working_directory(options.working_directory.as_deref()) {
        Ok(directory) => directory,
        Err(why) => return report.fail(place, &why),
    };
    let builds = directory.join(runner.builds_dir.clone().unwrap_or_else(|| PathBuf::from("builds")));
    let ours =
        || first_existing(&builds).is_some_and(|there| access(&there, AccessFlags::W_OK | AccessFlags::X_OK).is_ok());
    check_roots(report, place, &agent::directories_of(&directory, runner), shell.user());
    let usable = match shell.user() {
        // The agent creates a directory for each user below `builds_dir`.
        Some(user) if shell.shares_caches() => permission::can_reach(user, &builds.join(&user.name)),
        // The agent creates `builds_dir` for the user, but does not change its parent directories.
        Some(user) if !builds.exists() && ours() => permission::can_reach(user, &builds),
        Some(user) => permission::can_write(user, &builds),
        None if ours() => Ok(()),
        None => Err(format!("jobs cannot write {}", builds.display())),
    };
    match usable {
        Ok(()) => report.ok(place, &format!("builds in {}", builds.display())),
        Err(why) => report.fail(place, &format!("{why}; change its owner or mode, or set `builds_dir`")),
    }
}

/// The fitness check that the agent makes before each poll.
fn check_fitness(report: &mut Report, place: &str, options: &Options, config: &Config, runner: &Runner) {
    let Ok(working_directory) = agent::working_directory(options.working_directory.as_deref()) else { return };
    let user = options.user.as_deref().or(config.user.as_deref());
    let [builds, caches] = agent::directories_of(&working_directory, runner);
    let requirements = Requirements::new(config, builds, caches, ScriptRunner::of(runner, user, config.concurrent));
    match FitnessCheck::new(requirements).run() {
        Ok(()) => report.ok(place, "the machine is fit for its jobs: disk space, shell or engine, git"),
        Err(unfit) => report.fail(place, &format!("the agent would not poll for jobs: {unfit}")),
    }
}

fn first_existing(path: &Path) -> Option<PathBuf> {
    let there = path.ancestors().find(|ancestor| ancestor.exists())?;
    there.is_dir().then(|| there.to_owned())
}

fn check_files(report: &mut Report, place: &str, runner: &Runner) {
    let files = [
        ("tls-ca-file", &runner.tls.ca_file),
        ("tls-cert-file", &runner.tls.cert_file),
        ("tls-key-file", &runner.tls.key_file),
    ];
    if runner.tls.cert_file.is_some() != runner.tls.key_file.is_some() {
        report.warn(place, "`tls-cert-file` and `tls-key-file` have an effect only together; set both");
    }
    for (key, path) in files {
        let Some(path) = path else { continue };
        if let Err(error) = fs::File::open(path) {
            report.fail(place, &format!("`{key}`: {} cannot be read: {error}; correct the path", path.display()));
        }
    }
}

fn check_server(report: &mut Report, place: &str, config: &Config, runner: &Runner, system_id: &str) {
    match (&runner.token_reference, runner.token.is_empty()) {
        (Some(reference), true) => {
            return report.warn(place, &format!("not checked with GitLab: the token {reference} could not be fetched"));
        }
        (None, true) => return report.fail(place, "`token` is empty; register the runner again"),
        (_, false) => {}
    }
    let handshake = runner.url.starts_with("https://").then(|| diagnose(&runner.url, &runner.tls));
    let gitlab = match agent::gitlab(config, runner) {
        Ok(gitlab) => Arc::new(gitlab),
        Err(why) => return report.fail(place, &why),
    };
    let Some(verdict) = ask(&gitlab, runner, system_id) else {
        return report.fail(
            place,
            &format!(
                "{} does not answer within {} seconds; check DNS, the firewall and the proxy",
                http::origin(&runner.url),
                TIMEOUT.as_secs()
            ),
        );
    };
    match (handshake, &verdict) {
        (Some(Ok(text)), _) => report.ok(place, &text),
        // GitLab answered over TLS, so the failed handshake is due to the proxy.
        (Some(Err(why)), Ok(_)) => report.warn(place, &format!("the TLS chain could not be checked: {why}")),
        (Some(Err(why)), Err(_)) => return report.fail(place, &why),
        (None, _) if is_loopback(&runner.url) => {}
        (None, _) => report
            .warn(place, "`url` is plain http: everyone on the network path can read tokens and sources; use https"),
    }
    match verdict {
        Ok(TokenStatus::Valid(_)) => report.ok(place, &format!("the token is valid at {}", http::origin(&runner.url))),
        Ok(TokenStatus::Invalid) => report
            .fail(place, &format!("{} does not know the token; register the runner again", http::origin(&runner.url))),
        Err(error) => match http::redirect_to_https(&runner.url, &runner.tls) {
            Some(target) => report.fail(
                place,
                &format!("`url = \"{}\"`: the server redirects to {target}; write that address as `url`", runner.url),
            ),
            None => {
                let remedy = match error {
                    ApiError::Unreachable(_) => "; check `url`, DNS, the firewall and the proxy",
                    ApiError::Refused(_) | ApiError::Answer(..) => "",
                };
                report.fail(place, &format!("the token cannot be verified: {error}{remedy}"));
            }
        },
    }
    if let Some(date) = gitlab.server_date() {
        check_clock(report, date);
    }
}

/// The stack size, in bytes, of the thread that calls GitLab.
const VERIFY_STACK: usize = 1 << 20;

/// Verifies the token; `None` if GitLab does not answer in time. The agent itself would wait for minutes.
fn ask(gitlab: &Arc<GitLab>, runner: &Runner, system_id: &str) -> Option<Result<TokenStatus, ApiError>> {
    let (sender, verdict) = mpsc::channel();
    let (asking, token, system_id) = (Arc::clone(gitlab), runner.token.clone(), system_id.to_owned());
    let asked = sync::spawn("verify", VERIFY_STACK, move || {
        // The receiver is gone after the timeout.
        let _ = sender.send(asking.verify(&token, &system_id));
    });
    asked.ok()?;
    verdict.recv_timeout(TIMEOUT).ok()
}

fn is_loopback(url: &str) -> bool {
    let origin = http::origin(url);
    let host = origin.trim_start_matches("http://");
    ["localhost", "127.", "[::1]"].iter().any(|prefix| host.starts_with(prefix))
}

fn check_clock(report: &mut Report, server: SystemTime) {
    let now = SystemTime::now();
    let off = now.duration_since(server).or_else(|_| server.duration_since(now)).unwrap_or_default();
    match off > CLOCK_TOLERANCE {
        true => report.warn(
            "clock",
            &format!("differs from the clock of GitLab by {} seconds; synchronise it (NTP)", off.as_secs()),
        ),
        false => report.ok("clock", "agrees with the clock of GitLab"),
    }
}
