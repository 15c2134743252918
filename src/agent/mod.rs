//! The agent: polls GitLab for jobs, runs and counts them, and decides when the instance shuts down.

mod confinement;
pub mod fitness;
mod job_manager;
mod lifetime;
pub mod metadata_blocking;
mod monitoring;
mod notices;
mod poller;
mod readiness;
mod recovery;
mod reload;
mod rotation;
mod shutdown;
mod signals;
mod slots;
mod supervisor;
mod termination;
mod watch;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::config::fitness::WhenUnfit;
use crate::config::lifetime::{IdleTimes, Lifetime as Bounds};
use crate::config::{self, Config, Loaded, Runner, Severity};
use crate::coordinator::gitlab::{GitLab, Info};
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::Docker;
use crate::executor::docker::names::Owner;
use crate::executor::docker::removal::ContainerRemovals;
use crate::executor::roots;
use crate::executor::shell::Shell;
use crate::instance::aws::secrets;
use crate::instance::{self, Identity, Instance, Notice, Requirement};
use crate::job::cache::s3::S3Store;
use crate::job::context::{JobExecutor, RunnerContext};
use crate::journal::JobCount;
use crate::journal::shutdown::ShutdownReason;
use crate::monitor::metrics::RunnerLabels;
use crate::sys;
pub use confinement::confinement;
use fitness::{FitnessCheck, Requirements, ScriptRunner};
use job_manager::JobManager;
use lifetime::Lifetime;
use monitoring::{AgentPhase, Monitoring};
use notices::Availability;
use poller::{Poller, PollerSet};
use rotation::Rotation;
use shutdown::Shutdown;
use signals::SignalRequest;
use slots::Slots;
use supervisor::Supervisor;
use termination::TerminationOutcome;

/// Stack size of threads that do little.
pub const STACK: usize = 256 * 1024;

/// Timeout of fetching a runner token that is stored in AWS. A booting instance may have to wait for its network and
/// for its instance role.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the agent waits for the removal of containers before it exits.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// An event for the main loop.
pub enum Event {
    /// The process received a signal.
    Signal(SignalRequest),
    /// The configuration file has changed.
    ConfigurationChanged,
    /// The tokens for a reloaded configuration were fetched, or could not be fetched.
    TokensFetched(reload::FetchedTokens),
    /// GitLab rejected the token of a runner whose token is stored in AWS.
    StoredTokenRejected,
    /// A request or a job has ended.
    Changed,
    /// The cloud sent a notice for this instance.
    Notice(Notice),
    /// The termination of the instance has ended.
    Terminated(TerminationOutcome),
    /// The readiness commands have succeeded.
    Ready,
}

/// The command line options; they override the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Path of the configuration file.
    pub config: PathBuf,
    /// The user that jobs run as.
    pub user: Option<String>,
    /// Number of jobs after which the agent shuts down.
    pub max_builds: Option<u32>,
    /// Time without a job after which the agent shuts down.
    pub idle_timeout: Option<Duration>,
    /// Age at which the agent shuts down.
    pub max_age: Option<Duration>,
    /// Address of the metrics listener; empty for none.
    pub listen_address: Option<String>,
    /// Absolute working directory; the build directories are below it unless configured.
    pub working_directory: PathBuf,
}

/// Runs the agent until it shuts down. Errors: why the agent cannot start, and what to do.
pub fn run(options: Options, mut loaded: Loaded) -> Result<ExitCode, String> {
    let supervisor = Supervisor::from_environment();
    let state = config::state_dir(&loaded.config);
    let unusable = |error: io::Error| {
        format!("the state directory {} cannot be used: {error}; set `state_dir` below [mayfly]", state.display())
    };
    job_manager::prepare_state(&state).map_err(unusable)?;
    let _lock = lock(&state)?;
    let (events, inbox) = mpsc::channel();
    signals::listen(events.clone()).map_err(|error| format!("signals cannot be handled: {error}"))?;
    watch::watch(&options.config, events.clone());
    let requirement = Requirement::of(loaded.config.leave.strategy);
    let instance = instance::find(loaded.config.mayfly.aws.as_ref(), requirement)?;
    let earlier = shutdown::load_shutdown(&state, &*instance, loaded.config.leave.strategy);
    match (secrets::fill_in(&mut loaded.config, TOKEN_TIMEOUT), &earlier) {
        (Err(why), None) => return Err(why),
        // A shutdown continues without a token: an instance that keeps running costs more than a runner manager that
        // stays registered.
        (Err(why), Some(_)) => {
            log::error!("shutting down without a token, so the runner manager stays registered error={why}")
        }
        (Ok(()), _) => {}
    }
    let mut agent = Agent::new(instance, options, &loaded.config, state, supervisor, (events, inbox));
    if let Some(earlier) = earlier {
        agent.resume_shutdown(earlier);
    }
    agent.recover(&loaded.config);
    agent.watch_instance();
    match agent.adopt_configuration(loaded) {
        // A shutdown needs no runners, so an unusable configuration must not stop it.
        Err(why) if agent.shutdown.is_some() => {
            log::error!("shutting down without a part of the configuration error={why}")
        }
        adopted => adopted?,
    }
    Ok(agent.run_loop())
}

impl Options {
    /// The limits of the agent's lifetime: the command line overrides the configuration.
    fn bounds(&self, config: &Config) -> Bounds {
        let configured = config.lifetime.clone();
        Bounds {
            max_builds: self.max_builds.or(configured.max_builds),
            max_age: self.max_age.or(configured.max_age),
            idle: self.idle_timeout.map_or(configured.idle, |timeout| vec![IdleTimes::always(timeout)]),
        }
    }
}

/// Locks the state directory, because two agents would run the same jobs. Errors: another agent holds the lock.
fn lock(state: &Path) -> Result<File, String> {
    let path = state.join("lock");
    let file = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    file.try_lock().map_err(|_| {
        format!("another mayfly runs with the state directory {}; stop it, or set another `state_dir`", state.display())
    })?;
    Ok(file)
}

/// Whether the readiness commands have succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// No configuration has been loaded yet.
    Unknown,
    /// The agent repeats the commands until they succeed.
    Waiting,
    /// The commands have succeeded, or there are none.
    Ready,
}

struct Agent {
    options: Options,
    config: Config,
    state_dir: PathBuf,
    system_id: String,
    instance: Arc<dyn Instance>,
    identity: Identity,
    parents: CgroupParents,
    /// Labels that mark the containers of this agent's jobs.
    owner: Owner,
    removals: ContainerRemovals,
    slots: Arc<Slots>,
    jobs: Arc<JobManager>,
    lifetime: Lifetime,
    availability: Availability,
    pollers: Arc<PollerSet>,
    servers: Vec<(Arc<Runner>, Arc<GitLab>)>,
    contexts: Vec<RunnerContext>,
    supervisor: Supervisor,
    monitoring: Monitoring,
    rotation: Rotation,
    /// Number of reloads so far.
    reloads: u64,
    /// When the agent last fetched tokens because GitLab rejected one.
    last_token_fetch: Option<Instant>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    shutdown: Option<Shutdown>,
    /// The runners that must not poll, with the reasons.
    status: Arc<fitness::FitnessStatus>,
    readiness: Readiness,
    /// When this agent started, in nanoseconds of `CLOCK_BOOTTIME`.
    began: u64,
    /// This agent has polled, or an earlier agent may have.
    has_polled: bool,
}

impl Agent {
    fn new(
        instance: Arc<dyn Instance>,
        options: Options,
        config: &Config,
        state: PathBuf,
        supervisor: Supervisor,
        (events, inbox): (Sender<Event>, Receiver<Event>),
    ) -> Self {
        let identity = instance.identity();
        let count = JobCount::load(&state, &identity);
        let bounds = options.bounds(config);
        let slots = Slots::new(config.concurrent, bounds.max_builds, count.jobs);
        let system_id = config::system_id::load(&options.config, instance.cloud_id().as_deref());
        let status = Arc::<fitness::FitnessStatus>::default();
        Self {
            monitoring: Monitoring::new(Arc::clone(&slots), &system_id, Arc::clone(&status)),
            status,
            readiness: Readiness::Unknown,
            began: sys::boottime(),
            slots,
            has_polled: count.jobs > 0,
            lifetime: Lifetime::new(bounds, count.began),
            jobs: JobManager::new(state.clone(), Arc::clone(&instance), count, events.clone()),
            system_id,
            parents: CgroupParents::find(),
            owner: Owner {
                instance: identity.instance.clone(),
                state: state.display().to_string(),
                life: format!("{}-{:x}", std::process::id(), crate::sys::boottime()),
            },
            removals: ContainerRemovals::default(),
            pollers: Arc::default(),
            availability: Availability::Available,
            servers: Vec::new(),
            contexts: Vec::new(),
            supervisor,
            rotation: Rotation::default(),
            reloads: 0,
            last_token_fetch: None,
            config: config.clone(),
            options,
            state_dir: state,
            instance,
            identity,
            events,
            inbox,
            shutdown: None,
        }
    }

    /// Applies a configuration: starts new pollers, while requests in flight and running jobs keep the old settings.
    /// Errors: a runner cannot be set up; then nothing has changed.
    fn adopt_configuration(&mut self, loaded: Loaded) -> Result<(), String> {
        for finding in &loaded.findings {
            let level = if finding.severity == Severity::UnusableRunner { log::Level::Error } else { log::Level::Warn };
            log::log!(level, "{}: {finding}", loaded.config.path.display());
        }
        let config = loaded.config;
        if config.runners.is_empty() {
            log::warn!("there is no [[runners]] in {}; add one with `mayfly register`", config.path.display());
        }
        let metadata_block = metadata_blocking::apply(&config, self.options.user.as_deref(), &self.state_dir)?;
        let mut servers = Vec::new();
        let mut contexts = Vec::new();
        for runner in config.runners.iter().filter(|runner| !runner.token.is_empty()) {
            let runner = Arc::new(runner.clone());
            let gitlab = self.server(&config, &runner)?;
            contexts.push(RunnerContext {
                metadata_block: metadata_block.clone(),
                ..self.context(&config, &runner, &gitlab)?
            });
            servers.push((runner, gitlab));
        }
        let listen_address = self.options.listen_address.as_ref().or(config.listen_address.as_ref());
        self.monitoring.listen(listen_address.map(String::as_str).filter(|address| !address.is_empty()))?;
        self.slots.set_concurrent(config.concurrent);
        self.slots.set_polling_runners(u32::try_from(servers.len()).unwrap_or(u32::MAX));
        self.lifetime.bounds = self.options.bounds(&config);
        self.slots.set_max_builds(self.lifetime.bounds.max_builds);
        self.servers = servers;
        self.contexts = contexts;
        self.config = config;
        let of_runners =
            self.contexts.iter().flat_map(|context| [("builds", &context.builds), ("cache", &context.caches)]);
        let directories = of_runners.chain([("state", &self.state_dir)]).map(|(purpose, path)| (purpose, path.clone()));
        self.monitoring.record_configuration(&self.config, directories.collect());
        let runners: Vec<RunnerLabels> = self.servers.iter().map(|(runner, _)| RunnerLabels::from(&**runner)).collect();
        self.status.keep_only(&runners);
        self.start_readiness_check();
        self.start_pollers();
        Ok(())
    }

    /// Starts the readiness commands of the first configuration.
    fn start_readiness_check(&mut self) {
        if self.readiness != Readiness::Unknown {
            return;
        }
        self.readiness = Readiness::Ready;
        let Some(ready) = self.config.mayfly.ready.clone() else { return };
        log::info!(
            "polling starts once {} command(s) succeed timeout={}s",
            ready.commands.len(),
            ready.timeout.as_secs()
        );
        match readiness::wait_in_thread(ready, Arc::clone(&self.status), self.events.clone()) {
            Ok(()) => {
                self.readiness = Readiness::Waiting;
                self.slots.pause();
            }
            Err(error) => {
                log::error!("cannot start the thread for ready_command; polling starts without it error={error}")
            }
        }
    }

    fn handle_ready(&mut self) {
        self.readiness = Readiness::Ready;
        if self.shutdown.is_none() && matches!(self.availability, Availability::Available) {
            self.slots.unpause();
            self.start_pollers();
        }
    }

    /// Starts the pollers, unless the instance shuts down, is in standby or is not ready.
    fn start_pollers(&mut self) {
        self.pollers.stop(&self.slots);
        self.pollers = Arc::default();
        if self.shutdown.is_some()
            || !matches!(self.availability, Availability::Available)
            || self.readiness == Readiness::Waiting
        {
            return;
        }
        self.has_polled = true;
        for ((runner, gitlab), context) in self.servers.iter().zip(&self.contexts) {
            for _ in 0..runner.request_concurrency {
                if let Err(error) = self.poller(runner, gitlab, context).start() {
                    log::error!("cannot start the polling thread runner={} error={error}", runner.name);
                }
            }
        }
    }

    /// The GitLab client of a runner. A reload keeps the client, because it holds the queue state that GitLab returned
    /// (`last_update`).
    fn server(&self, config: &Config, runner: &Arc<Runner>) -> Result<Arc<GitLab>, String> {
        let known = self.servers.iter().find(|(known, _)| {
            known.url == runner.url
                && known.token == runner.token
                && known.tls == runner.tls
                && known.labels == runner.labels
                && known.executor == runner.executor
        });
        if let Some((_, gitlab)) = known {
            return Ok(Arc::clone(gitlab));
        }
        gitlab(config, runner).map(Arc::new)
    }

    fn context(&self, config: &Config, runner: &Arc<Runner>, gitlab: &Arc<GitLab>) -> Result<RunnerContext, String> {
        let executor = self.executor(config, runner).map_err(|why| format!("runner `{}`: {why}", runner.name))?;
        confinement::warn(runner, &self.options.working_directory, &self.parents);
        let [builds, caches] = directories_of(&self.options.working_directory, runner);
        if let Some(user) = executor.user() {
            for directory in [&builds, &caches] {
                if let Some(why) = roots::warning(directory, user) {
                    log::warn!("runner `{}`: {why}", runner.name);
                }
            }
        }
        let store = S3Store::new(&runner.cache, &runner.token.short()).unwrap_or_else(|why| {
            log::warn!("runner `{}`: {why}", runner.name);
            None
        });
        Ok(RunnerContext {
            caches,
            store: store.map(Arc::new),
            runner: Arc::clone(runner),
            system_id: self.system_id.clone(),
            builds,
            local: None,
            coordinator: Arc::clone(gitlab) as Arc<dyn crate::coordinator::Coordinator>,
            executor,
            identity: self.identity.clone(),
            metadata_block: None,
        })
    }

    /// The executor of a runner. Errors: the configuration of the executor is not usable.
    fn executor(&self, config: &Config, runner: &Runner) -> Result<Arc<dyn JobExecutor>, String> {
        let parents = if runner.cgroups { self.parents.clone() } else { CgroupParents::default() };
        if runner.executor.has_containers() {
            let docker = Docker::new(runner, self.owner.clone(), self.removals.clone(), parents)?;
            return Ok(Arc::new(docker));
        }
        let user = self.options.user.as_deref().or(config.user.as_deref());
        Ok(Arc::new(Shell::new(runner.shell.as_deref(), user, config.concurrent, parents)?))
    }

    fn poller(&self, runner: &Arc<Runner>, gitlab: &Arc<GitLab>, context: &RunnerContext) -> Poller {
        Poller {
            runner: Arc::clone(runner),
            gitlab: Arc::clone(gitlab),
            context: context.clone(),
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

    /// What the jobs of a runner need on this machine.
    fn requirements(&self, runner: &Runner, context: &RunnerContext) -> Requirements {
        let user = self.options.user.as_deref().or(self.config.user.as_deref());
        let (builds, caches) = (context.builds.clone(), context.caches.clone());
        Requirements::new(&self.config, builds, caches, ScriptRunner::of(runner, user, self.config.concurrent))
    }

    /// The main loop: handles events and runs work that is due.
    fn run_loop(&mut self) -> ExitCode {
        log::info!(
            "mayfly is up version={} runners={} concurrent={} system_id={}",
            env!("CARGO_PKG_VERSION"),
            self.servers.len(),
            self.config.concurrent,
            self.system_id
        );
        self.supervisor.ready();
        loop {
            let timeout = self.run_due_work();
            self.report_status();
            let code = match self.terminate_when_idle() {
                Some(code) => Some(code),
                None => match self.next_event(timeout) {
                    Ok(event) => self.handle_event(event),
                    // The agent holds a sender itself, so the channel is never disconnected.
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
                },
            };
            if let Some(code) = code {
                return code;
            }
        }
    }

    /// Handles an event. Returns an exit code if the agent must exit.
    fn handle_event(&mut self, event: Event) -> Option<ExitCode> {
        match event {
            Event::Signal(SignalRequest::Drain) => self.drain(),
            Event::Signal(SignalRequest::Stop) => return self.stop(),
            Event::Signal(SignalRequest::HandOver) => return self.hand_over(),
            Event::Signal(SignalRequest::Reload) | Event::ConfigurationChanged => self.reload(),
            Event::TokensFetched(fetched) => self.handle_fetched_tokens(fetched),
            Event::StoredTokenRejected => self.fetch_rejected_tokens(),
            Event::Notice(notice) => self.handle_notice(notice),
            Event::Terminated(outcome) => return self.handle_termination(outcome),
            Event::Ready => self.handle_ready(),
            Event::Changed => {}
        }
        None
    }

    /// Waits for an event, at most for `timeout` and at most until the service manager's watchdog or the health check
    /// needs a sign of life.
    fn next_event(&mut self, timeout: Option<Duration>) -> Result<Event, RecvTimeoutError> {
        match [timeout, self.supervisor.ping_watchdog(), self.monitoring.record_loop()].into_iter().flatten().min() {
            Some(timeout) => self.inbox.recv_timeout(timeout),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// True if no job runs, no request is in flight and no token is being rotated.
    fn is_idle(&self) -> bool {
        self.slots.is_idle() && !self.rotation.is_running()
    }

    fn report_status(&mut self) {
        let jobs = self.slots.jobs();
        let status = match (&self.shutdown, &self.availability) {
            (Some(shutdown), _) => format!("taking no more jobs ({}), {jobs} left", shutdown.reason()),
            (None, Availability::Available) => format!("{jobs} of {} jobs", self.config.concurrent),
            (None, _) => format!("resting, {jobs} jobs"),
        };
        self.monitoring.set_phase(match (&self.shutdown, &self.availability) {
            (Some(Shutdown { tracker: Some(tracker), .. }), _) => AgentPhase::ShuttingDown(Arc::clone(tracker)),
            (Some(_), _) => AgentPhase::Stopping,
            (None, Availability::Available) => AgentPhase::Working,
            (None, _) => AgentPhase::Paused,
        });
        self.supervisor.status(&status);
    }

    /// Runs the work that is due. Returns the time until more work is due.
    fn run_due_work(&mut self) -> Option<Duration> {
        if self.shutdown.is_some() {
            return self.run_shutdown_deadlines();
        }
        if !matches!(self.availability, Availability::Available) {
            return self.check_availability();
        }
        let next_rotation = self.rotate_tokens();
        let next_look = match self.until_giving_up() {
            Some((Duration::ZERO, reason)) => {
                self.begin_shutdown(reason);
                return Some(Duration::ZERO);
            }
            other => other.map(|(left, _)| left),
        };
        match self.lifetime.shutdown_reason(&self.slots, sys::boottime(), jiff::Timestamp::now()) {
            Ok(reason) => {
                self.begin_shutdown(reason);
                Some(Duration::ZERO)
            }
            Err(left) => [left, next_rotation, next_look].into_iter().flatten().min(),
        }
    }

    /// Time until a machine without a usable runner, or an unfit machine, shuts down; `None` if it does not.
    fn until_giving_up(&self) -> Option<(Duration, ShutdownReason)> {
        let mayfly = &self.config.mayfly;
        let without_runner = mayfly.give_up_after.filter(|_| self.servers.is_empty()).map(|after| {
            let since = Duration::from_nanos(sys::boottime().saturating_sub(self.began));
            (after.saturating_sub(since), ShutdownReason::NoRunner)
        });
        let leaves = mayfly.fitness.when_unfit == WhenUnfit::Leave;
        let unfit = self
            .status
            .unfit_for()
            .filter(|_| leaves)
            .map(|unfit_for| (mayfly.fitness.unfit_timeout.saturating_sub(unfit_for), ShutdownReason::Unfit));
        without_runner.into_iter().chain(unfit).min_by_key(|(left, _)| *left)
    }

    /// Replaces this process by the program file on disk. Jobs keep running under their shims, and the new program
    /// resumes them from the journal, as after a crash. The agent waits for requests in flight first, because each may
    /// bring a job.
    fn hand_over(&mut self) -> Option<ExitCode> {
        // The new program would not know about the shutdown.
        if let Some(shutdown) = &self.shutdown {
            log::info!("shutting down; the new program is used by the next start reason={}", shutdown.reason());
            return None;
        }
        log::info!("handing over to the new program on disk running={}", self.slots.jobs());
        self.pollers.stop(&self.slots);
        self.supervisor.reloading();
        loop {
            let waits = self.slots.requests() > 0 || self.rotation.is_running();
            // The new program would not receive the events that have arrived, so they are handled now.
            let event = if waits { self.next_event(None).ok() } else { self.inbox.try_recv().ok() };
            match event {
                Some(Event::Notice(notice)) => self.handle_notice(notice),
                // A stop signal cancels the handover.
                Some(event @ Event::Signal(SignalRequest::Drain | SignalRequest::Stop)) => {
                    return self.handle_event(event);
                }
                None if !waits => break,
                _ => {}
            }
        }
        let program = std::env::current_exe().unwrap_or_default();
        let program = program.display().to_string();
        let program = program.strip_suffix(" (deleted)").unwrap_or(&program).to_owned();
        let mut next = std::process::Command::new(&program);
        next.args(std::env::args_os().skip(1)).envs(self.supervisor.variables());
        let error = sys::exec_holding(next, signals::handled());
        log::error!("cannot start the new program on disk; continuing with this one path={program} error={error}");
        self.supervisor.ready();
        self.reload();
        None
    }
}

/// Creates the GitLab client of a runner. Errors: its URL or certificates are not usable.
pub fn gitlab(config: &Config, runner: &Runner) -> Result<GitLab, String> {
    let shell = runner.shell.as_deref().unwrap_or("bash");
    let info = Info::new(runner.executor, shell, &runner.labels);
    GitLab::new(&runner.url, &runner.tls, info, config.connection_max_age)
        .map_err(|error| format!("runner `{}`: {error}", runner.name))
}

/// The root directories for builds and local caches of a runner on this machine. For containers, `builds_dir` and
/// `cache_dir` are paths inside the container, so other keys give the paths on the machine.
pub fn directories_of(working_directory: &Path, runner: &Runner) -> [PathBuf; 2] {
    let (builds, caches) = match runner.executor.has_containers() {
        true => (&runner.container_builds_dir, &runner.container_cache_dir),
        false => (&runner.builds_dir, &runner.cache_dir),
    };
    let below =
        |given: &Option<PathBuf>, usual: &str| working_directory.join(given.as_deref().unwrap_or(Path::new(usual)));
    [below(builds, "builds"), below(caches, "cache")]
}

/// The absolute working directory. Errors: it does not exist.
pub fn working_directory(given: Option<&Path>) -> Result<PathBuf, String> {
    let given = given.unwrap_or(Path::new("."));
    fs::canonicalize(given).map_err(|error| format!("working directory {}: {error}", given.display()))
}
