//! Resumes the jobs of an earlier agent, reports those that ended with the machine, and discards the journal of another
//! machine.

use std::path::PathBuf;
use std::sync::Arc;

use super::job_manager::payload_of;
use super::slots::RunnerKey;
use super::{Agent, directories_of, gitlab};
use crate::config::{Config, Runner, carried};
use crate::executor::docker::host;
use crate::failure::JobError;
use crate::http::Address;
use crate::job::context::name_of;
use crate::job::removal::{self, DirectoryRemoval};
use crate::journal::{self, Predecessor, Record, SlotDirectory};
use crate::shim;
use crate::token::Token;

/// The jobs of an earlier agent that this agent resumes.
pub(super) struct Recovered {
    /// Names of the jobs whose containers stay.
    jobs: Vec<String>,
    /// Build directories of these jobs.
    directories: Vec<PathBuf>,
}

impl Agent {
    /// Reads the journal. Runs before the first poll.
    pub(super) fn recover(&mut self, config: &Config, predecessor: Predecessor) {
        let mut recovered = Recovered { jobs: Vec::new(), directories: Vec::new() };
        for (number, directory) in journal::slots(&self.state_dir) {
            let record = directory.load();
            // Containers end with the machine, so they are not resumed after a reboot.
            let lives_on = record.as_ref().filter(|record| record.identity.boot == self.identity.boot);
            let job = lives_on.and_then(|record| Some(name_of(&payload_of(record)?, record.began)));
            let dirs = record.as_ref().and_then(|record| record.progress.dirs.clone());
            let kept = record.is_some_and(|record| self.recover_one(config, predecessor, number, &directory, record));
            recovered.jobs.extend(job.filter(|_| kept));
            recovered.directories.extend(dirs.filter(|_| kept).map(|dirs| dirs.builds));
            if !kept && let Err(error) = directory.discard() {
                log::error!("cannot remove the directory of an earlier slot slot={number} error={error}");
            }
        }
        self.recovered = Some(recovered);
    }

    /// Removes the containers and directories of jobs that are not in the journal, in a thread.
    pub(super) fn sweep_containers(&self, recovered: &Recovered) {
        let mut swept: Vec<Address> = Vec::new();
        for runner in self.config.runners.iter().filter(|runner| runner.executor.has_containers()) {
            let Ok(address) = host::address(&runner.docker) else { continue };
            if swept.contains(&address) {
                continue;
            }
            // Listed before the first job starts, so that its directory is not among them.
            let [builds, _] = directories_of(&self.options.working_directory, runner);
            let abandoned = removal::abandoned_dirs(&builds, &recovered.directories);
            let removal = DirectoryRemoval::new(runner, self.factory().cgroup_parents(runner));
            let also = move || abandoned.iter().for_each(|directory| removal.remove(directory));
            self.removals.sweep(&address, &self.owner, recovered.jobs.clone(), also);
            swept.push(address);
        }
    }

    /// Resumes one job. Returns false if it cannot be resumed.
    fn recover_one(
        &self,
        config: &Config,
        predecessor: Predecessor,
        number: usize,
        directory: &SlotDirectory,
        mut record: Record,
    ) -> bool {
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
        let (carried, runner) = configuration_of(config, &record);
        let runner = Arc::new(runner);
        let context = gitlab(&carried, &runner)
            .and_then(|gitlab| self.factory().context(&carried, &runner, Arc::new(gitlab), None));
        let offered = record.offer.as_ref().map(|offered| self.offered_again(config, offered)).transpose();
        let context = context.and_then(|context| Ok((context, offered?)));
        let (context, offered) = match context {
            Ok(resumed) => resumed,
            Err(why) => {
                log::error!("cannot resume a job from the journal job={} error={why}", payload.id);
                return false;
            }
        };
        let permit = self.slots.occupy(RunnerKey::of(&runner), number);
        self.jobs.resume(permit, context, record, payload, predecessor, offered);
        true
    }
}

/// The configuration of a resumed job: the one in its record. The record of an earlier version has none; then the
/// runner comes from the configuration file, or is built from what the record has to report to GitLab.
fn configuration_of(config: &Config, record: &Record) -> (Config, Runner) {
    if let Some((carried, mut runner)) = carried::runner_of_job(&config.path, &record.configuration) {
        runner.tls = record.tls.clone();
        runner.key.clone_from(&record.key);
        return (carried, runner);
    }
    let same = |runner: &&Runner| runner.url == record.url && runner.token.short() == record.short_token;
    if let Some(runner) = config.runners.iter().find(same) {
        return (config.clone(), runner.clone());
    }
    let mut runner = Runner::unnamed(&record.url, Token::new(record.short_token.as_str()));
    runner.tls = record.tls.clone();
    (config.clone(), runner)
}
