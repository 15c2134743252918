//! Resumes the jobs of an earlier agent, reports those that ended with the machine, and discards the journal of another
//! machine.

use std::path::PathBuf;
use std::sync::Arc;

use super::job_manager::payload_of;
use super::slots::RunnerKey;
use super::{Agent, directories_of, gitlab};
use crate::config::{Config, Runner};
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::Docker;
use crate::failure::JobError;
use crate::http::Address;
use crate::job::containers;
use crate::job::context::name_of;
use crate::journal::{self, Record, SlotDirectory};
use crate::shim;
use crate::token::Token;

impl Agent {
    /// Reads the journal. Runs before the first poll.
    pub(super) fn recover(&self, config: &Config) {
        let (mut jobs, mut directories) = (Vec::new(), Vec::new());
        for (number, directory) in journal::slots(&self.state_dir) {
            let record = directory.load();
            // Containers end with the machine, so they are not resumed after a reboot.
            let lives_on = record.as_ref().filter(|record| record.identity.boot == self.identity.boot);
            let job = lives_on.and_then(|record| Some(name_of(&payload_of(record)?, record.began)));
            let place = record.as_ref().and_then(|record| record.progress.dirs.clone());
            let kept = record.is_some_and(|record| self.recover_one(config, number, &directory, record));
            jobs.extend(job.filter(|_| kept));
            directories.extend(place.filter(|_| kept).map(|place| place.builds));
            if !kept && let Err(error) = directory.discard() {
                log::error!("cannot remove the directory of an earlier slot slot={number} error={error}");
            }
        }
        self.sweep_containers(config, &jobs, &directories);
    }

    /// Removes the containers and directories of jobs that are not in the journal, in a thread.
    fn sweep_containers(&self, config: &Config, kept: &[String], directories: &[PathBuf]) {
        let mut swept: Vec<Address> = Vec::new();
        for runner in config.runners.iter().filter(|runner| runner.executor.has_containers()) {
            let parents = CgroupParents::default();
            let docker = Docker::new(runner, self.owner.clone(), self.removals.clone(), parents);
            let Ok(docker) = docker else { continue };
            if swept.contains(&docker.address) {
                continue;
            }
            // Listed before the first job starts, so that its directory is not among them.
            let [builds, _] = directories_of(&self.options.working_directory, runner);
            let forgotten = containers::abandoned_dirs(&builds, directories);
            let also = move || containers::remove_dirs(&forgotten);
            self.removals.sweep(&docker.address, &docker.owner, kept.to_vec(), also);
            swept.push(docker.address);
        }
    }

    /// Resumes one job. Returns false if it cannot be resumed.
    fn recover_one(&self, config: &Config, number: usize, directory: &SlotDirectory, mut record: Record) -> bool {
        if record.identity.instance != self.identity.instance {
            log::info!("discarding the journal of another machine slot={number}");
            return false;
        }
        let Some(payload) = payload_of(&record) else {
            log::error!("cannot read a job in the journal slot={number}");
            return false;
        };
        if record.identity.boot != self.identity.boot {
            if let Some(step) = record.progress.step.take() {
                shim::sweep(&step.id, &step.cgroups);
            }
            record.identity = self.identity.clone();
            // `CLOCK_BOOTTIME` starts anew with each boot.
            record.began = crate::sys::boottime();
            if record.progress.final_state.is_none() {
                record.progress.failure = Some(JobError::system("the machine went down while the job was running"));
                record.progress.aborted = true;
            }
            if let Err(error) = directory.save(&record) {
                log::error!("cannot write the journal slot={number} error={error}");
            }
        }
        let runner = Arc::new(runner_of(config, &record));
        let context = gitlab(config, &runner).map(Arc::new).and_then(|gitlab| self.context(config, &runner, &gitlab));
        let context = match context {
            Ok(context) => context,
            Err(why) => {
                log::error!("cannot resume a job from the journal job={} error={why}", payload.id);
                return false;
            }
        };
        let key = RunnerKey { url: runner.url.clone(), token: runner.token.clone() };
        let permit = self.slots.occupy(key, number);
        self.jobs.resume(permit, context, record, payload);
        true
    }
}

/// The runner that took the job. If it is no longer configured, the record has enough to report to GitLab.
fn runner_of(config: &Config, record: &Record) -> Runner {
    let same = |runner: &&Runner| runner.url == record.url && runner.token.short() == record.short_token;
    if let Some(runner) = config.runners.iter().find(same) {
        return runner.clone();
    }
    let mut runner = Runner::unnamed(&record.url, Token::new(record.short_token.as_str()));
    runner.tls = record.tls.clone();
    runner
}
