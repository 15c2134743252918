//! The summary of a run: a table of the jobs, and for each failed job its last lines and the failed command.

use std::fmt::Write;

use crate::local::results::{JobResult, ResultStatus, RunStatus, in_words};
use crate::local::screen::{Detail, JobNames, Screen};
use crate::local::state::KEPT_DAYS;
use crate::local::table;

/// Prints the summary.
pub fn show(screen: &Screen, ending: RunStatus, jobs: &[JobResult]) {
    let options = screen.options();
    let mut text = String::new();
    if options.job_names == JobNames::Shown {
        text.push_str(&table_of(screen, jobs));
    } else if options.detail != Detail::Result {
        for coverage in jobs.iter().filter_map(|job| job.coverage.as_ref()) {
            let _ = writeln!(text, "coverage: {coverage}%");
        }
    }
    for job in jobs.iter().filter(|job| job.status == ResultStatus::Warning) {
        let why = job.message.as_deref().unwrap_or("failed");
        let _ = writeln!(text, "\n{}", screen.bold(&format!("{}: {why}; the job is allowed to fail", job.name)));
    }
    for job in jobs.iter().filter(|job| job.status == ResultStatus::Failed) {
        text.push_str(&failure(screen, job));
    }
    for (job, kept) in jobs.iter().filter_map(|job| Some((job, job.kept.as_ref()?))) {
        let _ = writeln!(text, "the work tree of {} is kept in {}", job.name, kept.display());
    }
    if jobs.iter().any(|job| job.kept.is_some()) {
        let _ = writeln!(text, "mayfly removes kept work trees after {KEPT_DAYS} days");
    }
    match ending {
        RunStatus::Blocked => {
            let waiting: Vec<&str> = jobs.iter().filter(|job| job.is_blocking).map(|job| job.name.as_str()).collect();
            let _ =
                writeln!(text, "blocked by a manual job; to start it, add --manual '{}'", waiting.join("' --manual '"));
        }
        RunStatus::Interrupted => text.push_str("interrupted\n"),
        RunStatus::Success | RunStatus::Failed => {}
    }
    if !text.is_empty() {
        screen.show_message(text.trim_end_matches('\n'));
    }
}

fn table_of(screen: &Screen, jobs: &[JobResult]) -> String {
    let has_coverage = jobs.iter().any(|job| job.coverage.is_some());
    let row = |job: &JobResult| {
        let status = match job.attempts {
            0 | 1 => job.status.word().to_owned(),
            attempts => format!("{} ({attempts} attempts)", job.status.word()),
        };
        let coverage = job.coverage.as_ref().map(|number| format!("{number}%")).unwrap_or_default();
        let duration = job.duration.filter(|_| job.attempts > 0).map(in_words).unwrap_or_default();
        [job.name.clone(), status, duration, if has_coverage { coverage } else { String::new() }]
    };
    let rows: Vec<[String; 4]> = jobs.iter().map(row).collect();
    let mut text = String::from("\n");
    for (line, job) in table::format_rows(&rows).lines().zip(jobs) {
        // Colour codes are added after the column widths are computed.
        let word = job.status.word();
        let _ =
            writeln!(text, "{}", line.replacen(&format!("  {word}"), &format!("  {}", screen.status(job.status)), 1));
    }
    text
}

/// The reason, the failed command and the last lines of a failed job.
fn failure(screen: &Screen, job: &JobResult) -> String {
    let why = job.message.clone().unwrap_or_else(|| "failed".to_owned());
    let mut text = format!("\n{}\n", screen.bold(&format!("{}: {why}", job.name)));
    if let Some(command) = &job.command {
        let _ = writeln!(text, "  failed command: {command}");
    }
    // The lines of a single job are directly above the summary.
    let options = screen.options();
    if options.job_names == JobNames::Shown || options.detail == Detail::Result {
        job.tail.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    text
}
