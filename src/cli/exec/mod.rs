//! `mayfly exec`: plans the pipeline of this checkout as GitLab would, and runs it with the agent's job engine.

mod engine;
mod explain;
mod graph;
mod interrupts;
mod list;
mod options;
mod plan_inputs;
mod selection;
mod session;
mod settings;
mod show;
mod summary;
mod terminal;
mod values;
mod warnings;
mod watch;

use std::process::ExitCode;
use std::thread;

pub use options::Options;

use crate::local::checkout::Checkout;
use crate::local::mapped::MappedProjects;
use crate::local::objects;
use crate::local::results::RunStatus;
use crate::local::sources::parse_ahead;
use crate::local::state::{self, Run};
use crate::pipeline::ahead::ParsedAhead;
use crate::pipeline::plan::Job;
use crate::pipeline::problem::Problem;
use crate::pipeline::{self, listing};
use plan_inputs::{GitState, PlanInputs};
use session::Session;
use show::only_shows;

/// What the subcommand does, for its help.
pub const ABOUT: &str = "Run the jobs of the .gitlab-ci.yml in this checkout, without a server";

/// Exit status for an invalid configuration or command line.
const REFUSED: u8 = 2;

/// Runs the pipeline, or lists it.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    let status = begin(options).unwrap_or_else(|why| {
        eprintln!("mayfly: {why}");
        REFUSED
    });
    Ok(ExitCode::from(status))
}

fn begin(options: &Options) -> Result<u8, String> {
    let here = std::env::current_dir().map_err(|error| format!("cannot determine the current directory: {error}"))?;
    // Each git command takes milliseconds, so they run in parallel, and while this thread parses the configuration.
    let (checkout, asked, parsed) = thread::scope(|scope| {
        let asked = scope.spawn(|| match only_shows(options) {
            true => GitState::ask(&here),
            false => GitState::ask_with_files(&here),
        });
        let (checkout, parsed) = (Checkout::find(&here), parse_ahead(&here, &options.file));
        let died = |_| Err("internal error: the thread that runs git panicked".to_owned());
        (checkout, asked.join().unwrap_or_else(died), parsed)
    });
    let (checkout, asked) = (checkout?, asked?);
    let merged = settings::merge(options, &checkout.root)?;
    match merged.options.watch {
        true => watch::run(options, &checkout),
        false => once(&merged.announced(), &checkout, asked, parsed),
    }
}

/// Plans the pipeline once, then runs or lists it.
fn once(options: &Options, checkout: &Checkout, asked: GitState, parsed: Option<ParsedAhead>) -> Result<u8, String> {
    let directory = state::of_project(&checkout.root)?;
    let checkout = &objects::for_jobs(checkout, &directory)?;
    let only_shows = only_shows(options);
    if !only_shows {
        interrupts::install()?;
    }
    let run = if only_shows { None } else { Some(Run::begin(&directory)?) };
    let given = PlanInputs::new(options, checkout, asked, run.as_ref().map_or(1, |run| run.number))?;
    let scratch = run.as_ref().map_or_else(|| directory.join("looks"), |run| run.directory.clone());
    let sources = given.sources(options, checkout, &scratch)?.with_parsed(parsed);
    let request = given.request(options, checkout, &sources)?;
    let plan = match pipeline::plan(&request) {
        Ok(plan) => plan,
        Err(problems) => return refuse(options, &problems),
    };
    if only_shows {
        let run = |index, job: &Job| show::job_run(options, &given.facts, &directory, index, job);
        let shown = show::show(options, &plan, &run);
        // The process exits next. Freeing a large plan would take longer than the rest of the exit.
        std::mem::forget(plan);
        return shown;
    }
    let Some(run) = run else { return Ok(REFUSED) };
    if !plan.created && options.jobs.is_empty() {
        terminal::print(&format!("no pipeline: {}\n", plan.not_created.as_deref().unwrap_or("rules exclude all jobs")));
        return Ok(0);
    }
    if options.shell_on_failure && !terminal::is_interactive() {
        return Err("--shell-on-failure needs a terminal".to_owned());
    }
    let may_ask = terminal::is_interactive() && !options.quiet;
    let chosen = selection::select(&plan, options, may_ask)?;
    let plan = selection::keep(plan, &chosen.jobs);
    let listed = given.listed.as_deref().unwrap_or_default();
    let files = (checkout, listed, given.answers.is_partial_clone());
    warnings::print(options, &plan, &sources, files, !chosen.named.is_empty());
    let mapped =
        MappedProjects::new(values::maps(options)?, given.fetcher(options)?, options.file_set(), &run.directory);
    let session = Session { options, checkout, given: &given, run: &run, sources: &sources, mapped: &mapped };
    session.run(plan, request, chosen.named, may_ask)
}

/// Whether the user interrupted the run. An interrupted run must not be repeated.
fn is_interrupted(status: u8) -> bool {
    status == RunStatus::Interrupted.exit_status()
}

fn refuse(options: &Options, problems: &[Problem]) -> Result<u8, String> {
    if options.complete_jobs {
        return Ok(REFUSED);
    }
    if options.json {
        terminal::print(&format!("{:#}\n", listing::errors(problems)));
    }
    let mut text = String::new();
    for problem in problems {
        text.push_str(&format!("{problem}\n"));
    }
    terminal::print_error(&text);
    Ok(REFUSED)
}
