//! `mayfly lint`: checks the configuration file.

use std::process::ExitCode;

use super::output::print_line;
use super::{ConfigFile, check_pools, report};
use crate::agent::{advice, start_checks};
use crate::config::{Config, Finding, LoadedConfig, Severity};
use crate::instance::{self, Requirement};

/// Checks the file. A problem that keeps the agent from starting on this machine is only a note, because the file may
/// be for another machine. `check` also checks the server and the requirements of jobs.
pub fn main(file: &ConfigFile) -> Result<ExitCode, String> {
    let loaded = file.load_for_role()?;
    let config = &loaded.config;
    let path = config.path.display();
    let mut errors = print_findings(&loaded);
    for problem in start_checks::problems(config) {
        print_line!("{path}: note: mayfly cannot start with this file on this machine: {problem}");
    }
    let usable = if config.mayfly.manager.is_some() {
        let pools = check_pools::lint(config);
        pools.errors.iter().for_each(|why| print_line!("{path}: error: {why}"));
        pools.warnings.iter().for_each(|why| print_line!("{path}: warning: {why}"));
        errors += pools.errors.len();
        pools.usable
    } else {
        warn_about_shutdown(config);
        config.runners.len()
    };
    print_line!("{path}: {}, {}", report::plural(usable, "usable runner"), report::plural(errors, "error"));
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the findings in the order of their lines. Returns the number of errors.
fn print_findings(loaded: &LoadedConfig) -> usize {
    let kind = |finding: &Finding| match finding.severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::UnknownKey | Severity::UnusableRunner => "error",
    };
    let mut findings: Vec<&Finding> = loaded.findings.iter().collect();
    findings.sort_by_key(|finding| finding.line);
    for finding in &findings {
        print_line!("{}: {}: {finding}", loaded.config.path.display(), kind(finding));
    }
    findings.into_iter().filter(|finding| kind(finding) == "error").count()
}

/// Warns if this machine is an instance that keeps running after its jobs.
fn warn_about_shutdown(config: &Config) {
    let mut leave = config.leave.clone();
    if let Ok(instance) = instance::find_at_once(config.mayfly.aws.as_ref(), Requirement::Nothing) {
        leave.apply_default(instance.default_leave());
        if let Some(advice) = advice::shutdown_warning(&config.lifetime, &leave, &*instance) {
            print_line!("{}: warning: {advice}", config.path.display());
        }
    }
}
