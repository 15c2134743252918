//! The agent: polls for jobs, runs and counts jobs, and decides when the instance shuts down.
//!
//! `start` starts the agent, `main_loop` runs it, and each other file has one duty. To follow a job, read `poller`,
//! then `job_manager::intake` and `job_manager::job_thread`, which call [`crate::job::run`]. This module never runs a
//! script or opens a job's files: `job` does that, in other processes.

pub mod advice;
mod awaited_user;
mod configuration;
mod confinement;
mod contexts;
pub mod fitness;
pub mod hand_over;
mod job_manager;
mod lifetime;
mod main_loop;
mod managers;
pub mod metadata_blocking;
mod monitoring;
mod notices;
mod offers;
mod poller;
mod readiness;
mod recovery;
mod reload;
mod restart;
mod rotation;
mod runner_setup;
mod server;
pub mod service_manager;
mod shutdown;
pub mod signals;
mod slots;
mod start;
pub mod start_checks;
pub mod status;
mod termination;
mod validation;
pub mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::lifetime::{IdleTimes, LifetimeBounds};
use crate::config::{self, Config};
use crate::coordinator::manager::ManagedJobs;
use crate::executor::cgroup::CgroupParents;
use crate::executor::docker::names::ContainerOwner;
use crate::executor::docker::removal::ContainerRemovals;
use crate::instance::{Identity, Instance, Notice};
use crate::job::context::RunnerContext;
use crate::job::storage::Storage;
use crate::journal::JobCount;
use crate::sys::BootTime;
use awaited_user::AwaitedUser;
use configuration::RunnerServers;
pub use confinement::confinement;
use hand_over::HandOver;
use job_manager::JobManager;
use lifetime::Lifetime;
use monitoring::Monitoring;
use notices::Availability;
use poller::PollerSet;
use readiness::Readiness;
use recovery::Recovered;
use reload::{ReloadHistory, Unconfigured};
use restart::StartSettings;
use rotation::Rotation;
pub use runner_setup::{directories_of, gitlab, working_directory};
use service_manager::ServiceManager;
use shutdown::Shutdown;
use signals::SignalRequest;
use slots::Slots;
pub use start::run;
use termination::TerminationOutcome;
pub use validation::validate;

/// The stack size of threads that need little stack, in bytes.
pub const STACK: usize = 256 * 1024;

/// How long the agent waits for the removal of containers before it exits.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// An event for the main loop.
pub enum AgentEvent {
    /// The process received a signal.
    Signal(SignalRequest),
    /// The configuration file has changed.
    ConfigurationChanged,
    /// The tokens for a reloaded configuration were fetched, or could not be fetched.
    TokensFetched(reload::FetchedTokens),
    /// GitLab rejected the token of a runner whose token is stored in AWS.
    StoredTokenRejected,
    /// The main loop checks what is due: a request, a job or a token rotation has ended, or a readiness command has
    /// failed.
    Recheck,
    /// The cloud sent a notice for this instance.
    Notice(Notice),
    /// The termination of the instance has ended.
    Terminated(TerminationOutcome),
    /// The readiness commands have succeeded.
    Ready,
    /// The result of the validation by the new program. Errors: why it cannot start.
    NewProgramValidated(Result<(), String>),
    /// A manager requested the shutdown of this agent, for this reason.
    ManagerRequest(String),
}

/// The command line options; they override the configuration.
#[derive(Clone, Debug)]
pub struct AgentOptions {
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

impl AgentOptions {
    /// The limits of the agent's lifetime: the command line overrides the configuration.
    fn bounds(&self, config: &Config) -> LifetimeBounds {
        let configured = config.lifetime.clone();
        LifetimeBounds {
            max_builds: self.max_builds.or(configured.max_builds),
            max_age: self.max_age.or(configured.max_age),
            idle: self.idle_timeout.map_or(configured.idle, |timeout| vec![IdleTimes::always(timeout)]),
            idle_is_of_fleet: self.idle_timeout.is_none() && configured.idle_is_of_fleet,
        }
    }
}

struct Agent {
    options: AgentOptions,
    config: Config,
    /// The settings that the agent reads only when it starts.
    start_settings: StartSettings,
    state_dir: PathBuf,
    system_id: String,
    instance: Arc<dyn Instance>,
    identity: Identity,
    parents: CgroupParents,
    /// Labels that mark the containers of this agent's jobs.
    owner: ContainerOwner,
    removals: ContainerRemovals,
    /// The build directories and images that jobs leave on this machine.
    storage: Arc<Storage>,
    slots: Arc<Slots>,
    jobs: Arc<JobManager>,
    lifetime: Lifetime,
    availability: Availability,
    pollers: Arc<PollerSet>,
    servers: RunnerServers,
    /// The jobs from managers, by the URL of the manager and the id by which it knows this machine.
    managed: Mutex<HashMap<(String, String), Arc<ManagedJobs>>>,
    contexts: Vec<RunnerContext>,
    service_manager: ServiceManager,
    monitoring: Monitoring,
    rotation: Rotation,
    hand_over: HandOver,
    /// Set while the agent has no usable configuration.
    unconfigured: Option<Unconfigured>,
    /// Set while the user of the jobs does not exist and runners wait for it.
    awaited_user: Option<AwaitedUser>,
    /// The jobs of an earlier agent, until the abandoned containers are removed.
    recovered: Option<Recovered>,
    reloads: ReloadHistory,
    events: Sender<AgentEvent>,
    inbox: Receiver<AgentEvent>,
    shutdown: Option<Shutdown>,
    /// The runners that must not poll, with the reasons.
    status: Arc<fitness::FitnessStatus>,
    readiness: Readiness,
    /// When this agent started.
    began: BootTime,
    /// Whether this agent, or perhaps an earlier one, has polled.
    has_polled: bool,
}

impl Agent {
    fn new(
        instance: Arc<dyn Instance>,
        options: AgentOptions,
        config: &Config,
        state: PathBuf,
        service_manager: ServiceManager,
        (events, inbox): (Sender<AgentEvent>, Receiver<AgentEvent>),
    ) -> Self {
        let identity = instance.identity();
        let count = JobCount::load(&state, &identity);
        let slots = Slots::new(config.concurrent, options.bounds(config).max_builds, count.jobs);
        let system_id = config::system_id::load(&options.config, instance.cloud_id().as_deref());
        let status = Arc::<fitness::FitnessStatus>::default();
        Self {
            monitoring: Monitoring::new(Arc::clone(&slots), &system_id, Arc::clone(&status)),
            status,
            readiness: Readiness::Unknown,
            began: BootTime::now(),
            slots,
            has_polled: count.jobs > 0,
            lifetime: Lifetime::new(options.bounds(config), count.began),
            jobs: JobManager::new(state.clone(), Arc::clone(&instance), count, events.clone()),
            system_id,
            parents: CgroupParents::find(),
            owner: container_owner(&identity, &state),
            removals: ContainerRemovals::default(),
            storage: Storage::load(&state),
            pollers: Arc::default(),
            availability: Availability::Available,
            servers: Vec::new(),
            managed: Mutex::default(),
            contexts: Vec::new(),
            service_manager,
            rotation: Rotation::default(),
            hand_over: HandOver::default(),
            unconfigured: None,
            awaited_user: None,
            recovered: None,
            reloads: ReloadHistory::default(),
            start_settings: StartSettings::new(config, &state),
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
}

/// The labels of the containers of this process.
fn container_owner(identity: &Identity, state: &Path) -> ContainerOwner {
    ContainerOwner {
        instance: identity.instance.clone(),
        state: state.display().to_string(),
        agent_run: format!("{}-{:x}", std::process::id(), BootTime::now().as_nanos()),
    }
}
