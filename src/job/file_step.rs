//! File tasks as steps of the job.

use std::io;

use super::agent_task::AgentTask;
use super::context::Job;
use super::file_task::FileTask;
use crate::shim::spec::StepProgram;

/// A file task with the permissions that the executor grants. Fails if it cannot be serialised.
pub fn file_step(job: &Job<'_>, task: FileTask) -> io::Result<StepProgram> {
    let rights = job.context.executor.file_task_rights(job, &task);
    Ok(StepProgram::AgentTask { task: AgentTask::File(Box::new(task)).to_text()?, rights })
}
