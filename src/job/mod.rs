//! One job, from its payload to its final state. Start reading in `run`, which shows the life of a job on one page.
//!
//! This layer never polls for jobs and never shuts the agent or the instance down.

mod agent_deaths;
pub mod agent_task;
pub mod artifacts;
pub mod build_dir;
pub mod build_dirs;
pub mod cache;
mod claims;
pub mod containers;
pub mod context;
pub mod control;
mod deadlines;
pub mod existing_builds;
pub mod fail_job;
mod file_step;
pub mod file_task;
mod files;
mod flags;
mod get_sources;
pub mod inputs;
mod job_log;
mod job_settings;
mod limits;
mod outcome;
mod prepare;
mod record_sync;
pub mod removal;
mod retry;
pub mod run;
pub mod script;
mod scripts;
mod secrets;
mod server;
mod shell;
pub mod sources;
mod sources_plan;
mod stage_result;
mod stages;
mod step_result;
mod steps;
mod stop_policy;
pub mod storage;
mod summary;
mod task_report;
#[cfg(test)]
mod testing;
mod transfer;
mod variable_checks;
