//! Warnings about features that a local run lacks, and about files that jobs or GitLab do not have.

use std::collections::HashSet;

use super::plan_inputs::PlanInputs;
use super::terminal;
use crate::cli::report::plural;
use crate::local::checkout::{Checkout, ListedFile};
use crate::local::sources::LocalSources;
use crate::pipeline::plan::{Plan, Warning};

/// Prints the warnings about the jobs of the plan, each once. If the user named jobs, warnings about the whole pipeline
/// are left out.
pub fn print(plan: &Plan, sources: &LocalSources, named: &HashSet<String>) {
    let concerns = |warning: &&Warning| match &warning.job {
        Some(name) => plan.jobs.iter().any(|job| job.name == *name || job.group == *name),
        None => named.is_empty(),
    };
    let mut text = String::new();
    for warning in plan.warnings.iter().filter(concerns) {
        text.push_str(&format!("{warning}\n"));
    }
    for path in sources.untracked_reads() {
        text.push_str(&format!(
            "{path}: note: git does not track this file, so GitLab will not see it; run `git add` on it\n"
        ));
    }
    terminal::print_error(&text);
}

/// Prints a note if the checkout lacks files that mayfly does not download.
pub fn print_missing_files(checkout: &Checkout, inputs: &PlanInputs) {
    if !inputs.repository_facts.is_partial_clone() {
        return;
    }
    let is_missing = |file: &&ListedFile| file.is_skipped && !checkout.root.join(&file.path).exists();
    let missing = inputs.listed.iter().flatten().filter(is_missing).count();
    if missing > 0 {
        terminal::print_error(&format!(
            "note: jobs do not have {}: the sparse checkout excludes them, and mayfly does not download the objects that \
             a partial clone lacks; `git sparse-checkout disable` restores the files\n",
            plural(missing, "tracked file")
        ));
    }
}
