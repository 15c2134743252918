//! `mayfly exec`: plans the pipeline of this checkout as GitLab would, and runs it with the agent's job engine.

mod explain;
mod graph;
mod interrupts;
mod list;
mod options;
mod selection;
mod settings;
mod summary;
mod values;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

pub use options::Options;

use crate::config::Runner as Configured;
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::BUILDS;
use crate::executor::shell::Shell;
use crate::instance::{Instance, Plain};
use crate::local::attempt::RunContext;
use crate::local::checkout::{self, Checkout, Listed};
use crate::local::color;
use crate::local::containers::{ContainerOptions, Containers};
use crate::local::facts::{self, Answers};
use crate::local::mapped::MappedProjects;
use crate::local::options::{self as run_options, RunOptions, image_of};
use crate::local::payload::runner_variables;
use crate::local::project::LocalProject;
use crate::local::report;
use crate::local::results::RunStatus;
use crate::local::runner::LocalRunner;
use crate::local::screen::{DisplayOptions, Screen};
use crate::local::sources::{Fetcher, LocalSources, parse_ahead};
use crate::local::state::{self, Run};
use crate::local::tree::Trees;
use crate::pipeline::ahead::ParsedAhead;
use crate::pipeline::listing::{self, Listing};
use crate::pipeline::plan::{Job, Plan, Warning};
use crate::pipeline::problem::Problem;
use crate::pipeline::request::{CommitFacts, Content, PipelineSource, PlanRequest};
use crate::pipeline::{self, JobRun};
use crate::token::Token;
use crate::version::{REVISION, VERSION, architecture};

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
        let checkout = scope.spawn(|| Checkout::find(&here));
        let asked = scope.spawn(|| GitState::ask(&here, !only_shows(options)));
        let parsed = parse_ahead(&here, &options.file);
        let died = || "internal error: the thread that runs git panicked".to_owned();
        (checkout.join().unwrap_or_else(|_| Err(died())), asked.join().unwrap_or_else(|_| Err(died())), parsed)
    });
    let (checkout, asked) = (checkout?, asked?);
    let options = settings::complete(options, &checkout.root)?;
    match options.watch {
        true => watch::run(&options, &checkout),
        false => once(&options, &checkout, asked, parsed),
    }
}

/// The state of the checkout, from git.
struct GitState {
    answers: Answers,
    /// The tracked files; `None`: they are listed when they are needed.
    listed: Option<Vec<Listed>>,
}

impl GitState {
    fn ask(directory: &Path, lists: bool) -> Result<Self, String> {
        let (answers, listed) = thread::scope(|scope| {
            let listed = lists.then(|| scope.spawn(|| checkout::list(directory, false)));
            let answers = Answers::ask(directory);
            let died = |_| Err("internal error: the thread that lists files panicked".to_owned());
            (answers, listed.map(|listed| listed.join().unwrap_or_else(died)))
        });
        Ok(Self { answers: answers?, listed: listed.transpose()? })
    }
}

/// Whether the options print facts about the pipeline instead of running it.
fn only_shows(options: &Options) -> bool {
    options.list || options.preview || options.graph.is_some() || options.explain.is_some() || options.complete_jobs
}

/// The input for planning, from the command line.
struct PlanInputs {
    answers: Answers,
    listed: Option<Vec<Listed>>,
    facts: CommitFacts,
}

impl PlanInputs {
    fn new(options: &Options, checkout: &Checkout, asked: GitState, pipeline_id: u64) -> Result<Self, String> {
        let GitState { answers, listed } = asked;
        let listed = match only_shows(options) {
            true => None,
            false => Some(listed.filter(|_| !options.untracked).map_or_else(|| checkout.files(options.untracked), Ok)?),
        };
        let facts = answers.facts(checkout, &values::wanted(options)?, pipeline_id)?;
        Ok(Self { answers, listed, facts })
    }
}

/// Plans the pipeline once, then runs or lists it.
fn once(options: &Options, checkout: &Checkout, asked: GitState, parsed: Option<ParsedAhead>) -> Result<u8, String> {
    let directory = state::of_project(&checkout.root)?;
    let only_shows = only_shows(options);
    if !only_shows {
        interrupts::install()?;
    }
    let run = if only_shows { None } else { Some(Run::begin(&directory)?) };
    let given = PlanInputs::new(options, checkout, asked, run.as_ref().map_or(1, |run| run.number))?;
    let scratch = run.as_ref().map_or_else(|| directory.join("looks"), |run| run.directory.clone());
    let sources = sources(options, checkout, &given, &scratch)?.with_parsed(parsed);
    let request = request(options, checkout, &given, &sources)?;
    let plan = match pipeline::plan(&request) {
        Ok(plan) => plan,
        Err(problems) => return refuse(options, &problems),
    };
    if only_shows {
        let run = |index, job: &Job| job_run(options, &given.facts, &directory, index, job);
        let shown = show(options, &plan, &run);
        // The process exits next. Freeing a large plan would take longer than the rest of the exit.
        std::mem::forget(plan);
        return shown;
    }
    let Some(run) = run else { return Ok(REFUSED) };
    if !plan.created && options.jobs.is_empty() {
        say(&format!("no pipeline: {}\n", plan.not_created.as_deref().unwrap_or("rules exclude all jobs")));
        return Ok(0);
    }
    if options.shell_on_failure && !is_terminal() {
        return Err("--shell-on-failure needs a terminal".to_owned());
    }
    let may_ask = is_terminal() && !options.quiet;
    let chosen = selection::select(&plan, options, may_ask)?;
    let plan = keep(plan, &chosen.jobs);
    let listed = given.listed.as_deref().unwrap_or_default();
    tell_warnings(options, &plan, &sources, (checkout, listed), !chosen.named.is_empty());
    let fetcher = fetcher(options, &given)?;
    let mapped = MappedProjects::new(values::maps(options)?, fetcher, options.untracked, &run.directory);
    let session = Session { options, checkout, given: &given, run: &run, sources: &sources, mapped: &mapped };
    session.run(plan, request, chosen.named, may_ask)
}

fn sources(options: &Options, checkout: &Checkout, given: &PlanInputs, scratch: &Path) -> Result<LocalSources, String> {
    let project = facts::project_path(&given.facts);
    let fetcher = fetcher(options, given)?;
    let (maps, scratch) = (values::maps(options)?, scratch.to_owned());
    let sources = LocalSources::new(checkout, &given.facts.sha, &project, options.untracked, maps, fetcher, scratch);
    Ok(match &given.listed {
        Some(files) => sources.with_listing(files),
        None => sources,
    })
}

fn fetcher(options: &Options, given: &PlanInputs) -> Result<Fetcher, String> {
    Ok(Fetcher { cache: state::includes()?, origin: given.facts.remote.clone(), is_offline: options.offline })
}

fn request<'a>(
    options: &Options,
    checkout: &Checkout,
    given: &PlanInputs,
    sources: &'a LocalSources,
) -> Result<PlanRequest<'a>, String> {
    let merge_request = given.answers.merge_request(checkout, &values::wanted(options)?);
    let usual = if merge_request.is_some() { "merge_request_event" } else { "push" };
    Ok(PlanRequest {
        content: Content::File(options.file.clone()),
        source: PipelineSource { name: options.source.clone().unwrap_or_else(|| usual.to_owned()), merge_request },
        facts: given.facts.clone(),
        pipeline_variables: values::pipeline_variables(options)?,
        project_variables: values::project_variables(options)?,
        predefined: Vec::new(),
        inputs: values::inputs(options)?,
        lax: options.lax,
        explains: options.explain.is_some(),
        sources,
    })
}

fn refuse(options: &Options, problems: &[Problem]) -> Result<u8, String> {
    if options.complete_jobs {
        return Ok(REFUSED);
    }
    if options.json {
        say(&format!("{:#}\n", listing::errors(problems)));
    }
    let mut text = String::new();
    for problem in problems {
        text.push_str(&format!("{problem}\n"));
    }
    eprint(&text);
    Ok(REFUSED)
}

/// The facts about the run of a job, for its predefined variables, as in the first pipeline of a project.
fn job_run(options: &Options, facts: &CommitFacts, directory: &Path, index: usize, job: &Job) -> JobRun {
    let name = facts::project_name(facts);
    let has_image = job.image.is_some() || options.default_image.is_some();
    let is_in_container = has_image && !options.shell && job.trigger.is_none();
    let builds = match is_in_container {
        true => PathBuf::from(BUILDS),
        false => Trees::new(directory.join("trees"), &name).first_builds(),
    };
    let marker = if is_in_container { "CI_DISPOSABLE_ENVIRONMENT" } else { "CI_SHARED_ENVIRONMENT" };
    let predefined = [
        ("CI_BUILDS_DIR", builds.display().to_string()),
        ("CI_PROJECT_DIR", builds.join(&name).display().to_string()),
        (marker, "true".to_owned()),
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

fn show(options: &Options, plan: &Plan, run: &dyn Fn(usize, &Job) -> JobRun) -> Result<u8, String> {
    let text = match () {
        () if options.complete_jobs => plan.jobs.iter().map(|job| format!("{}\n", job.name)).collect(),
        () if options.preview => pipeline::syntax::print(&plan.merged),
        () if options.list && options.json => {
            let listing = Listing { plan, run };
            let text = serde_json::to_string_pretty(&listing).map_err(|error| error.to_string())?;
            format!("{text}\n")
        }
        () => match (&options.explain, options.graph) {
            (Some(name), _) => explain::of(plan, run, name)?,
            (None, Some(format)) => graph::draw(plan, format),
            (None, None) => list::table(plan),
        },
    };
    say(&text);
    Ok(0)
}

/// Reduces a plan to the selected jobs.
fn keep(mut plan: Plan, jobs: &HashSet<usize>) -> Plan {
    let mut at = 0;
    plan.jobs.retain(|_| {
        at += 1;
        jobs.contains(&(at - 1))
    });
    plan
}

/// Prints warnings about features that a local run lacks; only warnings about selected jobs, each once.
fn tell_warnings(
    options: &Options,
    plan: &Plan,
    sources: &LocalSources,
    (checkout, listed): (&Checkout, &[Listed]),
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
    match listed.iter().filter(is_left_out).count() {
        0 => {}
        left_out => text.push_str(&format!(
            "note: jobs do not have {left_out} tracked files that the sparse checkout leaves out; \
             `git sparse-checkout disable` restores them\n"
        )),
    }
    for path in sources.untracked_reads() {
        text.push_str(&format!(
            "{path}: note: git does not track this file, so GitLab will not see it; run `git add` on it\n"
        ));
    }
    eprint(&text);
}

struct Session<'a> {
    options: &'a Options,
    checkout: &'a Checkout,
    given: &'a PlanInputs,
    run: &'a Run,
    sources: &'a LocalSources,
    mapped: &'a MappedProjects,
}

impl<'a> Session<'a> {
    fn run(&self, plan: Plan, request: PlanRequest<'a>, named: HashSet<String>, may_ask: bool) -> Result<u8, String> {
        let options = self.options;
        let is_colored = color::wanted() && !options.no_color;
        let screen = Arc::new(Screen::new(DisplayOptions {
            color: is_colored,
            live: is_colored && !options.quiet,
            verbose: options.verbose,
            quiet: options.quiet,
            timestamps: options.timestamps,
            alone: plan.jobs.len() == 1 && plan.jobs[0].trigger.is_none(),
        }));
        let jobs = RunOptions {
            parallel: options.parallel.map_or_else(cores, usize::from),
            shell: options.shell,
            docker: options.docker,
            default_image: options.default_image.clone(),
            skip_delays: options.skip_delays,
            manual: options.manual.clone(),
            ask: may_ask,
            artifacts: options.artifacts.clone(),
            logs: options.report.as_deref().map(report::logs_beside),
            named,
            keep: options.keep,
            shell_on_failure: options.shell_on_failure,
        };
        let context = Arc::new(self.context(&plan, &jobs, &screen)?);
        prepare_outputs(options, jobs.logs.as_deref())?;
        let (sender, events) = mpsc::channel();
        interrupts::forward(sender.clone());
        let first_id = i64::try_from(self.run.number).unwrap_or(1) * 10_000 + 1;
        let runner =
            LocalRunner::new(Arc::clone(&context), &jobs, (self.sources, self.mapped), (sender, events), first_id);
        let (ending, results) = runner.run(plan, request);
        if let Some(containers) = context.containers.as_ref().filter(|containers| !containers.finish()) {
            eprint(&format!(
                "mayfly: warning: {} does not remove the containers of this run; the next run removes them\n",
                containers.address()
            ));
            self.run.leave_containers();
        }
        if let Some(path) = &options.report {
            report::write_json(path, ending, &results)?;
        }
        if let Some(path) = &options.junit {
            report::write_junit(path, &context.project.name, &results)?;
        }
        summary::show(&screen, ending, &results);
        Ok(ending.exit_status())
    }

    fn context(&self, plan: &Plan, jobs: &RunOptions, screen: &Arc<Screen>) -> Result<RunContext, String> {
        let mut runner = Configured::unnamed("", Token::new(""));
        runner.name = "this machine".to_owned();
        runner.output_limit = u64::MAX;
        // The screen shows the log directly and needs stdout and stderr in their original order.
        runner.feature_flags = BTreeMap::from([("FF_TIMESTAMPS".to_owned(), false)]);
        let directory = &self.run.state;
        let name = facts::project_name(&self.given.facts);
        let containers = self.containers(plan, jobs, &runner, screen)?;
        // The sandbox for file tasks can bind only directories that exist.
        let artifacts = self.run.directory.join("artifacts");
        std::fs::create_dir(&artifacts).map_err(|error| format!("{}: {error}", artifacts.display()))?;
        let listed = self.given.listed.as_deref().unwrap_or_default();
        Ok(RunContext {
            project: Arc::new(LocalProject::new(self.checkout, listed, &self.given.answers, &name, directory)?),
            scratch: self.run.directory.clone(),
            artifacts,
            runner: Arc::new(runner),
            shell: Arc::new(Shell::new(None, None, 1, CgroupParents::find())?),
            containers,
            identity: Plain.identity(),
            screen: Arc::clone(screen),
            keep: self.options.keep || self.options.shell_on_failure,
            kept: directory.join("kept"),
        })
    }

    /// Connects to the container engine and pulls the images, if a job needs containers. Fails before any job has run.
    fn containers(
        &self,
        plan: &Plan,
        jobs: &RunOptions,
        runner: &Configured,
        screen: &Screen,
    ) -> Result<Option<Containers>, String> {
        let of_job = |job| image_of(job, jobs);
        let wanted: Vec<_> = plan.jobs.iter().filter_map(|job| Some((job, of_job(job)?))).collect();
        let place = |job: &Job| {
            let (file, line) = plan.place(job.at);
            format!("{file}:{line}: job `{}`", job.name)
        };
        if let Some(job) = plan.jobs.iter().find(|job| jobs.docker && job.trigger.is_none() && of_job(job).is_none()) {
            return Err(format!("{}: the job has no image; set one with --default-image IMAGE", place(job)));
        }
        if jobs.shell {
            let asking: Vec<&str> = plan.jobs.iter().filter(|job| job.image.is_some()).map(|job| &*job.name).collect();
            if !asking.is_empty() {
                let names = asking.join(", ");
                eprint(&format!(
                    "mayfly: warning: --shell: {names} run on this machine as your user instead of in a container\n"
                ));
            }
        }
        let without = run_options::services_in_the_shell(&plan.jobs, jobs);
        if !without.is_empty() {
            eprint(&format!(
                "mayfly: warning: {} run in the shell without their services; --default-image IMAGE runs them in containers\n",
                without.join(", ")
            ));
        }
        let starts_pipelines = plan.jobs.iter().any(|job| job.trigger.is_some());
        let mut objects = if starts_pipelines { self.mapped.objects() } else { Vec::new() };
        objects.push(self.checkout.objects.clone());
        let settings = ContainerOptions { objects, run: self.run.directory.clone() };
        let Some((first, _)) = wanted.first() else {
            // A triggered pipeline may need containers; without an engine its trigger job fails.
            let containers = starts_pipelines.then(|| Containers::connect(runner, &settings).ok()).flatten();
            containers.iter().try_for_each(|containers| self.run.note_engine(containers.address()))?;
            return Ok(containers);
        };
        let containers = Containers::connect(runner, &settings).map_err(|why| {
            format!(
                "{}: `image` needs a container engine, and none answers: {why}; no job was started. Start Docker, or add \
                 --shell to run the scripts on this machine",
                place(first)
            )
        })?;
        self.run.note_engine(containers.address())?;
        let mut had = HashSet::new();
        for (job, image) in wanted {
            let expand = |text: &str| plan.expand(job, text);
            let key = format!("{}{image}", expand(image["name"].as_str().unwrap_or_default()));
            if had.insert(key) {
                containers
                    .obtain(&image, screen, &expand)
                    .map_err(|error| format!("{}: {error}; no job was started", place(job)))?;
            }
        }
        Ok(Some(containers))
    }
}

/// Creates the directories and files that results are written to. Fails before any job has run.
fn prepare_outputs(options: &Options, logs: Option<&Path>) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}; no job was started", path.display());
    if let Some(logs) = logs.filter(|logs| logs.exists()) {
        std::fs::remove_dir_all(logs).map_err(|error| failed(logs, error))?;
    }
    for directory in [logs, options.artifacts.as_deref()].into_iter().flatten() {
        std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    }
    for file in [&options.report, &options.junit].into_iter().flatten() {
        let above = file.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(above).and_then(|()| std::fs::write(file, "")).map_err(|error| failed(file, error))?;
    }
    Ok(())
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Whether the user can answer questions: standard input and standard output are terminals.
fn is_terminal() -> bool {
    use std::io::IsTerminal;
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Writes to standard output; errors are ignored, because the reader may have closed the pipe.
fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// Writes to standard error; errors are ignored.
fn eprint(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Whether the user interrupted the run. An interrupted run must not be repeated.
fn is_interrupted(status: u8) -> bool {
    status == RunStatus::Interrupted.exit_status()
}
