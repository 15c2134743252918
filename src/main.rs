//! mayfly runs CI jobs on the machine it is installed on, and shuts that machine down when its work is done.
//!
//! A fleet of CI machines usually has a manager that creates machines, connects to them, and removes them. Every job
//! then depends on that manager. With mayfly, each instance polls GitLab itself, runs its jobs, and terminates itself
//! through its Auto Scaling group. So no port is open, no key is distributed, and no job depends on a manager.
//!
//! This requires that the agent can die at any time. Each script runs under a [`shim`], a process that outlives the
//! agent; the [`journal`] records the stage of each job, and the next agent resumes it.
//!
//! Where to start reading:
//!
//! - [`agent`]: the loop on an instance, from the poll to the shutdown;
//! - [`job`]: one job from its payload to its final state;
//! - [`shim`]: the process that supervises a running script;
//! - [`instance`]: the machine and its cloud;
//! - [`manager`]: the optional manager of a fleet that scales from zero; running jobs do not depend on it.
//!
//! A module uses only modules below it. `docs/architecture.md` has the layers, the life of a job and a glossary.

#![cfg_attr(fuzzing, allow(dead_code, reason = "fuzzing compiles this as a library without a command line"))]

mod agent;
mod archive;
mod backoff;
mod cli;
mod config;
mod coordinator;
mod decode;
mod digest;
mod executor;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod http;
mod instance;
mod job;
mod job_id;
mod journal;
mod local;
mod manager;
mod markup;
mod monitor;
mod ordered;
mod payload;
mod pipeline;
mod random;
mod shim;
mod sync;
mod sys;
mod timed_child;
mod token;
mod trace;
mod version;

/// The allocator of musl maps and unmaps memory for almost every temporary value above one KiB, and takes twice as long
/// for smaller values.
#[cfg(not(any(test, fuzzing)))]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: sys::counted::CountingAllocator = sys::counted::CountingAllocator;

fn main() -> std::process::ExitCode {
    cli::main()
}
