//! `mayfly exec`: plans the pipeline of this checkout as GitLab would, and runs it with the agent's job engine.

mod args;
mod engine;
mod explain;
mod graph;
mod interrupts;
mod list;
mod plan_inputs;
mod selection;
mod session;
mod settings;
mod show;
mod summary;
mod terminal;
mod values;
mod vars_file;
mod warnings;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

pub use args::ExecArgs;
use args::PipelineView;

use crate::local::checkout::Checkout;
use crate::local::mapped::MappedProjects;
use crate::local::objects;
use crate::local::options::ManualPolicy;
use crate::local::results::RunStatus;
use crate::local::sources::parse_ahead;
use crate::local::state::{self, Run};
use crate::pipeline::ahead::ParsedAhead;
use crate::pipeline::plan::Job;
use crate::pipeline::problem::Problem;
use crate::pipeline::{self, listing};
use plan_inputs::{GitState, PlanInputs};
use selection::Selection;
use session::Session;

/// The description of the subcommand in its help.
pub const ABOUT: &str = "Run the jobs of the .gitlab-ci.yml in this checkout, without a server";

/// The id of the pipeline whose jobs are shown without a run.
const FIRST_PIPELINE: u64 = 1;
/// Exit status for an invalid configuration or command line.
const REFUSED: u8 = 2;

/// Runs the pipeline, or shows it.
pub fn main(options: &ExecArgs) -> Result<ExitCode, String> {
    let status = plan_and_run(options).unwrap_or_else(|why| {
        terminal::print_error(&format!("mayfly: {why}\n"));
        REFUSED
    });
    Ok(ExitCode::from(status))
}

fn plan_and_run(options: &ExecArgs) -> Result<u8, String> {
    let here = std::env::current_dir().map_err(|error| format!("cannot determine the current directory: {error}"))?;
    // Each git command takes milliseconds, so they run in parallel, and while this thread parses the configuration.
    let (checkout, git, parsed) = thread::scope(|scope| {
        let git = scope.spawn(|| match options.view() {
            Some(_) => GitState::read(&here),
            None => GitState::read_with_files(&here),
        });
        let (checkout, parsed) = (Checkout::find(&here), parse_ahead(&here, &options.file));
        let died = |_| Err("internal error: the thread that runs git panicked".to_owned());
        (checkout, git.join().unwrap_or_else(died), parsed)
    });
    let (checkout, git) = (checkout?, git?);
    let merged = settings::merge(options, &checkout.root)?;
    if merged.options.watch {
        return watch::run(options, &checkout);
    }
    merged.print_warnings();
    run_once(&merged.options, &checkout, git, parsed)
}

/// Plans the pipeline once, then shows or runs it.
fn run_once(options: &ExecArgs, checkout: &Checkout, git: GitState, parsed: Option<ParsedAhead>) -> Result<u8, String> {
    let state_dir = state::project_directory(&checkout.root)?;
    let checkout = objects::with_mountable_objects(checkout, &state_dir)?;
    let invocation = Invocation { options, checkout, git, parsed, state_dir };
    match options.view() {
        Some(view) => invocation.show(view),
        None => invocation.run(),
    }
}

/// The options of the user and the state of the checkout.
struct Invocation<'a> {
    options: &'a ExecArgs,
    checkout: Checkout,
    git: GitState,
    /// The configuration file, if it was parsed while git ran.
    parsed: Option<ParsedAhead>,
    /// The directory for the runs and trees of this project.
    state_dir: PathBuf,
}

impl Invocation<'_> {
    fn show(self, view: PipelineView<'_>) -> Result<u8, String> {
        let Self { options, checkout, git, parsed, state_dir } = self;
        let inputs = PlanInputs::new(options, &checkout, git, FIRST_PIPELINE)?;
        let sources = inputs.sources(options, &checkout, &state_dir.join("show"))?.with_parsed(parsed);
        let plan = match pipeline::plan(&inputs.request(options, &checkout, &sources)?) {
            Ok(plan) => plan,
            Err(problems) => return report_problems(options, &problems),
        };
        let job_run = |index, job: &Job| show::job_run(options, &inputs.facts, &state_dir, index, job);
        let shown = show::show(view, &plan, &job_run);
        // The process exits next. Freeing a large plan would take longer than the rest of the exit.
        std::mem::forget(plan);
        shown
    }

    fn run(self) -> Result<u8, String> {
        let Self { options, checkout, git, parsed, state_dir } = self;
        interrupts::install()?;
        let run = Run::begin(&state_dir)?;
        let inputs = PlanInputs::new(options, &checkout, git, run.number)?;
        let sources = inputs.sources(options, &checkout, &run.directory)?.with_parsed(parsed);
        let request = inputs.request(options, &checkout, &sources)?;
        let plan = match pipeline::plan(&request) {
            Ok(plan) => plan,
            Err(problems) => return report_problems(options, &problems),
        };
        if let Some(why) = &plan.not_created
            && options.jobs.is_empty()
        {
            terminal::print(&format!("no pipeline: {why}\n"));
            return Ok(0);
        }
        if options.shell_on_failure && !terminal::is_interactive() {
            return Err("--shell-on-failure needs a terminal".to_owned());
        }
        let manual_policy = manual_policy(options);
        let Selection { jobs, named } = selection::select(&plan, options, manual_policy)?;
        let plan = selection::reduce(plan, &jobs);
        if !options.quiet {
            warnings::print(&plan, &sources, &named);
            warnings::print_missing_files(&checkout, &inputs);
        }
        let (maps, fetcher) = (values::maps(options)?, inputs.fetcher(options)?);
        let mapped = MappedProjects::new(maps, fetcher, options.file_set(), &run.directory);
        let session =
            Session { options, checkout: &checkout, inputs: &inputs, run: &run, sources: &sources, mapped: &mapped };
        session.run(plan, request, named, manual_policy)
    }
}

fn manual_policy(options: &ExecArgs) -> ManualPolicy {
    match terminal::is_interactive() && !options.quiet {
        true => ManualPolicy::Ask,
        false => ManualPolicy::OnlyNamed,
    }
}

/// Whether the user interrupted the run. An interrupted run must not be repeated.
fn is_interrupted(status: u8) -> bool {
    status == RunStatus::Interrupted.exit_status()
}

/// Prints the errors of the configuration. Returns the exit status.
fn report_problems(options: &ExecArgs, problems: &[Problem]) -> Result<u8, String> {
    if options.complete_jobs {
        return Ok(REFUSED);
    }
    if options.json {
        terminal::print(&format!("{:#}\n", listing::problems_as_json(problems)));
    }
    let mut text = String::new();
    for problem in problems {
        text.push_str(&format!("{problem}\n"));
    }
    terminal::print_error(&text);
    Ok(REFUSED)
}
