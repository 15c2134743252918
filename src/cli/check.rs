//! `mayfly check`: proves the set-up without taking a job. Warnings do not fail it; what would keep jobs from running
//! does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use clap::Args;
use nix::unistd::{AccessFlags, access};

use super::{ConfigFile, permission};
use crate::agent::fitness::{Gate, Requirements, Scripts};
use crate::agent::{self, seclusion};
use crate::config::leave::Strategy;
use crate::config::{self, Config, Runner, system_id};
use crate::coordinator::gitlab::{ApiError, GitLab, Verdict};
use crate::executor::Executor;
use crate::executor::cgroup::Parents;
use crate::executor::docker::engine::Engine;
use crate::executor::docker::host;
use crate::executor::roots;
use crate::executor::shell::{Shell, find_program};
use crate::http::{self, diagnose::diagnose};
use crate::instance::aws::secrets;
use crate::instance::guard::{self, Guard};
use crate::instance::{self, Examined, Need, POWER_OFF, Plain};

/// A clock that is further off than this breaks certificates and tokens.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `check` takes.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Where builds are made, unless the configuration says so
    #[arg(short = 'd', long, value_name = "DIR")]
    working_directory: Option<PathBuf>,
    /// Run jobs as this user
    #[arg(short, long)]
    user: Option<String>,
}

/// What the checks came to.
#[derive(Default)]
struct Report {
    failures: usize,
    warnings: usize,
}

impl Report {
    fn ok(&self, what: &str, text: &str) {
        println!("ok       {what}: {text}");
    }

    fn warn(&mut self, what: &str, text: &str) {
        self.warnings += 1;
        println!("warning  {what}: {text}");
    }

    fn fail(&mut self, what: &str, text: &str) {
        self.failures += 1;
        println!("FAIL     {what}: {text}");
    }
}

/// Checks everything it can reach. Errors: none; what is wrong is in the report and in the exit status.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    let mut report = Report::default();
    let path = options.file.path();
    match Config::load(&path) {
        Err(error) => report.fail("configuration", &error.to_string()),
        Ok(loaded) => {
            report.ok("configuration", &path.display().to_string());
            for finding in &loaded.findings {
                report.warn("configuration", &finding.to_string());
            }
            check_configuration(&mut report, options, &loaded.config);
        }
    }
    let plural = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
    println!("{}, {}", plural(report.failures, "failure"), plural(report.warnings, "warning"));
    Ok(if report.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_configuration(report: &mut Report, options: &Options, config: &Config) {
    if config.runners.is_empty() {
        report.fail("runners", "there is none; add one with `mayfly register`");
    }
    check_programs(report);
    check_state(report, config);
    if Parents::find().exist() {
        report.ok("control groups", "each script has one of its own");
    } else {
        report.warn("control groups", "none can be made; the subreaper alone keeps a script's processes together");
    }
    let instance = instance::find(config.mayfly.aws.as_ref(), Need::Nothing).unwrap_or_else(|_| Arc::new(Plain));
    let is_left_on = config.leave.strategy == Strategy::Exit;
    for Examined { what, outcome } in instance.examine() {
        if is_left_on && what == POWER_OFF {
            continue;
        }
        match outcome {
            Ok(text) => report.ok(what, &text),
            Err(why) => report.warn(what, &why),
        }
    }
    let mut config = config.clone();
    if let Err(why) = secrets::fill_in(&mut config, PATIENCE) {
        report.fail("token", &why);
    }
    let config = &config;
    check_metadata(report, options, config);
    // Looking changes nothing, not even that.
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
    let tool = || guard::check_tool().map_err(|why| format!("`block_instance_metadata`: {why}"));
    match seclusion::users(config, options.user.as_deref()).and_then(|_| tool()) {
        Err(why) => report.fail("metadata", &why),
        Ok(_) if Guard::look().is_ok() => report.ok("metadata", "jobs are kept from it"),
        Ok(tool) => report.ok("metadata", &format!("jobs are kept from it once the agent runs ({tool})")),
    }
}

fn check_programs(report: &mut Report) {
    match find_program("git").map(|git| Command::new(git).arg("--version").output()) {
        Some(Ok(output)) if output.status.success() => {
            report.ok("git", String::from_utf8_lossy(&output.stdout).trim());
        }
        _ => report.fail("git", "not found; jobs cannot fetch their sources: install git"),
    }
    match find_program("bash").or_else(|| find_program("sh")) {
        Some(shell) => report.ok("shell", &shell.display().to_string()),
        None => report.fail("shell", "neither bash nor sh is there; install bash"),
    }
}

fn check_state(report: &mut Report, config: &Config) {
    let state = config::state_dir(config);
    match first_existing(&state) {
        Some(there) if access(&there, AccessFlags::W_OK).is_ok() => {
            report.ok("state directory", &state.display().to_string());
        }
        _ => report
            .fail("state directory", &format!("{} cannot be written; set `state_dir` below [mayfly]", state.display())),
    }
}

/// Whether the engine that makes the containers of jobs answers, and how well work beside them is confined.
fn check_engine(report: &mut Report, place: &str, runner: &Runner) {
    let address = match host::address(&runner.docker) {
        Ok(address) => address,
        Err(why) => return report.fail(place, &why),
    };
    match Engine::connect(&address).and_then(|engine| Ok((engine.info()?, engine.revision()))) {
        Ok((info, revision)) => {
            let version = &info.server_version;
            report.ok(place, &format!("container engine {version} at {address}, version {revision} of its API"));
        }
        Err(error) => return report.fail(place, &error.to_string()),
    }
    if !nix::unistd::Uid::effective().is_root() {
        report.warn(
            place,
            "sources, caches and artifacts of jobs are worked on without walls around git: run mayfly as root",
        );
    }
}

/// Whether work beside containers can be confined, and which walls the machine lacks.
fn check_confinement(report: &mut Report, place: &str, options: &Options, runner: &Runner) {
    let directory = match agent::working_directory(options.working_directory.as_deref()) {
        Ok(directory) => directory,
        Err(why) => return report.fail(place, &why),
    };
    match agent::confinement(runner, &directory, &Parents::find()) {
        Err(why) => report.fail(place, &why),
        Ok(missing) if missing.is_empty() => report.ok(place, "work beside containers is confined"),
        Ok(missing) => missing.iter().for_each(|wall| report.warn(place, &format!("work beside containers: {wall}"))),
    }
}

fn check_user(report: &mut Report, place: &str, options: &Options, config: &Config, runner: &Runner) {
    let user = options.user.as_deref().or(config.user.as_deref());
    let shell = match Shell::new(runner.shell.as_deref(), user, config.concurrent, Parents::default()) {
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
        None if nix::unistd::Uid::effective().is_root() => report.warn(
            place,
            "jobs run as root and can read the runner token; give them a user of their own (`user = \"…\"`)",
        ),
        None => report.warn(place, "jobs run as the agent's own user and can read the runner token"),
    }
    let directory = match agent::working_directory(options.working_directory.as_deref()) {
        Ok(directory) => directory,
        Err(why) => return report.fail(place, &why),
    };
    let builds = directory.join(runner.builds_dir.clone().unwrap_or_else(|| PathBuf::from("builds")));
    let ours =
        || first_existing(&builds).is_some_and(|there| access(&there, AccessFlags::W_OK | AccessFlags::X_OK).is_ok());
    if let Some(user) = shell.user() {
        let caches = directory.join(runner.cache_dir.clone().unwrap_or_else(|| PathBuf::from("cache")));
        for why in [&builds, &caches].into_iter().filter_map(|path| roots::warning(path, user)) {
            report.warn(place, &why);
        }
    }
    let usable = match shell.user() {
        // Below it each user has a directory that the agent makes.
        Some(user) if shell.shares_caches() => permission::can_reach(user, &builds.join(&user.name)),
        // The agent makes it for the user; what stands above it stays as it is.
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

/// The look that the agent takes before each request for a job.
fn check_fitness(report: &mut Report, place: &str, options: &Options, config: &Config, runner: &Runner) {
    let Ok(working_directory) = agent::working_directory(options.working_directory.as_deref()) else { return };
    let user = options.user.as_deref().or(config.user.as_deref());
    let [builds, caches] = agent::directories_of(&working_directory, runner);
    let requirements = Requirements::new(config, builds, caches, Scripts::of(runner, user, config.concurrent));
    match Gate::new(requirements).look() {
        Ok(()) => report.ok(place, "the machine is fit for its jobs: disk space, shell or engine, git"),
        Err(unfit) => report.fail(place, &format!("the agent would not ask for jobs: {unfit}")),
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
        report.warn(place, "`tls-cert-file` and `tls-key-file` have an effect only together");
    }
    for (key, path) in files {
        if let Some(path) = path.as_ref().filter(|path| fs::File::open(path).is_err()) {
            report.fail(place, &format!("`{key}`: {} cannot be read", path.display()));
        }
    }
}

fn check_server(report: &mut Report, place: &str, config: &Config, runner: &Runner, system_id: &str) {
    if runner.token.is_empty() {
        return report.fail(place, "`token` is empty; register the runner again");
    }
    let handshake = runner.url.starts_with("https://").then(|| diagnose(&runner.url, &runner.tls));
    let gitlab = match agent::gitlab(config, runner) {
        Ok(gitlab) => Arc::new(gitlab),
        Err(why) => return report.fail(place, &why),
    };
    let Some(verdict) = ask(&gitlab, runner, system_id) else {
        return report.fail(
            place,
            &format!("{} does not answer within {} seconds", http::origin(&runner.url), PATIENCE.as_secs()),
        );
    };
    match (handshake, &verdict) {
        (Some(Ok(text)), _) => report.ok(place, &text),
        // It answered over TLS: through a proxy, which a handshake of our own does not take.
        (Some(Err(why)), Ok(_)) => report.warn(place, &format!("the TLS chain could not be looked at: {why}")),
        (Some(Err(why)), Err(_)) => return report.fail(place, &why),
        (None, _) if is_loopback(&runner.url) => {}
        (None, _) => {
            report.warn(place, "`url` is plain http: whoever is in between reads tokens and sources; use https")
        }
    }
    match verdict {
        Ok(Verdict::Valid(_)) => report.ok(place, &format!("the token is valid at {}", http::origin(&runner.url))),
        Ok(Verdict::Gone) => report
            .fail(place, &format!("{} does not know the token; register the runner again", http::origin(&runner.url))),
        Err(error) => report.fail(place, &format!("the token cannot be verified: {error}")),
    }
    if let Some(date) = gitlab.server_date() {
        check_clock(report, date);
    }
}

/// Asks for the verdict on the token; `None` when the server is silent for too long. The agent would wait for minutes.
fn ask(gitlab: &Arc<GitLab>, runner: &Runner, system_id: &str) -> Option<Result<Verdict, ApiError>> {
    let (sender, verdict) = mpsc::channel();
    let (asking, token, system_id) = (Arc::clone(gitlab), runner.token.clone(), system_id.to_owned());
    let asked = thread::Builder::new().name("verify".to_owned()).spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = sender.send(asking.verify(&token, &system_id));
    });
    asked.ok()?;
    verdict.recv_timeout(PATIENCE).ok()
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
        true => report.warn("clock", &format!("{} seconds off the server's; run a time service", off.as_secs())),
        false => report.ok("clock", "agrees with the server's"),
    }
}
