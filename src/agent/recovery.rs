//! Resumes the jobs of an earlier agent, reports those that ended with the machine, and discards the journal of another
//! machine.

use std::path::PathBuf;
use std::sync::Arc;

use super::slots::RunnerKey;
use super::{Agent, directories_of, gitlab};
use crate::config::{Config, Runner, carried};
use crate::executor::docker::host;
use crate::failure::JobError;
use crate::http::Address;
use crate::http::tls::TlsFiles;
use crate::job::context::job_name;
use crate::job::removal::{self, DirectoryRemoval};
use crate::journal::{self, ForeignRecord, Predecessor, Record, SlotDirectory, StoredRecord};
use crate::payload::{self, Payload};
use crate::shim;
use crate::sys::BootTime;
use crate::token::Token;

/// The jobs of an earlier agent that this agent resumes.
pub(super) struct Recovered {
    /// Names of the resumed jobs. Their containers are not removed.
    jobs: Vec<String>,
    /// Build directories of these jobs.
    directories: Vec<PathBuf>,
}

impl Agent {
    /// Reads the journal. Runs before the first poll.
    pub(super) fn recover(&mut self, config: &Config, predecessor: Predecessor) {
        let mut recovered = Recovered { jobs: Vec::new(), directories: Vec::new() };
        for (number, directory) in journal::slots(&self.state_dir) {
            let record = match directory.read() {
                StoredRecord::Current(record) => Some(*record),
                StoredRecord::Absent => None,
                StoredRecord::Foreign(record) if self.fail_job_of_other_version(config, number, &record) => continue,
                StoredRecord::Foreign(_) => None,
                StoredRecord::Unreadable => {
                    log::error!("cannot read the journal; its job is lost slot={number}");
                    None
                }
            };
            // Containers end with the machine, so they are not resumed after a reboot.
            let of_this_boot = record.as_ref().filter(|record| record.identity.boot == self.identity.boot);
            let job = of_this_boot.and_then(|record| Some(job_name(&payload_of(record)?, record.began)));
            let dirs = record.as_ref().and_then(|record| record.progress.dirs.clone());
            let is_resumed =
                record.is_some_and(|record| self.resume_job(config, predecessor, number, &directory, record));
            recovered.jobs.extend(job.filter(|_| is_resumed));
            recovered.directories.extend(dirs.filter(|_| is_resumed).map(|dirs| dirs.builds));
            if !is_resumed && let Err(error) = directory.discard() {
                log::error!("cannot remove the directory of an earlier slot slot={number} error={error}");
            }
        }
        self.recovered = Some(recovered);
    }

    /// Removes the containers and directories of jobs that are not in the journal, in a thread.
    pub(super) fn sweep_containers(&self, recovered: &Recovered) {
        let mut swept_engines: Vec<Address> = Vec::new();
        for runner in self.config.runners.iter().filter(|runner| runner.executor.has_containers()) {
            let Ok(address) = host::address(&runner.docker) else { continue };
            if swept_engines.contains(&address) {
                continue;
            }
            // The directories are listed before the first job starts, so that the list does not contain the directory
            // of a new job.
            let [builds, _] = directories_of(&self.options.working_directory, runner);
            let abandoned = removal::abandoned_dirs(&builds, &recovered.directories);
            let removal = DirectoryRemoval::new(runner, self.factory().cgroup_parents(runner));
            let remove_directories = move || abandoned.iter().for_each(|directory| removal.remove(directory));
            self.removals.sweep(&address, &self.owner, recovered.jobs.clone(), remove_directories);
            swept_engines.push(address);
        }
    }

    /// Resumes one job. Returns false if it cannot be resumed.
    fn resume_job(
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
            if let Some(step) = record.progress.end_step() {
                shim::sweep(&step.id, &step.cgroups);
            }
            record.identity = self.identity.clone();
            // `CLOCK_BOOTTIME` restarts with each boot.
            record.began = BootTime::now();
            if record.progress.final_state.is_none() {
                record.progress.failure = Some(JobError::system("the machine went down while the job was running"));
                record.progress.abort();
            }
            if let Err(error) = directory.save(&record) {
                log::error!("cannot write the journal slot={number} error={error}");
            }
        }
        let (carried, runner) = configuration_of(config, &record);
        let runner = Arc::new(runner);
        let context = gitlab(&carried, &runner)
            .and_then(|gitlab| self.factory().context(&carried, &runner, Arc::new(gitlab), None));
        let offered = record.offer.as_ref().map(|offered| self.restored_offer(config, offered)).transpose();
        let context = context.and_then(|context| Ok((context, offered?)));
        let (context, offered) = match context {
            Ok(usable) => usable,
            Err(why) => {
                log::error!("cannot resume a job from the journal job={} error={why}", payload.id);
                return false;
            }
        };
        let permit = self.slots.occupy(RunnerKey::new(&runner), number);
        self.jobs.resume(permit, context, record, payload, predecessor, offered);
        true
    }

    /// Reports the job in a record of another version as failed, because GitLab would wait an hour for it otherwise.
    /// Returns false if the report is not possible.
    fn fail_job_of_other_version(&self, config: &Config, number: usize, record: &ForeignRecord) -> bool {
        if record.identity.instance != self.identity.instance {
            log::info!("discarding the journal of another machine slot={number}");
            return false;
        }
        if let Some(step) = &record.step {
            shim::sweep(&step.id, &step.cgroups);
        }
        let version = record.version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
        let own = journal::VERSION;
        let job = match payload::decode(record.payload.as_bytes()) {
            Ok(payload) => Some(payload.handle()),
            Err(undecodable) => undecodable.job,
        };
        let Some(job) = job else {
            log::error!("cannot read a job in the journal slot={number} version={version} own_version={own}");
            return false;
        };
        log::error!(
            "the journal was written by another version of mayfly; its job cannot be resumed job={} slot={number} \
             version={version} own_version={own}",
            job.id
        );
        // The next heartbeat of this agent does not list the job, so the manager detects that the agent does not have
        // it.
        if record.is_offered {
            return false;
        }
        let runner = Arc::new(runner_for_report(config, &record.url, &record.short_token, &record.tls));
        let context =
            gitlab(config, &runner).and_then(|gitlab| self.factory().context(config, &runner, Arc::new(gitlab), None));
        match context {
            Ok(context) => {
                let permit = self.slots.occupy(RunnerKey::new(&runner), number);
                let why = "the agent was replaced by another version of mayfly, which cannot resume this job; run the \
                           job again";
                self.jobs.fail_undecodable(permit, context, job, why, None);
                true
            }
            Err(why) => {
                log::error!("cannot report a job from the journal job={} error={why}", job.id);
                false
            }
        }
    }
}

/// The configuration of a resumed job, from its record. The record of an earlier version contains no configuration.
/// Then the runner comes from the configuration file, or has only the fields of the record that a report to GitLab
/// needs.
fn configuration_of(config: &Config, record: &Record) -> (Config, Runner) {
    if let Some((carried, mut runner)) = carried::read_job_settings(&config.path, &record.configuration) {
        runner.tls = record.tls.clone();
        runner.key.clone_from(&record.key);
        return (carried, runner);
    }
    (config.clone(), runner_for_report(config, &record.url, &record.short_token, &record.tls))
}

/// The runner of the configuration that the job belongs to; otherwise a runner with only the fields that a report to
/// GitLab needs.
fn runner_for_report(config: &Config, url: &str, short_token: &str, tls: &TlsFiles) -> Runner {
    let same = |runner: &&Runner| runner.url == url && runner.token.short() == short_token;
    config.runners.iter().find(same).cloned().unwrap_or_else(|| {
        let mut runner = Runner::with_defaults(url, Token::new(short_token));
        runner.tls = tls.clone();
        runner
    })
}

/// The payload of a job in the journal; `None` if it cannot be decoded.
fn payload_of(record: &Record) -> Option<Payload> {
    payload::decode(record.payload.as_bytes()).ok()
}
