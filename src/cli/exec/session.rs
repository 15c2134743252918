//! Runs the selected jobs of a plan and writes the results.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use super::options::Options;
use super::plan_inputs::PlanInputs;
use super::{engine, interrupts, summary, terminal};
use crate::config::Runner as Configured;
use crate::executor::cgroup::CgroupParents;
use crate::executor::shell::Shell;
use crate::instance::{Instance, Plain};
use crate::local::attempt::RunContext;
use crate::local::checkout::Checkout;
use crate::local::color;
use crate::local::facts;
use crate::local::mapped::MappedProjects;
use crate::local::options::RunOptions;
use crate::local::project::LocalProject;
use crate::local::report;
use crate::local::results::RunStatus;
use crate::local::runner::LocalRunner;
use crate::local::screen::{DisplayOptions, Screen};
use crate::local::sources::LocalSources;
use crate::local::state::{self, Run};
use crate::pipeline::plan::Plan;
use crate::pipeline::request::PlanRequest;
use crate::token::Token;

/// A run of a pipeline.
pub struct Session<'a> {
    pub options: &'a Options,
    pub checkout: &'a Checkout,
    pub given: &'a PlanInputs,
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
        may_ask: bool,
    ) -> Result<u8, String> {
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
            terminal::print_error(&format!(
                "mayfly: warning: {} does not remove the containers of this run; the next run removes them\n",
                containers.address()
            ));
            self.run.leave_containers();
        }
        let reports = [
            options.report.as_ref().map(|path| report::write_json(path, ending, &results)),
            options.junit.as_ref().map(|path| report::write_junit(path, &context.project.name, &results)),
        ];
        summary::show(&screen, ending, &results);
        let lost = screen.write_error().map(|error| format!("cannot write to standard output: {error}"));
        let mut status = match lost {
            // The run was stopped because its output was lost.
            Some(_) => RunStatus::Failed.exit_status(),
            None => ending.exit_status(),
        };
        for why in reports.into_iter().flatten().filter_map(Result::err).chain(lost) {
            terminal::print_error(&format!("mayfly: {why}\n"));
            status = status.max(RunStatus::Failed.exit_status());
        }
        Ok(status)
    }

    fn context(&self, plan: &Plan, jobs: &RunOptions, screen: &Arc<Screen>) -> Result<RunContext, String> {
        let mut runner = Configured::unnamed("", Token::new(""));
        runner.name = "this machine".to_owned();
        runner.output_limit = u64::MAX;
        // The screen shows the log directly and needs stdout and stderr in their original order.
        runner.feature_flags.insert("FF_TIMESTAMPS".to_owned(), false);
        let directory = &self.run.state;
        let name = facts::project_name(&self.given.facts);
        let listed = self.given.listed.as_deref().unwrap_or_default();
        let project = LocalProject::new(self.checkout, listed, &self.given.answers, &name, directory)?;
        let containers = engine::connect(self, plan, jobs, (&runner, &project), screen)?;
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
            keep: self.options.keep || self.options.shell_on_failure,
            kept: state::kept(directory),
        })
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
