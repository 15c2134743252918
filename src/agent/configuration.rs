//! Applies a configuration: creates the clients of the servers, the contexts of the jobs, and the pollers.

use std::sync::Arc;

use super::contexts::{ContextFactory, OfferContexts};
use super::fitness::{FitnessCheck, Requirements, ScriptRunner};
use super::notices::Availability;
use super::poller::Poller;
use super::readiness::Readiness;
use super::runner_setup::gitlab;
use super::server::{RunnerServer, ServerKind};
use super::{Agent, advice, metadata_blocking};
use crate::config::{Config, ExecutorKind, LoadedConfig, Runner, carried};
use crate::coordinator::Coordinator;
use crate::executor::docker::host;
use crate::job::build_dir::BuildDir;
use crate::job::build_dirs::Remove;
use crate::job::context::RunnerContext;
use crate::job::existing_builds::Layout;
use crate::job::removal::DirectoryRemoval;

/// The runners that poll, each with its server.
pub(super) type RunnerServers = Vec<(Arc<Runner>, Arc<RunnerServer>)>;

impl Agent {
    /// Applies a configuration and starts new pollers. Requests in flight and running jobs keep the old settings.
    /// Errors: the agent cannot set up a runner; the old configuration stays in use.
    pub(super) fn adopt_configuration(&mut self, loaded: LoadedConfig) -> Result<(), String> {
        loaded.log();
        let mut config = loaded.config;
        config.leave.apply_default(self.instance.default_leave());
        if config.runners.is_empty() {
            log::warn!(
                "the configuration has no [[runners]]; add one with `mayfly register` path={}",
                config.path.display()
            );
        }
        let awaited_user = self.remove_runners_without_user(&mut config);
        let (servers, contexts) = self.set_up_runners(&config)?;
        let listen_address = self.options.listen_address.as_ref().or(config.listen_address.as_ref());
        self.monitoring.listen(listen_address.map(String::as_str).filter(|address| !address.is_empty()))?;
        // No step below fails.
        self.servers = servers;
        self.contexts = contexts;
        self.apply_limits(&config);
        self.start_settings.warn_of_changes(&config);
        self.config = config;
        self.unconfigured = None;
        if let Err(error) = carried::keep_settings(&self.config) {
            log::warn!("cannot store the settings for a start without a usable configuration error={error}");
        }
        if let Some(recovered) = self.recovered.take() {
            self.sweep_containers(&recovered);
        }
        self.limit_storage();
        self.record_configuration();
        self.await_user(awaited_user);
        self.start_readiness_check();
        self.start_pollers();
        Ok(())
    }

    /// Creates the clients of the servers and the contexts of the jobs. Errors: the configuration of a runner is not
    /// usable, or jobs could reach the instance metadata although the configuration blocks it.
    fn set_up_runners(&self, config: &Config) -> Result<(RunnerServers, Vec<RunnerContext>), String> {
        let metadata_block = metadata_blocking::apply(config, self.options.user.as_deref(), &self.state_dir)?;
        let factory = self.factory();
        let (mut servers, mut contexts) = (Vec::new(), Vec::new());
        for runner in config.runners.iter().filter(|runner| !runner.token.is_empty()) {
            let runner = Arc::new(runner.clone());
            let server = self.server(config, &runner)?;
            let coordinator = Arc::clone(&server.gitlab) as Arc<dyn Coordinator>;
            contexts.push(factory.context(config, &runner, coordinator, metadata_block.clone())?);
            servers.push((runner, server));
        }
        Ok((servers, contexts))
    }

    /// Applies the limits of concurrent jobs and of the agent's lifetime.
    fn apply_limits(&mut self, config: &Config) {
        let pool_capacity = self.servers.iter().filter_map(|(_, server)| server.manager()?.capacity()).max();
        let pool_capacity = pool_capacity.filter(|_| !config.concurrent_is_set);
        self.slots.set_concurrent(pool_capacity.unwrap_or(config.concurrent));
        self.slots.set_polling_runners(u32::try_from(self.servers.len()).unwrap_or(u32::MAX));
        self.lifetime.bounds = self.options.bounds(config);
        self.slots.set_max_builds(self.lifetime.bounds.max_builds);
        if let Some(advice) = advice::shutdown_warning(&self.lifetime.bounds, &config.leave, &*self.instance) {
            log::warn!("problem in the configuration path={} problem={advice}", config.path.display());
        }
    }

    /// Shows the configuration, its directories and its runners on the pages for monitoring.
    fn record_configuration(&self) {
        let job_directories =
            self.contexts.iter().flat_map(|context| [("builds", &context.builds), ("cache", &context.caches)]);
        let directories =
            job_directories.chain([("state", &self.state_dir)]).map(|(purpose, path)| (purpose, path.clone()));
        self.monitoring.record_configuration(&self.config, directories.collect());
    }

    /// Applies the limits for build directories and pulled images.
    fn limit_storage(&self) {
        let builds_limit = |context: &RunnerContext| {
            let removal = DirectoryRemoval::new(&context.runner, self.factory().cgroup_parents(&context.runner));
            let remove: Remove = Arc::new(move |dir: &BuildDir| dir.remove(&removal));
            (context.builds.clone(), context.runner.retention.builds, remove)
        };
        let builds = self.contexts.iter().map(builds_limit).collect();
        let layout = |context: &RunnerContext| layout_of(context, self.config.concurrent);
        let layouts = self.contexts.iter().map(|context| (context.builds.clone(), layout(context)));
        self.storage.build_dirs.set_layouts(layouts);
        let images_limit = |runner: &Arc<Runner>| {
            let age = runner.retention.images_max_age.filter(|_| runner.executor.has_containers())?;
            Some((host::address(&runner.docker).ok()?, age))
        };
        let images = self.contexts.iter().filter_map(|context| images_limit(&context.runner)).collect();
        let volumes_limit = |runner: &Arc<Runner>| {
            let has_containers = runner.executor.has_containers();
            has_containers
                .then(|| host::address(&runner.docker).ok())
                .flatten()
                .map(|at| (at, runner.retention.cache_volumes))
        };
        let volumes = self.contexts.iter().filter_map(|context| volumes_limit(&context.runner)).collect();
        self.storage.limit(builds, images, volumes);
    }

    /// Starts the pollers, unless the instance shuts down, is in standby or is not ready.
    pub(super) fn start_pollers(&mut self) {
        self.pollers.stop(&self.slots);
        self.pollers = Arc::default();
        if self.shutdown.is_some()
            || self.unconfigured.is_some()
            || !matches!(self.availability, Availability::Available)
            || self.readiness == Readiness::Waiting
        {
            return;
        }
        self.has_polled = true;
        let config = Arc::new(self.config.clone());
        for ((runner, server), context) in self.servers.iter().zip(&self.contexts) {
            let block = context.metadata_block.clone();
            let offers = Arc::new(OfferContexts::new(self.factory(), Arc::clone(&config), runner.position, block));
            for _ in 0..runner.request_concurrency {
                if let Err(error) = self.poller(runner, server, context, &offers).start() {
                    log::error!("cannot start the polling thread runner={} error={error}", runner.name);
                }
            }
        }
    }

    /// The client of a runner's server. A reload keeps the client, because it holds the queue state that GitLab
    /// returned (`last_update`).
    fn server(&self, config: &Config, runner: &Arc<Runner>) -> Result<Arc<RunnerServer>, String> {
        let known = self.servers.iter().find(|(known, _)| {
            known.url == runner.url
                && known.token == runner.token
                && known.tls == runner.tls
                && known.labels == runner.labels
                && known.executor == runner.executor
        });
        if let Some((_, server)) = known {
            return Ok(Arc::clone(server));
        }
        let kind = match runner.executor {
            ExecutorKind::FromManager => ServerKind::Manager,
            _ => ServerKind::Unknown,
        };
        let gitlab = Arc::new(gitlab(config, runner)?);
        Ok(Arc::new(RunnerServer::new(gitlab, self.make_manager(config, runner), kind)))
    }

    /// Creates the contexts of jobs.
    pub(super) fn factory(&self) -> ContextFactory {
        ContextFactory {
            working_directory: self.options.working_directory.clone(),
            user: self.options.user.clone(),
            storage: Arc::clone(&self.storage),
            system_id: self.system_id.clone(),
            identity: self.identity.clone(),
            owner: self.owner.clone(),
            removals: self.removals.clone(),
            parents: self.parents.clone(),
        }
    }

    fn poller(
        &self,
        runner: &Arc<Runner>,
        server: &Arc<RunnerServer>,
        context: &RunnerContext,
        offers: &Arc<OfferContexts>,
    ) -> Poller {
        Poller {
            runner: Arc::clone(runner),
            server: Arc::clone(server),
            context: context.clone(),
            offers: Arc::clone(offers),
            check_interval: self.config.check_interval,
            pollers: Arc::clone(&self.pollers),
            slots: Arc::clone(&self.slots),
            jobs: Arc::clone(&self.jobs),
            events: self.events.clone(),
            fitness_check: FitnessCheck::new(self.requirements(runner, context)),
            max_system_failures: self.config.mayfly.fitness.max_system_failures,
            status: Arc::clone(&self.status),
        }
    }

    /// The requirements of a runner's jobs on this machine.
    fn requirements(&self, runner: &Runner, context: &RunnerContext) -> Requirements {
        let user = self.options.user.as_deref().or(self.config.user.as_deref());
        let (builds, caches) = (context.builds.clone(), context.caches.clone());
        Requirements::new(&self.config, builds, caches, ScriptRunner::new(runner, user, self.config.concurrent))
    }
}

/// Where the build directories of a runner's jobs are. `slots`: the number of slots, which may have separate users.
fn layout_of(context: &RunnerContext, slots: u32) -> Layout {
    if context.runner.executor.has_containers() {
        return Layout::Containers;
    }
    let builds_and_user = |context: RunnerContext| {
        let user = context.executor.user().map(|user| user.name.clone());
        (context.builds, user)
    };
    match context.executor.for_slot(0) {
        None => Layout::Shell(vec![builds_and_user(context.clone())]),
        Some(_) => {
            let in_slot = |slot| builds_and_user(context.clone().in_slot(slot));
            Layout::Shell((0..slots as usize).map(in_slot).collect())
        }
    }
}
