//! The managers that give jobs to the agent: the agent's reports to them, their shutdown requests, and the shutdown of
//! an agent whose managers do not answer.

use std::sync::Arc;
use std::time::Duration;

use super::offers::OfferedJob;
use super::server::{MakeManager, RunnerServer, ServerKind};
use super::{Agent, AgentEvent, gitlab, readiness};
use crate::config::{Config, Runner};
use crate::coordinator::manager::protocol::Welcome;
use crate::coordinator::manager::{AgentIdentity, JobIntake, ManagedJobs, ManagerClient};
use crate::coordinator::source::JobSource;
use crate::instance::Identity;
use crate::instance::aws::caller_identity;
use crate::journal::OfferRecord;
use crate::journal::shutdown::ShutdownReason;
use crate::sync;
use crate::token::Token;

impl Agent {
    /// The agent's jobs from the manager at this URL, which knows the machine by the id `instance`.
    fn managed_jobs(&self, url: &str, instance: &str) -> Arc<ManagedJobs> {
        let mut managed = sync::lock(&self.managed);
        let jobs = managed.entry((url.to_owned(), instance.to_owned())).or_insert_with(|| {
            let jobs = Arc::<ManagedJobs>::default();
            if self.shutdown.is_some() {
                jobs.set_intake(JobIntake::Closed);
            }
            let events = self.events.clone();
            jobs.set_on_leave(Box::new(move |reason| drop(events.send(AgentEvent::ManagerRequest(reason.to_owned())))));
            jobs
        });
        Arc::clone(jobs)
    }

    /// The agent's jobs from each manager.
    pub(super) fn managed_jobs_of_all(&self) -> impl Iterator<Item = Arc<ManagedJobs>> + use<> {
        sync::lock(&self.managed).values().cloned().collect::<Vec<_>>().into_iter()
    }

    /// Reports to all managers whether the agent takes jobs.
    pub(super) fn report_intake(&self, intake: JobIntake) {
        self.managed_jobs_of_all().for_each(|jobs| jobs.set_intake(intake));
    }

    /// Returns a function that creates the client for the manager at the runner's URL.
    pub(super) fn make_manager(&self, config: &Config, runner: &Runner) -> MakeManager {
        let identity = self.identity_for_managers(config);
        let jobs = self.managed_jobs(&runner.url, &identity.instance);
        let agent = AgentIdentity {
            url: runner.url.clone(),
            tls: runner.tls.clone(),
            fleet_token: runner.token.clone(),
            identity,
            prove: caller_identity::sign,
            capacity: config.concurrent_is_set.then_some(config.concurrent),
            labels: runner.labels.clone(),
            state_dir: self.state_dir.clone(),
            connection_max_age: config.connection_max_age,
        };
        let (slots, status, events) = (Arc::clone(&self.slots), Arc::clone(&self.status), self.events.clone());
        let (name, has_own_limit) = (runner.name.clone(), config.concurrent_is_set);
        Box::new(move || {
            let (slots, status, events) = (Arc::clone(&slots), Arc::clone(&status), events.clone());
            let (limited_slots, url) = (Arc::clone(&slots), agent.url.clone());
            let on_capacity = Box::new(move |capacity: u32| {
                if !has_own_limit {
                    log::info!("the manager changed the number of concurrent jobs url={url} capacity={capacity}");
                    limited_slots.set_concurrent(capacity);
                }
            });
            let on_welcome = Box::new(move |welcome: &Welcome, failed: &dyn Fn()| {
                if !has_own_limit {
                    slots.set_concurrent(welcome.capacity);
                }
                if let Some(command) = &welcome.ready_command {
                    readiness::wait_for_pool(command, &status, &|| {
                        failed();
                        // The main loop may have to shut down a machine that is not ready.
                        let _ = events.send(AgentEvent::Recheck);
                    });
                }
            });
            ManagerClient::new(agent.clone(), Arc::clone(&jobs), on_welcome, on_capacity)
                .map_err(|error| format!("runner `{name}`: {error}"))
        })
    }

    /// Restores the offer of a job from the journal. Errors: the manager's URL is not usable.
    pub(super) fn restored_offer(&self, config: &Config, offered: &OfferRecord) -> Result<OfferedJob, String> {
        let known = config.runners.iter().find(|runner| runner.url == offered.manager);
        let runner = known.cloned().unwrap_or_else(|| Runner::with_defaults(&offered.manager, Token::new("")));
        let gitlab = Arc::new(gitlab(config, &runner)?);
        let source = RunnerServer::new(gitlab, self.make_manager(config, &runner), ServerKind::Manager);
        source.become_manager()?;
        if let Some(manager) = source.manager() {
            manager.start_heartbeats();
        }
        Ok(OfferedJob {
            offer: offered.offer.clone(),
            source: Arc::new(source),
            manager: offered.manager.clone(),
            jobs: self.managed_jobs(&offered.manager, &self.identity_for_managers(config).instance),
        })
    }

    /// The identity with which the agent registers with managers.
    fn identity_for_managers(&self, config: &Config) -> Identity {
        let instance = config.mayfly.instance_id.as_ref().unwrap_or(&self.identity.instance);
        Identity { instance: instance.clone(), boot: self.identity.boot.clone() }
    }

    /// Begins the shutdown that a manager has requested.
    pub(super) fn handle_manager_request(&mut self, reason: &str) {
        if self.shutdown.is_none() {
            log::info!("the manager requested the shutdown of this agent reason={reason}");
            self.begin_shutdown(ShutdownReason::ManagerRequest);
        }
    }

    /// Time until an agent without jobs shuts down because its managers do not answer; `None` if GitLab assigns jobs
    /// directly.
    pub(super) fn until_manager_timeout(&self) -> Option<(Duration, ShutdownReason)> {
        let timeout = self.config.mayfly.orphan_timeout.filter(|_| self.slots.jobs() == 0)?;
        let silences: Option<Vec<Duration>> = self.servers.iter().map(|(_, server)| server.silence()).collect();
        let silence = silences?.into_iter().min()?;
        // An agent with `instance_id` shares the machine with other agents, so only the agent exits.
        let reason = match self.config.mayfly.instance_id {
            None => ShutdownReason::NoManager,
            Some(_) => ShutdownReason::ManagerRequest,
        };
        Some((timeout.saturating_sub(silence), reason))
    }
}
