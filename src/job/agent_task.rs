//! Tasks of the agent's own program, which run in a child of a shim: file tasks, and tasks with the container engine.

use serde::{Deserialize, Serialize};

use super::file_task::FileTask;
use super::task_report::TaskReport;
use crate::decode;
use crate::executor::docker::prepared::PreparedContainer;
use crate::executor::docker::{prepare, script};
use crate::failure::JobError;
use crate::shim::spec::TaskResult;

/// A task of the agent's own program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AgentTask {
    File(Box<FileTask>),
    PrepareContainer(Box<prepare::PrepareTask>),
    ContainerScript(Box<script::ContainerScript>),
}

impl AgentTask {
    /// Serialises the task for the shim.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// Runs a serialised task. A panic in the agent's own code is not blamed on the job.
pub fn run(task: &str) -> TaskResult {
    std::panic::catch_unwind(|| run_task(task)).unwrap_or_else(|_| {
        let why = "the agent's own program panicked in this stage of the job; report this as a bug of mayfly";
        result_with_report(Err(JobError::system(why)))
    })
}

fn run_task(task: &str) -> TaskResult {
    match decode::json(task.as_bytes()) {
        Ok(AgentTask::File(task)) => task.run(),
        Ok(AgentTask::PrepareContainer(task)) => {
            result_with_report(prepare::run(&task).map(|made| Some(Box::new(made))))
        }
        Ok(AgentTask::ContainerScript(script)) => result_with_report(script::run(&script).map(|()| None)),
        Err(error) => {
            eprintln!("cannot read the task of this step: {error}");
            TaskResult { code: 1, report: String::new() }
        }
    }
}

fn result_with_report(outcome: Result<Option<Box<PreparedContainer>>, JobError>) -> TaskResult {
    let (code, report) = match outcome {
        Ok(None) => return TaskResult::default(),
        Ok(Some(prepared)) => (0, TaskReport::Prepared(prepared)),
        Err(error) => (1, TaskReport::Failed(error)),
    };
    match serde_json::to_string(&report) {
        Ok(report) => TaskResult { code, report },
        Err(error) => {
            eprintln!("cannot report the result of this step: {error}");
            TaskResult { code: 1, report: String::new() }
        }
    }
}
