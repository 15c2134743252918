//! Warnings about features that a local run lacks, and about files that jobs or GitLab do not have.

use super::options::Options;
use super::terminal;
use crate::cli::report::plural;
use crate::local::checkout::{Checkout, Listed};
use crate::local::sources::LocalSources;
use crate::pipeline::plan::{Plan, Warning};

/// Prints the warnings about the selected jobs, each once.
pub fn print(
    options: &Options,
    plan: &Plan,
    sources: &LocalSources,
    (checkout, listed, is_partial_clone): (&Checkout, &[Listed], bool),
    is_about_jobs: bool,
) {
    if options.quiet {
        return;
    }
    let concerns = |warning: &&Warning| match &warning.job {
        Some(name) => plan.jobs.iter().any(|job| job.name == *name || job.group == *name),
        None => !is_about_jobs,
    };
    let mut text = String::new();
    for warning in plan.warnings.iter().filter(concerns) {
        text.push_str(&format!("{warning}\n"));
    }
    let is_left_out = |file: &&Listed| file.is_skipped && !checkout.root.join(&file.path).exists();
    let left_out = if is_partial_clone { listed.iter().filter(is_left_out).count() } else { 0 };
    if left_out > 0 {
        text.push_str(&format!(
            "note: jobs do not have {}: the sparse checkout excludes them, and mayfly does not download the objects that \
             a partial clone lacks; `git sparse-checkout disable` restores the files\n",
            plural(left_out, "tracked file")
        ));
    }
    for path in sources.untracked_reads() {
        text.push_str(&format!(
            "{path}: note: git does not track this file, so GitLab will not see it; run `git add` on it\n"
        ));
    }
    terminal::print_error(&text);
}
