//! What `mayfly exec` takes. Other tools build on these names.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What `exec` takes.
#[derive(Args, Clone, Debug)]
#[command(args_override_self = true, next_help_heading = "Jobs")]
#[group(skip)]
pub struct Options {
    /// Jobs to run, by name or pattern (`*`, `?`); without one all jobs of the pipeline
    #[arg(value_name = "JOB|GLOB")]
    pub jobs: Vec<String>,
    /// The jobs of this stage; may be given again
    #[arg(long, value_name = "STAGE")]
    pub stage: Vec<String>,
    /// Run what the chosen jobs need as well
    #[arg(long)]
    pub needs: bool,
    /// Run only what the chosen jobs need
    #[arg(long)]
    pub only_needs: bool,
    /// Start a manual job; may be given again
    #[arg(long, value_name = "JOB|GLOB")]
    pub manual: Vec<String>,

    /// Show the jobs and run none
    #[arg(long, help_heading = "Look")]
    pub list: bool,
    /// With --list: everything about the jobs, as JSON
    #[arg(long, help_heading = "Look")]
    pub json: bool,
    /// Show the file after includes, extends and references
    #[arg(long, help_heading = "Look")]
    pub preview: bool,
    /// Show which jobs wait for which
    #[arg(long, help_heading = "Look", value_name = "FORMAT", num_args = 0..=1, require_equals = true,
          default_missing_value = "dot")]
    pub graph: Option<Graph>,
    /// Tell why a job is in the pipeline, and where each of its values comes from
    #[arg(long, help_heading = "Look", value_name = "JOB")]
    pub explain: Option<String>,

    /// A pipeline of this branch
    #[arg(long, help_heading = "Kind of pipeline", value_name = "BRANCH", conflicts_with_all = ["tag", "mr"])]
    pub branch: Option<String>,
    /// A pipeline of this tag
    #[arg(long, help_heading = "Kind of pipeline", value_name = "TAG", conflicts_with = "mr")]
    pub tag: Option<String>,
    /// A pipeline of a merge request
    #[arg(long, help_heading = "Kind of pipeline", value_name = "SOURCE:TARGET[:IID]")]
    pub mr: Option<String>,
    /// CI_PIPELINE_SOURCE: push, web, schedule, …
    #[arg(long, help_heading = "Kind of pipeline", value_name = "NAME")]
    pub source: Option<String>,
    /// The commit before the push: what `changes` compares with
    #[arg(long, help_heading = "Kind of pipeline", value_name = "SHA")]
    pub before: Option<String>,
    /// The configuration, in the checkout
    #[arg(long, help_heading = "Kind of pipeline", value_name = "FILE", default_value = ".gitlab-ci.yml")]
    pub file: String,
    /// Unknown keywords are warnings
    #[arg(long, help_heading = "Kind of pipeline")]
    pub lax: bool,

    /// A variable of the pipeline; may be given again
    #[arg(long, help_heading = "Values", visible_alias = "env", value_name = "KEY=VALUE")]
    pub var: Vec<String>,
    /// Variables of the project, from a dotenv or YAML file; may be given again
    #[arg(long, help_heading = "Values", value_name = "FILE")]
    pub vars_file: Vec<PathBuf>,
    /// A masked variable with its value from the environment; may be given again
    #[arg(long, help_heading = "Values", value_name = "KEY")]
    pub secret: Vec<String>,
    /// A value for an input of the file; may be given again
    #[arg(long, help_heading = "Values", value_name = "KEY=VALUE")]
    pub input: Vec<String>,

    /// Another project is in a directory; may be given again
    #[arg(long, help_heading = "Includes", value_name = "PATH[@REF]=DIR")]
    pub map_project: Vec<String>,
    /// A URL is a file; may be given again
    #[arg(long, help_heading = "Includes", value_name = "URL=FILE")]
    pub map_remote: Vec<String>,
    /// A component project is in a directory; may be given again
    #[arg(long, help_heading = "Includes", value_name = "PROJECT=DIR[,version=V][,sha=S][,ref=R]…")]
    pub map_component: Vec<String>,
    /// GitLab's templates are in a directory
    #[arg(long, help_heading = "Includes", value_name = "DIR")]
    pub map_template: Option<PathBuf>,
    /// Fetch nothing: use what was fetched before
    #[arg(long, help_heading = "Includes")]
    pub offline: bool,

    /// Jobs at the same time [default: the number of cores]
    #[arg(short = 'j', long = "parallel", help_heading = "Running", value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub parallel: Option<u16>,
    /// Run jobs that ask for a container (`image:`) in the shell of this machine instead
    #[arg(long, help_heading = "Running", conflicts_with = "docker")]
    pub shell: bool,
    /// Run all jobs in containers
    #[arg(long, help_heading = "Running")]
    pub docker: bool,
    /// The image for jobs without one
    #[arg(long, help_heading = "Running", value_name = "IMAGE")]
    pub default_image: Option<String>,
    /// Start delayed jobs at once
    #[arg(long, help_heading = "Running")]
    pub skip_delays: bool,
    /// Give jobs the files that git neither tracks nor ignores as well
    #[arg(long, help_heading = "Running")]
    pub untracked: bool,
    /// Keep the work trees of failed jobs
    #[arg(long, help_heading = "Running")]
    pub keep: bool,
    /// Open a shell in the container or work tree of a job that failed
    #[arg(long, help_heading = "Running")]
    pub shell_on_failure: bool,
    /// Unpack the artifacts of jobs into this directory
    #[arg(long, help_heading = "Running", value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// Run again when tracked files change
    #[arg(long, help_heading = "Running")]
    pub watch: bool,

    /// Put the time before each line
    #[arg(long, help_heading = "Output")]
    pub timestamps: bool,
    /// Show the outcome only
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
    /// No colours and no status lines
    #[arg(long, help_heading = "Output")]
    pub no_color: bool,
    /// Show what is done around the scripts of jobs
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,
    /// Write a report (JSON), with the output of the jobs beside it
    #[arg(long, help_heading = "Output", value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write a report (JUnit)
    #[arg(long, help_heading = "Output", value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// Names of jobs, one a line: for the completions of shells
    #[arg(long, hide = true)]
    pub complete_jobs: bool,
}

/// Formats of graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Graph {
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
}
