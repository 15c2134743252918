//! A file task: work on a job's files, as a step of the job.

use std::io;

use super::context::Job;
use super::file_task::FileTask;
use crate::shim::spec::Task;

/// Work on the job's files, as a task with the rights that the executor leaves it. Errors: it cannot be serialized.
pub fn file_step(job: &Job<'_>, plan: &FileTask) -> io::Result<Task> {
    let rights = job.context.executor.file_task_rights(job, plan);
    Ok(Task::File { task: plan.to_text().map_err(io::Error::other)?, rights, output_fifos: None })
}
