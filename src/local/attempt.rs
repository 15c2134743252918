//! One attempt of a job: a tree of its own, the payload, and the agent's engine.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::containers::Containers;
use super::payload;
use super::record::{Coverage, Recorder, Taken};
use super::screen::Screen;
use super::tree::{Source, Tree, Trees};
use crate::config::Runner;
use crate::coordinator::{Coordinator, JobState};
use crate::executor::job_dirs::JobDirs;
use crate::executor::shell::Shell;
use crate::failure::FailureReason;
use crate::instance::Identity;
use crate::job::context::{Context, Local};
use crate::job::control::Control;
use crate::job::executors::JobExecutor;
use crate::job::run::{self, Ended};
use crate::journal::{Progress, Record, SlotDirectory};
use crate::pipeline::JobRun;
use crate::pipeline::plan::{Job, Plan};
use crate::sys;

/// What all jobs of a run share.
pub struct Ground {
    /// Clean copies of the checkout.
    pub trees: Trees,
    /// What they are made of.
    pub source: Source,
    /// The same with the files of submodules, where a job asks for them.
    pub with_submodules: Option<Source>,
    /// The directory of this run: journals, file variables.
    pub scratch: PathBuf,
    /// Artifacts of jobs by their number.
    pub artifacts: PathBuf,
    /// Caches of the project.
    pub caches: PathBuf,
    /// The name of the project.
    pub project: String,
    /// The runner as the engine knows it.
    pub runner: Arc<Runner>,
    /// Scripts on this machine.
    pub shell: Arc<Shell>,
    /// Scripts in containers, where a job asks for one.
    pub containers: Option<Containers>,
    /// This machine.
    pub identity: Identity,
    /// Where people look.
    pub screen: Arc<Screen>,
    /// Trees of failed jobs are not given to others.
    pub keep: bool,
    /// Where they are kept.
    pub kept: PathBuf,
    /// The objects of the developer's repository.
    pub objects: PathBuf,
}

/// What to run.
pub struct Attempt {
    /// The pipeline.
    pub plan: Arc<Plan>,
    /// The job's place in it.
    pub job: usize,
    /// `CI_JOB_ID`
    pub id: i64,
    /// What names the job on the screen.
    pub key: usize,
    /// Jobs whose artifacts it gets.
    pub dependencies: Vec<(i64, String)>,
    /// Variables of their dotenv reports.
    pub dotenv: Vec<(String, String)>,
    /// The job's container; `None` for the shell.
    pub image: Option<serde_json::Value>,
    /// The file for its output.
    pub log: Option<PathBuf>,
    /// How `coverage` is found.
    pub coverage: Option<Coverage>,
}

/// How an attempt ended.
pub struct Outcome {
    /// `None`: it passed.
    pub failure: Option<(FailureReason, Option<i32>)>,
    /// From its log.
    pub taken: Taken,
    /// How long it took.
    pub duration: Duration,
    /// Where it failed, where that is kept.
    pub left: Option<Left>,
}

/// What a failed job leaves.
pub struct Left {
    /// Its tree.
    pub tree: Tree,
    /// Its variables.
    pub exports: Vec<(String, String)>,
    /// Its image, if it ran in a container.
    pub image: Option<String>,
}

/// Runs an attempt to its end.
pub fn run(ground: &Ground, attempt: Attempt, control: &Arc<Control>) -> Outcome {
    let began = Instant::now();
    let screen = Arc::clone(&ground.screen);
    let recorder = Arc::new(Recorder::new(screen, attempt.key, attempt.log.as_deref(), attempt.coverage));
    let job = &attempt.plan.jobs[attempt.job];
    let facts = Facts {
        plan: &attempt.plan,
        job,
        id: attempt.id,
        dependencies: &attempt.dependencies,
        dotenv: attempt.dotenv,
        image: attempt.image,
    };
    let (ended, tree) = match facts.tree(ground) {
        Ok(tree) => (facts.run(ground, &tree, Arc::clone(&recorder), control), Some(tree)),
        Err(error) => (Err(io::Error::new(error.kind(), format!("no copy of the checkout: {error}"))), None),
    };
    let mut taken = recorder.taken();
    let failure = match ended {
        Ok(Ended::Reported(JobState::Failed { reason, exit_code }, _)) => Some((reason, exit_code)),
        Ok(Ended::Reported(..)) => None,
        Ok(Ended::Dropped) => Some((FailureReason::RunnerInterrupted, None)),
        Err(error) => {
            taken.message = Some(error.to_string());
            Some((FailureReason::RunnerSystemFailure, None))
        }
    };
    let tree = tree.filter(|_| failure.is_some() && ground.keep);
    let left = tree.map(|tree| facts.left(tree));
    Outcome { failure, taken, duration: began.elapsed(), left }
}

struct Facts<'a> {
    plan: &'a Plan,
    job: &'a Job,
    id: i64,
    dependencies: &'a [(i64, String)],
    dotenv: Vec<(String, String)>,
    image: Option<serde_json::Value>,
}

impl Facts<'_> {
    fn variables(&self) -> Vec<crate::pipeline::plan::EnvVariable> {
        let run = JobRun {
            id: self.id.cast_unsigned(),
            started_at: jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())
                .unwrap_or_default()
                .to_string(),
            dotenv: self.dotenv.clone(),
            predefined: Vec::new(),
        };
        self.plan.env(self.job, &run)
    }

    fn left(&self, tree: Tree) -> Left {
        let variables = self.variables();
        let exports = variables.iter().filter(|variable| !variable.file);
        Left {
            exports: exports.map(|variable| (variable.key.to_string(), variable.value.clone())).collect(),
            image: self
                .image
                .as_ref()
                .and_then(|image| image["name"].as_str())
                .map(|name| self.plan.expand(self.job, name)),
            tree,
        }
    }

    fn tree(&self, ground: &Ground) -> io::Result<Tree> {
        let variables = self.variables();
        let value = |key: &str| {
            let found = variables.iter().rev().find(|variable| &*variable.key == key);
            found.map(|variable| variable.value.as_str()).unwrap_or_default()
        };
        let is_empty = matches!(value("GIT_STRATEGY"), "none" | "empty");
        let wants_submodules = matches!(value("GIT_SUBMODULE_STRATEGY"), "normal" | "recursive");
        let source = ground.with_submodules.as_ref().filter(|_| wants_submodules).unwrap_or(&ground.source);
        let give_back = |directory: &Path| match &ground.containers {
            Some(containers) => containers.give_back(directory),
            None => false,
        };
        ground.trees.take(source, is_empty, &give_back)
    }

    fn run(&self, ground: &Ground, tree: &Tree, recorder: Arc<Recorder>, control: &Arc<Control>) -> io::Result<Ended> {
        let variables = self.variables();
        let text = payload::of(
            self.job,
            &payload::Facts {
                id: self.id,
                variables: &variables,
                dependencies: self.dependencies,
                image: self.image.clone(),
                project: &ground.project,
                is_in_container: self.image.is_some(),
            },
        )
        .to_string();
        let payload = crate::payload::decode(text.as_bytes()).map_err(|error| io::Error::other(error.why))?;
        let context = self.context(ground, tree, recorder);
        let record = Record {
            identity: ground.identity.clone(),
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
        let directory = SlotDirectory::at(ground.scratch.join(format!("job-{}", self.id)));
        directory.begin(&record)?;
        run::run(&context, directory, record, payload, control)
    }

    fn context(&self, ground: &Ground, tree: &Tree, recorder: Arc<Recorder>) -> Context {
        let containers = ground.containers.as_ref().filter(|_| self.image.is_some());
        let (executor, runner): (Arc<dyn JobExecutor>, _) = match containers {
            Some(containers) => (containers.executor(), containers.runner()),
            None => (Arc::clone(&ground.shell) as Arc<dyn JobExecutor>, Arc::clone(&ground.runner)),
        };
        let dirs = JobDirs {
            builds: tree.builds.clone(),
            project: tree.project.clone(),
            temporary: tree.temporary.clone(),
            cache: ground.caches.clone(),
            container_builds: containers.map(|containers| containers.builds()),
        };
        Context {
            runner,
            system_id: "local".to_owned(),
            builds: tree.builds.clone(),
            caches: ground.caches.clone(),
            store: None,
            local: Some(Local { dirs, artifacts: ground.artifacts.clone() }),
            coordinator: recorder as Arc<dyn Coordinator>,
            executor,
            identity: ground.identity.clone(),
            metadata_block: None,
        }
    }
}
