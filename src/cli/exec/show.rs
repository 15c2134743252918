//! Prints a view of the pipeline instead of running it.

use std::path::{Path, PathBuf};

use super::args::{ExecArgs, PipelineView};
use super::{explain, graph, list, terminal};
use crate::executor::docker::BUILDS;
use crate::local::facts;
use crate::local::payload::runner_variables;
use crate::local::tree::Trees;
use crate::pipeline::listing::Listing;
use crate::pipeline::plan::{Job, Plan};
use crate::pipeline::request::CommitFacts;
use crate::pipeline::{self, JobRun};
use crate::version::{REVISION, VERSION, architecture};

/// Prints a view of a plan. `run` returns the facts about the run of a job, by its index in the plan.
pub fn show(view: PipelineView<'_>, plan: &Plan, run: &dyn Fn(usize, &Job) -> JobRun) -> Result<u8, String> {
    let text = match view {
        PipelineView::JobNames => plan.jobs.iter().map(|job| format!("{}\n", job.name)).collect(),
        PipelineView::Preview => pipeline::syntax::print(&plan.merged),
        PipelineView::List => list::table(plan),
        PipelineView::ListAsJson => {
            let listing = serde_json::to_string_pretty(&Listing { plan, run }).map_err(|error| error.to_string())?;
            format!("{listing}\n")
        }
        PipelineView::Explanation(job) => explain::explanation(plan, run, job)?,
        PipelineView::Graph(format) => graph::draw(plan, format),
    };
    terminal::print(&text);
    Ok(0)
}

/// The facts about the run of a job, for its predefined variables, as in the first pipeline of a project.
pub fn job_run(options: &ExecArgs, facts: &CommitFacts, directory: &Path, index: usize, job: &Job) -> JobRun {
    let name = facts::project_name(facts);
    let has_image = job.image.is_some() || options.default_image.is_some();
    let is_in_container = has_image && !options.shell && job.trigger.is_none();
    let builds = match is_in_container {
        true => PathBuf::from(BUILDS),
        false => Trees::new(directory.join("trees"), &name).first_builds(),
    };
    let environment = if is_in_container { "CI_DISPOSABLE_ENVIRONMENT" } else { "CI_SHARED_ENVIRONMENT" };
    let predefined = [
        ("CI_BUILDS_DIR", builds.display().to_string()),
        ("CI_PROJECT_DIR", builds.join(&name).display().to_string()),
        (environment, "true".to_owned()),
        ("CI_CONCURRENT_ID", "0".to_owned()),
        ("CI_CONCURRENT_PROJECT_ID", "0".to_owned()),
        ("CI_RUNNER_VERSION", VERSION.to_owned()),
        ("CI_RUNNER_REVISION", REVISION.to_owned()),
        ("CI_RUNNER_EXECUTABLE_ARCH", format!("linux/{}", architecture())),
    ];
    let predefined = predefined.map(|(key, value)| (key.to_owned(), value)).into_iter();
    JobRun {
        id: index as u64 + 1,
        started_at: facts.created_at.clone(),
        dotenv: Vec::new(),
        predefined: predefined.chain(runner_variables()).collect(),
    }
}
