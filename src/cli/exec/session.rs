//! Runs the selected jobs of a plan and writes the results.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::args::ExecArgs;
use super::engine::EngineConnection;
use super::plan_inputs::PlanInputs;
use super::{interrupts, summary, terminal};
use crate::config::Runner;
use crate::executor::cgroup::CgroupParents;
use crate::executor::shell::Shell;
use crate::instance::{Instance, Plain};
use crate::local::attempt::RunContext;
use crate::local::checkout::Checkout;
use crate::local::color;
use crate::local::facts;
use crate::local::mapped::MappedProjects;
use crate::local::options::{DelayPolicy, ManualPolicy, RunOptions};
use crate::local::project::LocalProject;
use crate::local::report;
use crate::local::results::{JobResult, RunStatus};
use crate::local::runner::LocalRunner;
use crate::local::screen::{DisplayOptions, JobNames, Screen};
use crate::local::sources::LocalSources;
use crate::local::state::{self, Run};
use crate::pipeline::plan::Plan;
use crate::pipeline::request::PlanRequest;
use crate::token::Token;

/// The number of job ids that belong to one run.
const MAX_JOBS_OF_RUN: i64 = 10_000;

/// A run of a pipeline.
pub struct Session<'a> {
    pub options: &'a ExecArgs,
    pub checkout: &'a Checkout,
    pub inputs: &'a PlanInputs,
    pub run: &'a Run,
    pub sources: &'a LocalSources,
    pub mapped: &'a MappedProjects,
}

impl<'a> Session<'a> {
    /// Runs the selected jobs. `named` are the jobs that the user named.
    pub fn run(
        &self,
        plan: Plan,
        request: PlanRequest<'a>,
        named: HashSet<String>,
        manual_policy: ManualPolicy,
    ) -> Result<u8, String> {
        let screen = Arc::new(Screen::new(self.display_options(&plan)));
        let options = self.run_options(named, manual_policy);
        let context = Arc::new(self.context(&plan, &options, &screen)?);
        prepare_outputs(self.options, options.logs.as_deref())?;
        let (status, results) = self.run_jobs(plan, request, &options, &context);
        self.finish_containers(&context);
        Ok(self.write_results(&context, status, &results))
    }

    fn display_options(&self, plan: &Plan) -> DisplayOptions {
        let is_single_job = plan.jobs.len() == 1 && plan.jobs[0].trigger.is_none();
        DisplayOptions {
            color: color::is_enabled() && !self.options.no_color,
            timestamps: self.options.timestamps,
            detail: self.options.detail(),
            job_names: if is_single_job { JobNames::Omitted } else { JobNames::Shown },
        }
    }

    fn run_options(&self, named: HashSet<String>, manual_policy: ManualPolicy) -> RunOptions {
        let options = self.options;
        RunOptions {
            parallel: options.parallel.map_or_else(cores, usize::from),
            executor: options.executor_policy(),
            default_image: options.default_image.clone(),
            delays: if options.skip_delays { DelayPolicy::Skip } else { DelayPolicy::Wait },
            manual: options.manual.clone(),
            manual_policy,
            artifacts: options.artifacts.clone(),
            logs: options.report.as_deref().map(report::logs_beside),
            named,
            keep_failed_trees: options.keep,
            shell_on_failure: options.shell_on_failure,
        }
    }

    /// The parts that all jobs share. Connects to the container engine if a job needs it.
    fn context(&self, plan: &Plan, options: &RunOptions, screen: &Arc<Screen>) -> Result<RunContext, String> {
        let runner = local_runner();
        let state = &self.run.state;
        let name = facts::project_name(&self.inputs.facts);
        let listed = self.inputs.listed.as_deref().unwrap_or_default();
        let project = LocalProject::new(self.checkout, listed, &self.inputs.repository_facts, &name, state)?;
        let connection = EngineConnection { plan, options, runner: &runner, run: self.run, screen };
        let containers = connection.open(self.container_objects(plan, &project))?;
        // The sandbox for file tasks can bind only directories that exist.
        let artifacts = self.run.directory.join("artifacts");
        std::fs::create_dir(&artifacts).map_err(|error| format!("{}: {error}", artifacts.display()))?;
        Ok(RunContext {
            project: Arc::new(project),
            scratch: self.run.directory.clone(),
            artifacts,
            runner: Arc::new(runner),
            shell: Arc::new(Shell::new(None, None, 1, CgroupParents::find_for_steps())?),
            containers,
            identity: Plain.identity(),
            screen: Arc::clone(screen),
            returns_failed_trees: options.keep_failed_trees || options.shell_on_failure,
            kept: state::kept_trees(state),
        })
    }

    /// The object directories that containers mount: those of the project, and those of mapped projects whose pipelines
    /// a job may start.
    fn container_objects(&self, plan: &Plan, project: &LocalProject) -> Vec<PathBuf> {
        let has_triggers = plan.jobs.iter().any(|job| job.trigger.is_some());
        let mut objects = if has_triggers { self.mapped.objects() } else { Vec::new() };
        objects.extend(project.objects.iter().cloned());
        // The engine accepts a destination only once.
        objects.sort_unstable();
        objects.dedup();
        objects
    }

    fn run_jobs(
        &self,
        plan: Plan,
        request: PlanRequest<'a>,
        options: &RunOptions,
        context: &Arc<RunContext>,
    ) -> (RunStatus, Vec<JobResult>) {
        let (sender, events) = mpsc::channel();
        interrupts::forward(sender.clone());
        let first_id = i64::try_from(self.run.number).unwrap_or(1) * MAX_JOBS_OF_RUN + 1;
        let (context, channel) = (Arc::clone(context), (sender, events));
        LocalRunner::new(context, options, (self.sources, self.mapped), channel, first_id).run(plan, request)
    }

    /// Waits for the removal of containers. If the engine does not remove them, the next run does.
    fn finish_containers(&self, context: &RunContext) {
        let Some(containers) = context.containers.as_ref().filter(|containers| !containers.wait_for_removals()) else {
            return;
        };
        terminal::print_error(&format!(
            "mayfly: warning: {} does not remove the containers of this run; the next run removes them\n",
            containers.address()
        ));
        self.run.leave_containers();
    }

    /// Writes the reports and the summary. Returns the exit status: a result that cannot be written is a failure.
    fn write_results(&self, context: &RunContext, status: RunStatus, results: &[JobResult]) -> u8 {
        let reports = [
            self.options.report.as_ref().map(|path| report::write_json(path, status, results)),
            self.options.junit.as_ref().map(|path| report::write_junit(path, &context.project.name, results)),
        ];
        summary::show(&context.screen, status, results);
        let lost = context.screen.write_error().map(|error| format!("cannot write to standard output: {error}"));
        // A run whose output is lost was stopped for that reason.
        let status = if lost.is_some() { RunStatus::Failed } else { status };
        let errors: Vec<String> = reports.into_iter().flatten().filter_map(Result::err).chain(lost).collect();
        errors.iter().for_each(|why| terminal::print_error(&format!("mayfly: {why}\n")));
        match errors.is_empty() {
            true => status.exit_status(),
            false => status.exit_status().max(RunStatus::Failed.exit_status()),
        }
    }
}

/// The configuration of the runner for all jobs.
fn local_runner() -> Runner {
    let mut runner = Runner::with_defaults("", Token::new(""));
    runner.name = "this machine".to_owned();
    runner.output_limit = u64::MAX;
    // The screen shows the log directly and needs stdout and stderr in their original order.
    runner.feature_flags.insert("FF_TIMESTAMPS".to_owned(), false);
    runner
}

/// Creates the directories and files that results are written to. Fails before any job has run.
fn prepare_outputs(options: &ExecArgs, logs: Option<&Path>) -> Result<(), String> {
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
