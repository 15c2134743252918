//! The context of a runner's jobs on this machine: executor, directories, caches. The agent creates it once for each
//! runner of the configuration. For a job from a manager, it creates the context from the runner table in the offer.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::confinement;
use super::runner_setup::{directories_of, executor_of, gitlab};
use crate::config::{Config, OfferedRunner, Runner, carried};
use crate::coordinator::Coordinator;
use crate::coordinator::manager::protocol::Offer;
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::names::ContainerOwner;
use crate::executor::docker::removal::ContainerRemovals;
use crate::executor::roots;
use crate::http::tls::TlsFiles;
use crate::instance::Identity;
use crate::instance::metadata_block::MetadataBlock;
use crate::job::cache::s3::S3Store;
use crate::job::context::RunnerContext;
use crate::job::storage::Storage;
use crate::sync;
use crate::token::Token;

/// Maximum number of a manager's runner tables in the cache. A pool has one; a changed table replaces it.
const MAX_CACHED_TABLES: usize = 8;

/// Creates the contexts of jobs.
#[derive(Clone)]
pub struct ContextFactory {
    /// The absolute working directory.
    pub working_directory: PathBuf,
    /// The user of the jobs from the command line.
    pub user: Option<String>,
    /// The build directories and images that jobs leave on this machine.
    pub storage: Arc<Storage>,
    /// The system id of this machine.
    pub system_id: String,
    /// The machine and its boot.
    pub identity: Identity,
    /// Labels that mark the containers of this agent's jobs.
    pub owner: ContainerOwner,
    /// The removals of containers that are in progress.
    pub removals: ContainerRemovals,
    /// The parents of the jobs' control groups.
    pub parents: CgroupParents,
}

impl ContextFactory {
    /// The parents of the control groups in which the steps of a runner's jobs run.
    pub fn cgroup_parents(&self, runner: &Runner) -> CgroupParents {
        if runner.cgroups { self.parents.clone() } else { CgroupParents::default() }
    }

    /// The context of the jobs of a runner. Errors: the runner's configuration is not usable.
    pub fn context(
        &self,
        config: &Config,
        runner: &Arc<Runner>,
        coordinator: Arc<dyn Coordinator>,
        metadata_block: Option<Arc<MetadataBlock>>,
    ) -> Result<RunnerContext, String> {
        let parents = self.cgroup_parents(runner);
        let user = self.user.as_deref().or(config.user.as_deref());
        let removals = (self.owner.clone(), self.removals.clone());
        let executor = executor_of(runner, user, config.concurrent, parents, removals)
            .map_err(|why| format!("runner `{}`: {why}", runner.name))?;
        confinement::warn(runner, &self.working_directory, &self.parents);
        let [builds, caches] = directories_of(&self.working_directory, runner);
        for directory in [&builds, &caches] {
            if let Some(why) = roots::warning(directory, executor.user()) {
                log::warn!("a directory of jobs is not safe runner={} problem={why}", runner.name);
            }
        }
        let store = S3Store::new(&runner.cache, &runner.token.short()).unwrap_or_else(|why| {
            log::warn!(
                "the object store for caches cannot be used; caches stay on the machine runner={} error={why}",
                runner.name
            );
            None
        });
        let carried = carried::write_job_settings(runner, user, config.concurrent, [&builds, &caches]);
        Ok(RunnerContext {
            carried: carried.into(),
            caches,
            store: store.map(Arc::new),
            runner: Arc::clone(runner),
            storage: Some(Arc::clone(&self.storage)),
            system_id: self.system_id.clone(),
            builds,
            local: None,
            coordinator,
            executor,
            identity: self.identity.clone(),
            metadata_block,
        })
    }

    /// The context of a job that a manager offers to the runner at `position` of the configuration. Errors: the
    /// manager's runner table contradicts the agent's own configuration.
    pub fn context_of_offer(
        &self,
        config: &Config,
        position: usize,
        offer: &Offer,
        metadata_block: Option<Arc<MetadataBlock>>,
    ) -> Result<RunnerContext, String> {
        let offered = OfferedRunner {
            url: &offer.coordinator.url,
            authorities: offer.coordinator.authorities.as_deref(),
            table: &offer.runner,
            short_token: &offer.short_token,
            capacity: offer.capacity,
        };
        let config = config.with_offered_runner(position, offered)?;
        let runner = config.runners.first().cloned().ok_or("the manager's table holds no runner")?;
        if runner.executor == crate::config::ExecutorKind::FromManager {
            return Err("the manager's table has no `executor`".to_owned());
        }
        let runner = Arc::new(runner);
        let coordinator = gitlab(&config, &runner)?;
        self.context(&config, &runner, Arc::new(coordinator), metadata_block)
    }
}

/// The contexts of the jobs of one manager, cached by the runner table in the offer.
pub struct OfferContexts {
    pub factory: ContextFactory,
    /// The agent's own configuration.
    pub config: Arc<Config>,
    /// The position of the runner that has the manager's URL.
    pub position: usize,
    /// Blocks the access of jobs to the instance metadata, if configured.
    pub metadata_block: Option<Arc<MetadataBlock>>,
    cached: Mutex<HashMap<String, RunnerContext>>,
}

impl OfferContexts {
    pub fn new(
        factory: ContextFactory,
        config: Arc<Config>,
        position: usize,
        metadata_block: Option<Arc<MetadataBlock>>,
    ) -> Self {
        Self { factory, config, position, metadata_block, cached: Mutex::default() }
    }

    /// A context that is only used to report a job as failed to its GitLab. Errors: the URL is not usable.
    pub fn context_for_report(&self, offer: &Offer, like: &RunnerContext) -> Result<RunnerContext, String> {
        let mut runner = Runner::with_defaults(&offer.coordinator.url, Token::new(offer.short_token.as_str()));
        if let Some(own) = self.config.runners.iter().find(|runner| runner.position == self.position) {
            runner.tls.cert_file.clone_from(&own.tls.cert_file);
            runner.tls.key_file.clone_from(&own.tls.key_file);
        }
        if let Some(authorities) = &offer.coordinator.authorities {
            runner.tls.ca_file = TlsFiles::from_authorities(authorities.clone()).ca_file;
        }
        let coordinator = Arc::new(gitlab(&self.config, &runner)?);
        Ok(RunnerContext { runner: Arc::new(runner), coordinator, ..like.clone() })
    }

    /// The context of an offered job. Errors: as [`ContextFactory::context_of_offer`].
    pub fn context(&self, offer: &Offer) -> Result<RunnerContext, String> {
        let Offer { coordinator, short_token, capacity, runner, .. } = offer;
        let key = format!("{}\n{:?}\n{short_token} {capacity}\n{runner}", coordinator.url, coordinator.authorities);
        let mut cached = sync::lock(&self.cached);
        if let Some(context) = cached.get(&key) {
            return Ok(context.clone());
        }
        let block = self.metadata_block.clone();
        let context = self.factory.context_of_offer(&self.config, self.position, offer, block)?;
        if cached.len() >= MAX_CACHED_TABLES {
            cached.clear();
        }
        cached.insert(key, context.clone());
        Ok(context)
    }
}
