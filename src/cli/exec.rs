//! `mayfly exec`: jobs of the `.gitlab-ci.yml` in this checkout, through the same engine as the agent's.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use clap::Args;
use serde_json::{Value, json};

use crate::config::Runner;
use crate::coordinator::JobState;
use crate::executor::cgroup::Parents;
use crate::executor::place::Place;
use crate::executor::shell::Shell;
use crate::instance::{Instance, Plain};
use crate::job::context::Context;
use crate::job::control::Control;
use crate::job::run::{self, Ended};
use crate::journal::{Progress, Record, SlotDirectory};
use crate::local::checkout::Checkout;
use crate::local::terminal::Terminal;
use crate::local::tree::{Source, Tree, Trees};
use crate::local::{color, state};
use crate::payload;
use crate::pipeline::{self, Job, Pipeline, When};
use crate::sys;
use crate::token::Token;

/// Exit status for a file that cannot be used; jobs that fail give 1.
const UNUSABLE: u8 = 2;

/// What `exec` takes.
#[derive(Args)]
pub struct Options {
    /// The job; without one all jobs run in the order of their stages
    job: Option<String>,
    /// The file, in the checkout
    #[arg(long, value_name = "FILE", default_value = ".gitlab-ci.yml")]
    file: PathBuf,
    /// A variable for every job; may be given again
    #[arg(long = "env", value_name = "KEY=VALUE")]
    variables: Vec<String>,
    /// Run jobs that ask for a container (`image:`) in the shell of this machine instead
    #[arg(long)]
    shell: bool,
    /// Start a job with `when: manual`; may be given again
    #[arg(long, value_name = "JOB")]
    manual: Vec<String>,
    /// Give jobs the files that git neither tracks nor ignores as well
    #[arg(long)]
    untracked: bool,
    /// Show the jobs in their order and run none
    #[arg(long)]
    list: bool,
}

/// Runs jobs. Errors: there is no checkout or no file.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    let here = std::env::current_dir().map_err(|error| format!("the current directory: {error}"))?;
    let checkout = Checkout::find(&here)?;
    let path = checkout.root.join(&options.file);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let pipeline = match pipeline::read(&text) {
        Ok(pipeline) => pipeline,
        Err(errors) => {
            for error in errors {
                eprintln!("{}: {error}", options.file.display());
            }
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    for note in &pipeline.notes {
        eprintln!("{}: note: {note}", options.file.display());
    }
    let chosen = match choose(&pipeline, options) {
        Ok(chosen) => chosen,
        Err(why) => {
            eprintln!("mayfly: {why}");
            return Ok(ExitCode::from(UNUSABLE));
        }
    };
    if options.list {
        for job in &chosen {
            say(&format!("{}\t{}\n", job.stage, job.name))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(refusal) = refuse_containers(&chosen, options) {
        eprintln!("mayfly: {refusal}");
        return Ok(ExitCode::from(UNUSABLE));
    }
    Session::begin(&checkout, options)?.run_all(&chosen, options.job.is_some())
}

/// Jobs that ask for a container must not run on the machine itself unless the developer says so.
fn refuse_containers(jobs: &[&Job], options: &Options) -> Option<String> {
    let wanted: Vec<&str> = jobs.iter().filter(|job| job.has_image).map(|job| job.name.as_str()).collect();
    if wanted.is_empty() {
        return None;
    }
    let names = wanted.join(", ");
    if options.shell {
        eprintln!("mayfly: warning: --shell: no container for {names}; their scripts run on this machine as your user");
        return None;
    }
    Some(format!(
        "{names}: `image` asks for a container, and a local run has none yet; nothing was run. With --shell the \
         scripts run on this machine itself"
    ))
}

/// Writes to standard output. Errors: nobody reads it.
fn say(text: &str) -> Result<(), String> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|error| format!("standard output: {error}"))
}

/// The named job, or all of them in the order of their stages. A manual job runs only when `--manual` names it.
fn choose<'a>(pipeline: &'a Pipeline, options: &Options) -> Result<Vec<&'a Job>, String> {
    let find = |name: &str| {
        let names = || pipeline.jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>().join(", ");
        let job = pipeline.jobs.iter().find(|job| job.name == name);
        job.ok_or_else(|| format!("there is no job `{name}`; there are: {}", names()))
    };
    options.manual.iter().try_for_each(|name| find(name).map(drop))?;
    if let Some(name) = &options.job {
        let job = find(name)?;
        if job.when == When::Manual && !options.manual.contains(name) {
            return Err(format!("`{name}` is a manual job; to run it, write --manual {name}"));
        }
        return Ok(vec![job]);
    }
    let mut jobs: Vec<&Job> = pipeline.jobs.iter().collect();
    jobs.sort_by_key(|job| pipeline.stages.iter().position(|stage| *stage == job.stage));
    Ok(jobs)
}

/// Everything that the jobs of one call share.
struct Session {
    project: String,
    trees: Trees,
    source: Source,
    manual: Vec<String>,
    /// Outside the checkout: journal, log, file variables; removed at the end.
    scratch: PathBuf,
    extra: Vec<(String, String)>,
    commit: BTreeMap<String, String>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
}

impl Session {
    fn begin(checkout: &Checkout, options: &Options) -> Result<Self, String> {
        let pair = |text: &String| {
            let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| format!("--env {text}: write KEY=VALUE"))
        };
        let extra = options.variables.iter().map(pair).collect::<Result<_, _>>()?;
        let name = format!("mayfly-exec-{}-{:x}", std::process::id(), sys::boottime());
        let scratch = std::env::temp_dir().join(name);
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&scratch)
            .map_err(|error| format!("{}: {error}", scratch.display()))?;
        let commit = commit(&checkout.root);
        let sha = commit.get("CI_COMMIT_SHA").ok_or("the repository has no commit yet; make one first")?;
        let source = Source::read(checkout, options.untracked, sha)?;
        let project = checkout.root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let trees = Trees::new(state::of_project(&checkout.root)?.join("trees"), &project);
        let (sender, events) = mpsc::channel();
        hear_interrupts(sender.clone())?;
        let manual = options.manual.clone();
        Ok(Self { project, trees, source, manual, scratch, extra, commit, sender, events })
    }

    fn run_all(&self, jobs: &[&Job], named: bool) -> Result<ExitCode, String> {
        let mut results = Vec::new();
        let (mut failed, mut stage_failed, mut stage) = (false, false, String::new());
        for (number, job) in jobs.iter().enumerate() {
            if job.stage != stage {
                failed |= stage_failed;
                stage_failed = false;
                stage.clone_from(&job.stage);
            }
            let due = named
                || match job.when {
                    When::OnSuccess | When::Delayed => !failed,
                    When::OnFailure => failed,
                    When::Always => true,
                    When::Manual => !failed && self.manual.contains(&job.name),
                };
            let verdict = if !due { Verdict::Skipped } else { self.run(job, number)? };
            stage_failed |= verdict == Verdict::Failed;
            results.push((job.name.as_str(), verdict));
            if verdict == Verdict::Interrupted {
                stage_failed = true;
                break;
            }
        }
        failed |= stage_failed;
        if !named {
            let lines = results.iter().map(|(name, verdict)| format!("{:<9} {name}\n", verdict.word()));
            // Nobody may be reading any more, which changes nothing.
            let _ = say(&format!("\n{}", lines.collect::<String>()));
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn run(&self, job: &Job, number: usize) -> Result<Verdict, String> {
        let strong = if color::wanted() { ["\x1b[1m", "\x1b[0m"] } else { ["", ""] };
        if say(&format!("{}{} ({}){}\n", strong[0], job.name, job.stage, strong[1])).is_err() {
            return Ok(Verdict::Interrupted);
        }
        let text = self.payload(job, number).to_string();
        let payload = payload::decode(text.as_bytes()).map_err(|error| format!("job `{}`: {}", job.name, error.why))?;
        let tree = self.trees.take(&self.source, false);
        let tree = tree.map_err(|error| format!("job `{}`: no copy of the work tree: {error}", job.name))?;
        let context = self.context(&tree)?;
        let control = Arc::new(Control::new().map_err(|error| error.to_string())?);
        let record = Record {
            identity: context.identity.clone(),
            url: String::new(),
            tls: Default::default(),
            short_token: String::new(),
            payload: text,
            request_id: String::new(),
            concurrent: (0, 0),
            began: sys::boottime(),
            number: 0,
            progress: Progress::default(),
        };
        let directory = SlotDirectory::at(self.scratch.join("slot"));
        directory.begin(&record).map_err(|error| format!("{}: {error}", self.scratch.display()))?;
        let worker = {
            let (control, sender) = (Arc::clone(&control), self.sender.clone());
            thread::spawn(move || sender.send(Event::Ended(run::run(&context, directory, record, payload, &control))))
        };
        let ended = self.wait(&control);
        let _ = worker.join();
        let (ended, interrupted) = ended?;
        let interrupted = interrupted || say("\n").is_err();
        Ok(match ended {
            _ if interrupted => Verdict::Interrupted,
            Ended::Reported(JobState::Failed { exit_code, .. }, _) if job.allow_failure.forgives(exit_code) => {
                Verdict::Allowed
            }
            Ended::Reported(JobState::Failed { .. }, _) | Ended::Dropped => Verdict::Failed,
            Ended::Reported(..) => Verdict::Passed,
        })
    }

    /// Waits for the job; an interrupt from the keyboard stops it.
    fn wait(&self, control: &Control) -> Result<(Ended, bool), String> {
        let mut interrupted = false;
        loop {
            match self.events.recv() {
                Ok(Event::Ended(ended)) => {
                    return ended.map(|ended| (ended, interrupted)).map_err(|error| error.to_string());
                }
                Ok(Event::Interrupt) => {
                    interrupted = true;
                    control.interrupt("interrupted");
                }
                Err(_) => return Err("the job's thread died".to_owned()),
            }
        }
    }

    fn context(&self, tree: &Tree) -> Result<Context, String> {
        let mut runner = Runner::unnamed("", Token::new(""));
        runner.name = "this machine".to_owned();
        runner.output_limit = u64::MAX;
        // A terminal needs no stamps, and shows standard error in its place.
        runner.feature_flags = BTreeMap::from([("FF_TIMESTAMPS".to_owned(), false)]);
        let shell = Shell::new(None, None, 1, Parents::find())?;
        let place = Place {
            builds: tree.home.clone(),
            project: tree.project.clone(),
            temporary: tree.temporary.clone(),
            cache: self.scratch.join("cache"),
            inside: None,
        };
        Ok(Context {
            runner: Arc::new(runner),
            system_id: "local".to_owned(),
            builds: self.scratch.clone(),
            caches: self.scratch.join("cache"),
            store: None,
            place: Some(place),
            coordinator: Arc::new(Terminal::new(color::wanted())),
            executor: Arc::new(shell),
            identity: Plain.identity(),
            guard: None,
        })
    }

    /// The job as a server would hand it out.
    fn payload(&self, job: &Job, number: usize) -> Value {
        let id = number + 1;
        let mut variables: Vec<Value> = Vec::new();
        let mut add = |key: &str, value: &str, raw: bool| {
            variables.push(json!({"key": key, "value": value, "public": true, "raw": raw}));
        };
        for (key, value) in [("CI", "true"), ("GITLAB_CI", "true"), ("MAYFLY_EXEC", "true")] {
            add(key, value, true);
        }
        for (key, value) in &self.commit {
            add(key, value, true);
        }
        for (key, value) in [
            ("CI_JOB_NAME", job.name.as_str()),
            ("CI_JOB_STAGE", &job.stage),
            ("CI_JOB_ID", &id.to_string()),
            ("CI_PIPELINE_SOURCE", "push"),
            ("CI_PROJECT_NAME", &self.project),
            ("GIT_STRATEGY", "none"),
        ] {
            add(key, value, true);
        }
        for variable in &job.variables {
            add(&variable.name, &variable.value, variable.raw);
        }
        for (key, value) in &self.extra {
            add(key, value, false);
        }
        // The sources are there already, whatever the file says.
        add("GIT_STRATEGY", "none", true);
        json!({
            "id": id,
            "token": "local",
            "job_info": {"name": job.name, "stage": job.stage, "project_name": self.project},
            "runner_info": {"timeout": job.timeout.map_or(3600, |timeout| timeout.as_secs().max(1))},
            "variables": variables,
            "steps": [
                {"name": "script", "script": job.script},
                {"name": "after_script", "script": job.after_script},
            ],
            "features": {"trace_sections": true, "failure_reasons": ["runner_interrupted", "job_canceled"]},
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Allowed,
    Skipped,
    Interrupted,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Allowed => "warning",
            Self::Skipped => "skipped",
            Self::Interrupted => "stopped",
        }
    }
}

/// What git knows of the commit at hand.
fn commit(root: &Path) -> BTreeMap<String, String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(root).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let mut variables = BTreeMap::new();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            variables.insert(key.to_owned(), value);
        }
    };
    let sha = git(&["rev-parse", "HEAD"]);
    set("CI_COMMIT_SHORT_SHA", sha.as_ref().map(|sha| sha.chars().take(8).collect()));
    set("CI_COMMIT_SHA", sha);
    let branch = git(&["symbolic-ref", "--short", "-q", "HEAD"]);
    set("CI_COMMIT_REF_NAME", branch.clone());
    set("CI_COMMIT_BRANCH", branch);
    set("CI_COMMIT_TITLE", git(&["log", "-1", "--format=%s"]));
    set("CI_COMMIT_MESSAGE", git(&["log", "-1", "--format=%B"]));
    set("CI_COMMIT_AUTHOR", git(&["log", "-1", "--format=%an <%ae>"]));
    set("CI_COMMIT_TIMESTAMP", git(&["log", "-1", "--format=%cI"]));
    variables
}

/// What a running job waits for.
enum Event {
    Ended(std::io::Result<Ended>),
    Interrupt,
}

/// Turns interrupts from the keyboard into events.
fn hear_interrupts(sender: mpsc::Sender<Event>) -> Result<(), String> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ])
    .map_err(|error| format!("signals cannot be handled: {error}"))?;
    thread::spawn(move || signals.forever().try_for_each(|_| sender.send(Event::Interrupt)));
    Ok(())
}
