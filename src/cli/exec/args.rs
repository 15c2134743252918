//! The options of `mayfly exec`. Other tools rely on the names of the flags.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::local::checkout::FileSet;
use crate::local::options::ExecutorPolicy;
use crate::local::screen::Detail;

#[derive(Args, Clone, Debug)]
#[command(args_override_self = true, next_help_heading = "Jobs")]
#[group(skip)]
pub struct ExecArgs {
    /// Jobs to run, by name or pattern (`*`, `?`) [default: all jobs of the pipeline]
    #[arg(value_name = "JOB|GLOB")]
    pub jobs: Vec<String>,
    /// Run the jobs of this stage; repeatable
    #[arg(long, value_name = "STAGE")]
    pub stage: Vec<String>,
    /// Also run the jobs that the selected jobs need
    #[arg(long)]
    pub needs: bool,
    /// Run only the jobs that the selected jobs need
    #[arg(long)]
    pub only_needs: bool,
    /// Start this manual job; repeatable
    #[arg(long, value_name = "JOB|GLOB")]
    pub manual: Vec<String>,

    /// List the jobs without running them
    #[arg(long, help_heading = "Show")]
    pub list: bool,
    /// With --list: print all data of the jobs as JSON
    #[arg(long, help_heading = "Show", requires = "list")]
    pub json: bool,
    /// Print the configuration after includes, extends and references
    #[arg(long, help_heading = "Show")]
    pub preview: bool,
    /// Print the dependencies between jobs as a graph
    #[arg(long, help_heading = "Show", value_name = "FORMAT", num_args = 0..=1, require_equals = true,
          default_missing_value = "dot")]
    pub graph: Option<GraphFormat>,
    /// Explain why the pipeline includes or excludes a job, and where each of its values is written
    #[arg(long, help_heading = "Show", value_name = "JOB")]
    pub explain: Option<String>,

    /// Plan a pipeline for this branch
    #[arg(long, help_heading = "Kind of pipeline", value_name = "BRANCH", conflicts_with_all = ["tag", "mr"])]
    pub branch: Option<String>,
    /// Plan a pipeline for this tag
    #[arg(long, help_heading = "Kind of pipeline", value_name = "TAG", conflicts_with = "mr")]
    pub tag: Option<String>,
    /// Plan a pipeline for a merge request
    #[arg(long, help_heading = "Kind of pipeline", value_name = "SOURCE:TARGET[:IID]")]
    pub mr: Option<String>,
    /// CI_PIPELINE_SOURCE: push, web, schedule, …
    #[arg(long, help_heading = "Kind of pipeline", value_name = "NAME")]
    pub source: Option<String>,
    /// The commit before the push; `changes` compares with it
    #[arg(long, help_heading = "Kind of pipeline", value_name = "SHA")]
    pub before: Option<String>,
    /// The configuration file in the checkout
    #[arg(long, help_heading = "Kind of pipeline", value_name = "FILE", default_value = ".gitlab-ci.yml")]
    pub file: String,
    /// Treat unknown keywords as warnings
    #[arg(long, help_heading = "Kind of pipeline")]
    pub lax: bool,

    /// Set a pipeline variable; repeatable
    #[arg(long, help_heading = "Values", visible_alias = "env", value_name = "KEY=VALUE")]
    pub var: Vec<String>,
    /// Read project variables from a dotenv or YAML file; repeatable
    #[arg(long, help_heading = "Values", value_name = "FILE")]
    pub vars_file: Vec<PathBuf>,
    /// Set a masked variable from the environment variable of the same name; repeatable
    #[arg(long, help_heading = "Values", value_name = "KEY")]
    pub secret: Vec<String>,
    /// Set an input of the configuration file; repeatable
    #[arg(long, help_heading = "Values", value_name = "KEY=VALUE")]
    pub input: Vec<String>,

    /// Read another project from a directory; repeatable
    #[arg(long, help_heading = "Includes", value_name = "PATH[@REF]=DIR")]
    pub map_project: Vec<String>,
    /// Read a URL from a file; repeatable
    #[arg(long, help_heading = "Includes", value_name = "URL=FILE")]
    pub map_remote: Vec<String>,
    /// Read a component project from a directory; repeatable
    #[arg(long, help_heading = "Includes", value_name = "PROJECT=DIR[,version=V][,sha=S][,ref=R]…")]
    pub map_component: Vec<String>,
    /// Read GitLab's templates from a directory
    #[arg(long, help_heading = "Includes", value_name = "DIR")]
    pub map_template: Option<PathBuf>,
    /// Do not use the network for includes; use only cached files
    #[arg(long, help_heading = "Includes")]
    pub offline: bool,

    /// Number of jobs to run at the same time [default: the number of cores]
    #[arg(short = 'j', long = "parallel", help_heading = "Running", value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub parallel: Option<u16>,
    /// Run jobs with `image:` in the shell of this machine instead of in a container
    #[arg(long, help_heading = "Running", conflicts_with = "docker")]
    pub shell: bool,
    /// Run all jobs in containers
    #[arg(long, help_heading = "Running")]
    pub docker: bool,
    /// Image for jobs without `image:`
    #[arg(long, help_heading = "Running", value_name = "IMAGE")]
    pub default_image: Option<String>,
    /// Start delayed jobs immediately
    #[arg(long, help_heading = "Running")]
    pub skip_delays: bool,
    /// Also copy files that git neither tracks nor ignores
    #[arg(long, help_heading = "Running")]
    pub untracked: bool,
    /// Keep the work trees of failed jobs
    #[arg(long, help_heading = "Running")]
    pub keep: bool,
    /// Open a shell in the container or work tree of each failed job
    #[arg(long, help_heading = "Running")]
    pub shell_on_failure: bool,
    /// Unpack the artifacts of all jobs into this directory
    #[arg(long, help_heading = "Running", value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// Run again whenever a tracked file, a settings file or a file of an option changes
    #[arg(long, help_heading = "Running")]
    pub watch: bool,

    /// Print the time before each line
    #[arg(long, help_heading = "Output")]
    pub timestamps: bool,
    /// Print only the result
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
    /// Print no colours and no status lines
    #[arg(long, help_heading = "Output")]
    pub no_color: bool,
    /// Also print what the agent does before and after scripts
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,
    /// Write a JSON report, and the output of each job beside it
    #[arg(long, help_heading = "Output", value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write a JUnit report
    #[arg(long, help_heading = "Output", value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// Print the names of the jobs, one per line; for shell completion
    #[arg(long, hide = true)]
    pub complete_jobs: bool,
}

impl ExecArgs {
    /// The files of the work tree that jobs get.
    pub fn file_set(&self) -> FileSet {
        if self.untracked { FileSet::NotIgnored } else { FileSet::Tracked }
    }

    /// The view of the pipeline that the user requests; `None` to run the pipeline.
    pub fn view(&self) -> Option<PipelineView<'_>> {
        if self.complete_jobs {
            Some(PipelineView::JobNames)
        } else if self.preview {
            Some(PipelineView::Preview)
        } else if self.list && self.json {
            Some(PipelineView::ListAsJson)
        } else if let Some(job) = &self.explain {
            Some(PipelineView::Explanation(job))
        } else if let Some(format) = self.graph {
            Some(PipelineView::Graph(format))
        } else {
            self.list.then_some(PipelineView::List)
        }
    }

    /// Which jobs run in addition to, or instead of, the jobs that the user names.
    pub fn needs_policy(&self) -> NeedsPolicy {
        match (self.only_needs, self.needs) {
            (true, _) => NeedsPolicy::OnlyNeeded,
            (false, true) => NeedsPolicy::WithNeeded,
            (false, false) => NeedsPolicy::OnlyNamed,
        }
    }

    /// The parts of the jobs' output that are printed.
    pub fn detail(&self) -> Detail {
        match (self.quiet, self.verbose) {
            (true, _) => Detail::Result,
            (false, true) => Detail::Agent,
            (false, false) => Detail::Scripts,
        }
    }

    /// Where jobs run.
    pub fn executor_policy(&self) -> ExecutorPolicy {
        match (self.shell, self.docker) {
            (true, _) => ExecutorPolicy::Shell,
            (false, true) => ExecutorPolicy::Containers,
            (false, false) => ExecutorPolicy::ByImage,
        }
    }
}

/// A view of the pipeline, printed instead of running it.
#[derive(Clone, Copy, Debug)]
pub enum PipelineView<'a> {
    /// The names of the jobs, for shell completion.
    JobNames,
    /// The configuration after includes, extends and references.
    Preview,
    /// A table of the jobs.
    List,
    /// All data of the jobs.
    ListAsJson,
    /// Why the pipeline includes or excludes this job.
    Explanation(&'a str),
    /// The dependencies between jobs.
    Graph(GraphFormat),
}

/// The jobs to run, if the user names jobs or stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeedsPolicy {
    /// The named jobs.
    OnlyNamed,
    /// The named jobs and the jobs that they need (`--needs`).
    WithNeeded,
    /// The jobs that the named jobs need, without the named jobs (`--only-needs`).
    OnlyNeeded,
}

/// The format of `--graph`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
}
