//! `mayfly check`: proves the set-up without taking a job. Warnings do not fail it; what would keep jobs from running
//! does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use clap::Args;
use nix::unistd::{AccessFlags, access};

use super::ConfigFile;
use crate::agent;
use crate::config::{self, Config, Runner, system_id};
use crate::coordinator::gitlab::Verdict;
use crate::executor::Executor;
use crate::executor::cgroup::Parents;
use crate::executor::shell::{Shell, find_program};
use crate::http::diagnose::diagnose;

/// A clock that is further off than this breaks certificates and tokens.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

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
    let system_id = system_id::load(&config.path);
    for runner in &config.runners {
        let place = format!("runner `{}`", runner.name);
        check_user(report, &place, options, config, runner);
        check_files(report, &place, runner);
        check_server(report, &place, config, runner, &system_id);
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

fn check_user(report: &mut Report, place: &str, options: &Options, config: &Config, runner: &Runner) {
    let user = options.user.as_deref().or(config.user.as_deref());
    let shell = match Shell::new(runner.shell.as_deref(), user, Parents::default()) {
        Ok(shell) => shell,
        Err(why) => return report.fail(place, &why),
    };
    if let Err(error) = shell.prepare() {
        return report.fail(place, &error.message);
    }
    match shell.user() {
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
    let writable = match shell.user() {
        Some(user) => writable_by(&builds, user.uid, user.gid),
        None => first_existing(&builds).is_some_and(|there| access(&there, AccessFlags::W_OK).is_ok()),
    };
    match writable {
        true => report.ok(place, &format!("builds in {}", builds.display())),
        false => report
            .fail(place, &format!("jobs cannot write {}; change its owner, or set `builds_dir`", builds.display())),
    }
}

/// Whether a user may write a directory, or we would make it for that user.
fn writable_by(directory: &Path, uid: u32, gid: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::metadata(directory) else {
        return first_existing(directory).is_some_and(|there| access(&there, AccessFlags::W_OK).is_ok());
    };
    let mode = metadata.mode();
    uid == 0
        || metadata.uid() == uid && mode & 0o300 == 0o300
        || metadata.gid() == gid && mode & 0o030 == 0o030
        || mode & 0o003 == 0o003
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
    if runner.url.starts_with("https://") {
        match diagnose(&runner.url, &runner.tls) {
            Ok(text) => report.ok(place, &text),
            Err(why) => return report.fail(place, &why),
        }
    }
    let gitlab = match agent::gitlab(config, runner) {
        Ok(gitlab) => gitlab,
        Err(why) => return report.fail(place, &why),
    };
    match gitlab.verify(&runner.token, system_id) {
        Ok(Verdict::Valid(_)) => report.ok(place, &format!("the token is valid at {}", runner.url)),
        Ok(Verdict::Gone) => {
            report.fail(place, &format!("{} does not know the token; register the runner again", runner.url))
        }
        Err(error) => report.fail(place, &format!("the token cannot be verified: {error}")),
    }
    if let Some(date) = gitlab.server_date() {
        check_clock(report, date);
    }
}

fn check_clock(report: &mut Report, server: SystemTime) {
    let now = SystemTime::now();
    let off = now.duration_since(server).or_else(|_| server.duration_since(now)).unwrap_or_default();
    match off > CLOCK_TOLERANCE {
        true => report.warn("clock", &format!("{} seconds off the server's; run a time service", off.as_secs())),
        false => report.ok("clock", "agrees with the server's"),
    }
}
