//! File tasks as steps of the job.

use std::io;

use super::context::Job;
use super::file_task::FileTask;
use crate::shim::spec::Task;

/// A file task with the permissions that the executor grants. Fails if it cannot be serialised.
pub fn file_step(job: &Job<'_>, plan: &FileTask) -> io::Result<Task> {
    let rights = job.context.executor.file_task_rights(job, plan);
    Ok(Task::File { task: plan.to_text().map_err(io::Error::other)?, rights, output_fifos: None })
}
