//! The process of the manager: start, signals, end. [`drain`] ends the work; [`reload`] applies a changed
//! configuration; [`hand_over`] replaces the program.
//!
//! SIGTERM drains for `shutdown_timeout`, SIGQUIT without a limit: held jobs are handed to agents, and the remaining
//! ones fail at GitLab, where they can be retried. SIGHUP reloads. SIGUSR2 replaces the process by the program file on
//! disk; the socket for agents stays open. None of these affects running jobs.

mod drain;
mod hand_over;
mod reload;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::api::Api;
use super::broker::{Broker, BrokerContext, JobLimit};
use super::engine::{self, Engine};
use super::findings;
use super::held::{HeldJobs, RecordedJob};
use super::pool::PoolSettings;
use super::scaling::scaler::Scaler;
use super::server::{HttpServer, certificate};
use super::settings::{self, Settings};
use super::status::{self, StatusBoard};
use super::store::Store;
use super::store::records::StoreEvent;
use crate::agent::service_manager::ServiceManager;
use crate::agent::signals::{self, SignalRequest, StartPhase};
use crate::agent::start_checks;
use crate::agent::{gitlab, watch};
use crate::config::{self, Config, LoadedConfig, Role};
use crate::coordinator::gitlab::GitLab;
use crate::instance::aws::secrets;
use crate::monitor::address::bind;
use crate::monitor::listener::Listener;
use crate::sync;
use crate::sys;

/// The time limit for a poll in flight. The manager never abandons a poll, because its response may contain a job.
const POLL_TIMEOUT: Duration = Duration::from_secs(90);
/// The time limit for a request about a job that the manager holds or fails. At a GitLab with `two_phase_job_commit` a
/// job without a sign of life dies after two minutes, and it must survive several such requests.
const JOB_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The stack of threads that send requests to GitLab and to the cloud.
const STACK: usize = 512 * 1024;
/// The variable with the descriptor of the socket that the previous program kept open.
const LISTENER_VARIABLE: &str = "MAYFLY_MANAGER_SOCKET";

/// The options of the command line.
#[derive(Clone, Debug)]
pub struct ManagerOptions {
    /// The configuration.
    pub config: PathBuf,
    /// The address for status and metrics, instead of the configuration's `listen_address`.
    pub listen_address: Option<String>,
}

/// An event for the main loop.
enum Event {
    Signal(SignalRequest),
    ConfigurationChanged,
    /// GitLab rejected a runner's token.
    TokenRejected,
    /// The configuration was read again after a rejected token.
    TokensFetched(Box<Result<Settings, String>>),
    /// A pool that is no longer configured is empty.
    PoolEmptied(String),
    Drained,
}

/// Runs until a signal stops the manager. Errors: the manager cannot start; why, and what to do.
pub fn run(options: ManagerOptions, mut loaded: LoadedConfig) -> Result<ExitCode, String> {
    let mut service_manager = ServiceManager::from_environment();
    let inherited = sys::take_variable(LISTENER_VARIABLE).and_then(|number| number.to_str()?.parse().ok());
    raise_descriptor_limit();
    let (events, inbox) = mpsc::channel();
    let (on_signal, on_change) = (events.clone(), events.clone());
    let start = StartPhase::begin(service_manager.exit_notifier());
    if inherited.is_some() {
        // The manager continues after a hand-over, and may hold jobs.
        start.end();
    }
    signals::listen(&start, move |request| on_signal.send(Event::Signal(request)).is_ok())
        .map_err(|error| format!("signals cannot be handled: {error}"))?;
    watch::watch(&options.config, move || on_change.send(Event::ConfigurationChanged).is_ok());
    secrets::fetch_tokens(&mut loaded.config, secrets::FETCH_TIMEOUT)?;
    loaded.log();
    let settings = settings::read(loaded.config)?;
    start.end();
    let mut manager = Manager::start(options, settings, inherited, events)?;
    service_manager.ready();
    Ok(manager.run_loop(&mut service_manager, &inbox))
}

/// Checks whether a manager can start with this configuration. Does not check the lock of the state directory and the
/// addresses, because the running manager uses them. Errors: why it cannot start.
pub fn validate(options: &ManagerOptions, mut loaded: LoadedConfig) -> Result<(), String> {
    secrets::fetch_tokens(&mut loaded.config, secrets::FETCH_TIMEOUT)?;
    let settings = settings::read(loaded.config)?;
    let state = config::manager_state_dir(&settings.config, &settings.manager);
    start_checks::check_state_dir(&state, "[mayfly.manager]").map_err(|why| format!("the state directory {why}"))?;
    start_checks::check_listener(options.listen_address.as_deref(), &settings.config, &state)?;
    load_tls_config(&settings.manager).map(drop)
}

struct Manager {
    options: ManagerOptions,
    /// The directory of the durable state. It stays the same until the process ends.
    state_dir: PathBuf,
    config: Config,
    api: Arc<Api>,
    server: HttpServer,
    shared: BrokerContext,
    board: Arc<StatusBoard>,
    pools: Arc<Mutex<Vec<Pool>>>,
    /// Pools that are no longer configured, until their jobs have ended and their instances are gone.
    retired: Vec<Pool>,
    status: Option<Listener>,
    events: Sender<Event>,
    /// The last time that stored tokens were fetched because GitLab rejected one.
    tokens_fetched: Option<Instant>,
}

#[derive(Clone)]
struct Pool {
    settings: Arc<PoolSettings>,
    broker: Arc<Broker>,
    engine: Arc<dyn Engine>,
    scaler: Arc<Scaler>,
}

impl Manager {
    /// Starts everything. Errors: the state, a socket, or a certificate cannot be used.
    fn start(
        options: ManagerOptions,
        settings: Settings,
        inherited: Option<i32>,
        events: Sender<Event>,
    ) -> Result<Self, String> {
        let Settings { manager, config, pools, refused, named } = settings;
        for problem in &refused {
            log::error!("problem in the configuration path={} problem={problem}", config.path.display());
        }
        let state = config::manager_state_dir(&config, &manager);
        let store = Arc::new(Store::open(&state)?);
        let api = Api::new(&manager.agent_token);
        let server = start_server(&manager, inherited, &api)?;
        let address = server.listener().local_addr().map_or(manager.listen, |address| address.to_string());
        let is_encrypted = manager.certificate.is_some();
        let (held, recorded) = HeldJobs::open(&options.config);
        let shared = BrokerContext {
            system_id: config::system_id::load_for_manager(&options.config, &state),
            store,
            job_limit: JobLimit::new(config.concurrent),
            responder: server.responder(),
            board: Arc::new(StatusBoard::new()),
            held: Arc::new(held),
            on_rejected: rejection_sender(&events),
        };
        let board = Arc::clone(&shared.board);
        let pool_count = pools.len();
        let mut this = Self {
            options,
            state_dir: state,
            config,
            api,
            server,
            shared,
            board,
            pools: Arc::default(),
            retired: Vec::new(),
            status: None,
            events,
            tokens_fetched: None,
        };
        this.start_pools(pools, &named, &recorded);
        this.serve_status()?;
        log::info!(
            "mayfly manager is up version={} pools={pool_count} listen={address} tls={is_encrypted} system_id={}",
            env!("CARGO_PKG_VERSION"),
            this.shared.system_id
        );
        Ok(this)
    }

    /// Starts the pools with the records of an earlier manager. `named` are the names of all pools in the file.
    fn start_pools(&self, pools: Vec<PoolSettings>, named: &[String], recorded: &[RecordedJob]) {
        self.remove_records_of_removed_pools(named);
        for pool in pools {
            self.start_pool(pool);
        }
        self.publish_pools();
        self.fail_forgotten(recorded);
    }

    /// Fails the jobs that an earlier manager held and that the state directory no longer contains.
    fn fail_forgotten(&self, recorded: &[RecordedJob]) {
        let pools = self.pools();
        for job in recorded {
            if let Some(pool) = pools.iter().find(|pool| pool.settings.name == job.pool) {
                pool.broker.fail_forgotten(&job.id, &job.sealed_token);
            }
        }
    }

    /// Removes the records of pools that the file no longer contains. Their agents register with another pool or shut
    /// down.
    fn remove_records_of_removed_pools(&self, named: &[String]) {
        let records = self.shared.store.records();
        let is_gone = |pool: &String| !named.contains(pool);
        let agents = records.agents.keys().filter(|(pool, _)| is_gone(pool));
        let agents =
            agents.map(|(pool, instance)| StoreEvent::AgentGone { pool: pool.clone(), instance: instance.clone() });
        let jobs = records.jobs.iter().filter(|((pool, _), _)| is_gone(pool)).map(|((pool, id), job)| {
            if job.accepted.is_none() {
                log::error!(
                    "the pool of a held job is no longer configured; GitLab fails the job later pool={pool} job={id}"
                );
            }
            StoreEvent::JobGone { pool: pool.clone(), id: id.clone() }
        });
        for change in agents.chain(jobs) {
            if let Err(error) = self.shared.store.write(change) {
                log::error!("cannot write the manager's state error={error}");
            }
        }
    }

    fn pools(&self) -> std::sync::MutexGuard<'_, Vec<Pool>> {
        sync::lock(&self.pools)
    }

    /// Starts a pool; one that cannot be started is logged, and the others run.
    fn start_pool(&self, settings: PoolSettings) {
        let name = settings.name.clone();
        if let Err(why) = self.try_start_pool(settings) {
            log::error!("cannot start the pool pool={name} error={why}");
        }
    }

    fn try_start_pool(&self, settings: PoolSettings) -> Result<(), String> {
        let gitlab = self.gitlab(&settings)?;
        let engine = engine::for_pool(&settings.engine, &settings.name);
        let settings = Arc::new(settings);
        let records = self.shared.store.records();
        let broker = Broker::new(Arc::clone(&settings), gitlab, &self.shared, &records);
        broker.start().map_err(|error| format!("no more threads: {error}"))?;
        let (workload, board) = (broker.workload(), Arc::clone(&self.board));
        let scaler = Scaler::start((*settings).clone(), workload, Arc::clone(&engine), board)?;
        findings::log_faults_of_group(&settings, &engine);
        self.pools().push(Pool { settings, broker, engine, scaler: Arc::new(scaler) });
        Ok(())
    }

    fn gitlab(&self, settings: &PoolSettings) -> Result<Arc<GitLab>, String> {
        let gitlab = gitlab(&self.config, &settings.runner)?;
        Ok(Arc::new(gitlab.with_job_timeout(JOB_REQUEST_TIMEOUT)))
    }

    /// Gives the API the current pools.
    fn publish_pools(&self) {
        let current = self.pools().iter().map(|pool| Arc::clone(&pool.broker)).collect::<Vec<_>>();
        let retired = self.retired.iter().filter(|pool| !pool.broker.is_released());
        let retired = retired.map(|pool| Arc::clone(&pool.broker));
        self.api.set_brokers(current.into_iter().chain(retired).collect());
    }

    /// Serves the status page and metrics, if configured. Errors: the address cannot be used.
    fn serve_status(&mut self) -> Result<(), String> {
        let address = self.options.listen_address.as_ref().or(self.config.listen_address.as_ref());
        let Some(address) = address.filter(|address| !address.is_empty()) else {
            self.status = None;
            return Ok(());
        };
        let pools = Arc::clone(&self.pools);
        let workloads = move || {
            let pools = sync::lock(&pools);
            pools.iter().map(|pool| (pool.settings.name.clone(), pool.broker.workload())).collect()
        };
        let pages = status::pages(Arc::clone(&self.board), workloads);
        match &mut self.status {
            Some(current) if current.address() == address => {}
            Some(current) => current.move_to(address, pages)?,
            None => self.status = Some(Listener::start(address, pages)?),
        }
        Ok(())
    }

    fn run_loop(&mut self, service_manager: &mut ServiceManager, inbox: &Receiver<Event>) -> ExitCode {
        let mut draining = false;
        loop {
            let event = match service_manager.ping_watchdog() {
                Some(timeout) => inbox.recv_timeout(timeout),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Signal(SignalRequest::Stop)) if draining => {
                    log::warn!("second stop signal received; exiting now, held jobs stay in the state directory");
                    // If this function returned, the manager would wait for the requests of agents and for calls to the
                    // cloud.
                    std::process::exit(1);
                }
                Ok(Event::Signal(request @ (SignalRequest::Stop | SignalRequest::Drain))) => {
                    draining = true;
                    service_manager.status("draining");
                    let limit = (request == SignalRequest::Stop).then_some(self.config.shutdown_timeout);
                    self.start_drain(limit);
                }
                Ok(Event::Drained) => {
                    service_manager.stopping();
                    log::info!("mayfly manager exits");
                    return ExitCode::SUCCESS;
                }
                Ok(Event::Signal(SignalRequest::Reload) | Event::ConfigurationChanged) if !draining => {
                    service_manager.reloading();
                    self.reload();
                    service_manager.ready();
                }
                Ok(Event::Signal(SignalRequest::HandOver)) if !draining => {
                    service_manager.reloading();
                    self.hand_over(service_manager);
                    service_manager.ready();
                }
                Ok(Event::TokenRejected) if !draining => self.fetch_tokens(),
                Ok(Event::TokensFetched(read)) if !draining => self.apply_fetched_tokens(*read),
                Ok(Event::PoolEmptied(pool)) => self.forget_pool(&pool),
                Ok(Event::Signal(_) | Event::ConfigurationChanged) => {
                    log::info!("already draining; the signal has no effect")
                }
                Ok(Event::TokenRejected | Event::TokensFetched(_)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }
}

/// The configuration of a manager with its tokens. Errors: it cannot be used.
fn read_settings(path: &Path) -> Result<Settings, String> {
    let mut loaded = Config::load_as(path, Role::Manager).map_err(|error| error.to_string())?;
    secrets::fetch_tokens(&mut loaded.config, secrets::FETCH_TIMEOUT)?;
    loaded.log();
    settings::read(loaded.config)
}

/// A function that reports a rejected token to the main loop.
fn rejection_sender(events: &Sender<Event>) -> Arc<dyn Fn() + Send + Sync> {
    let events = Mutex::new(events.clone());
    Arc::new(move || drop(sync::lock(&events).send(Event::TokenRejected)))
}

fn load_tls_config(manager: &config::manager::Manager) -> Result<Option<Arc<rustls::ServerConfig>>, String> {
    let load = |(certificate, key): &(PathBuf, PathBuf)| {
        certificate::load(certificate, key).map_err(|why| format!("[mayfly.manager]: {why}"))
    };
    manager.certificate.as_ref().map(load).transpose()
}

/// Serves the API to agents. Errors: the certificate or the address cannot be used.
fn start_server(
    manager: &config::manager::Manager,
    inherited: Option<i32>,
    api: &Arc<Api>,
) -> Result<HttpServer, String> {
    let tls = load_tls_config(manager)?;
    let listener = listen(&manager.listen, inherited)?;
    let handler = Arc::downgrade(api);
    HttpServer::start(listener, tls, handler).map_err(|error| format!("agents cannot be served: {error}"))
}

/// The socket for agents: the one that the previous program kept open, or a new one. Errors: the address cannot be
/// used.
fn listen(address: &str, inherited: Option<i32>) -> Result<TcpListener, String> {
    let kept = inherited.and_then(|number| sys::inherited_listener(number).ok());
    match kept {
        Some(listener) => Ok(listener),
        None => bind(address).map_err(|error| format!("`listen = \"{address}\"` below [mayfly.manager]: {error}")),
    }
}

/// Raises the limit of descriptors, because each agent has a connection.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(hard) => log::debug!("file descriptors limit={hard}"),
        Err(error) => log::warn!("cannot raise the limit of file descriptors error={error}"),
    }
}
