//! `--list`: a table of the jobs of a pipeline.

use crate::local::table;
use crate::pipeline::plan::{AllowFailure, Job, Plan};

/// A table of the jobs in the order of their stages.
pub fn table(plan: &Plan) -> String {
    if let Some(why) = &plan.not_created {
        return format!("no pipeline: {why}\n");
    }
    let mut jobs: Vec<&Job> = plan.jobs.iter().collect();
    jobs.sort_by_key(|job| job.stage_index);
    let mut rows = vec![["JOB".to_owned(), "STAGE".to_owned(), "WHEN".to_owned(), "NEEDS".to_owned()]];
    for job in jobs {
        let needs = job.needs.as_ref().map(|needs| {
            let names: Vec<&str> = needs.iter().map(|need| &*need.job).collect();
            if names.is_empty() { "(none)".to_owned() } else { names.join(", ") }
        });
        let allowed = if job.allow_failure == AllowFailure::No { "" } else { " (may fail)" };
        rows.push([
            job.name.to_string(),
            job.stage.to_string(),
            format!("{}{allowed}", job.when.word()),
            needs.unwrap_or_default(),
        ]);
    }
    table::format_rows(&rows)
}
