//! Serves `/metrics`, `/healthz` and `/status` at `listen_address`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::fitness;
use super::slots::Slots;
use super::status::{AgentStatus, RunningJob};
use super::termination::ShutdownTracker;
use crate::config::Config;
use crate::config::lifetime::LifetimeBounds;
use crate::monitor::listener::{Listener, PageResponse, Pages};
use crate::monitor::machine;
use crate::monitor::metrics::{self, RunnerLabels};
use crate::monitor::text::{CONTENT_TYPE, MetricKind, Page};
use crate::monitor::write_process;
use crate::sync;
use crate::sys::BootTime;
use crate::version::VERSION;

/// Interval of the main loop while the listener runs.
const MAX_LOOP_INTERVAL: Duration = Duration::from_secs(15);
/// If the main loop has not run for this time, `/healthz` reports that it hangs.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// The phase of the agent.
#[derive(Default)]
pub enum AgentPhase {
    /// The agent takes jobs.
    #[default]
    Working,
    /// The instance is in standby, or its target lifecycle state is not known yet.
    Paused,
    /// The agent has no usable configuration, and finishes the jobs of an earlier agent.
    Unconfigured,
    /// The agent drains after a signal.
    Stopping,
    /// The instance shuts down.
    ShuttingDown(Arc<ShutdownTracker>),
}

/// The values of the metric `mayfly_phase`.
const PHASES: [&str; 9] = [
    "working",
    "paused",
    "unconfigured",
    "draining",
    "unregistering",
    "terminating",
    "powering_off",
    "shut_down",
    "shutdown_failed",
];

impl AgentPhase {
    /// The value of the label `phase`, one of [`PHASES`].
    fn name(&self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Paused => "paused",
            Self::Unconfigured => "unconfigured",
            Self::Stopping => "draining",
            Self::ShuttingDown(tracker) => tracker.state().phase.as_str(),
        }
    }

    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Working | Self::Paused => None,
            Self::Unconfigured => Some("no usable configuration"),
            Self::Stopping => Some("signal"),
            Self::ShuttingDown(tracker) => Some(tracker.state().reason.as_str()),
        }
    }
}

/// The monitoring of the agent.
pub struct Monitoring {
    pages: Arc<MonitoringPages>,
    listener: Option<Listener>,
}

/// The state that the pages show.
struct MonitoringPages {
    slots: Arc<Slots>,
    fitness: Arc<fitness::FitnessStatus>,
    system_id: String,
    /// When the main loop last ran; see [`BootTime::as_nanos`].
    last_loop: AtomicU64,
    state: Mutex<AgentState>,
}

#[derive(Default)]
struct AgentState {
    phase: AgentPhase,
    concurrent: u32,
    /// The limits of the agent's lifetime.
    bounds: LifetimeBounds,
    runners: Vec<(RunnerLabels, Option<u32>)>,
    /// The state, build and cache directories, by purpose.
    directories: BTreeSet<(&'static str, PathBuf)>,
    loaded: u64,
    rejected: u64,
    /// Whether the configuration that the agent read last is in use, and since when (Unix time).
    current: bool,
    loaded_at: i64,
}

impl Monitoring {
    /// Monitoring without a listener.
    pub fn new(slots: Arc<Slots>, system_id: &str, fitness: Arc<fitness::FitnessStatus>) -> Self {
        let last_loop = AtomicU64::new(BootTime::now().as_nanos());
        let pages =
            MonitoringPages { slots, fitness, system_id: system_id.to_owned(), last_loop, state: Mutex::default() };
        Self { pages: Arc::new(pages), listener: None }
    }

    /// Listens at `address`, or stops listening. Errors: the address is not available; the old listener stays.
    pub fn listen(&mut self, address: Option<&str>) -> Result<(), String> {
        let Some(address) = address else {
            self.listener = None;
            return Ok(());
        };
        let pages = self.page_handler();
        match &mut self.listener {
            Some(current) if current.address() == address => return Ok(()),
            Some(current) => current.move_to(address, pages)?,
            None => self.listener = Some(Listener::start(address, pages)?),
        }
        log::info!("serving metrics address={address}");
        Ok(())
    }

    fn page_handler(&self) -> Pages {
        let pages = Arc::clone(&self.pages);
        Arc::new(move |path| match path {
            "/metrics" => Some(PageResponse { status: 200, content_type: CONTENT_TYPE, body: pages.metrics() }),
            "/healthz" => Some(pages.health()),
            "/status" => {
                let body = serde_json::to_string(&pages.status()).unwrap_or_default();
                Some(PageResponse { status: 200, content_type: "application/json", body })
            }
            _ => None,
        })
    }

    /// Records that the main loop runs. Returns the time until the next run; `None` without a listener.
    pub fn record_loop(&self) -> Option<Duration> {
        self.pages.last_loop.store(BootTime::now().as_nanos(), Ordering::Relaxed);
        self.listener.as_ref().map(|_| MAX_LOOP_INTERVAL)
    }

    /// Records a configuration that is in use now, and its directories.
    pub fn record_configuration(&self, config: &Config, directories: BTreeSet<(&'static str, PathBuf)>) {
        let mut state = self.pages.state();
        state.bounds = config.lifetime.clone();
        state.directories = directories;
        state.concurrent = config.concurrent;
        state.runners = config.runners.iter().map(|runner| (RunnerLabels::from(runner), runner.limit)).collect();
        state.runners.iter().for_each(|(runner_labels, _)| metrics::set_paused(runner_labels, false));
        state.loaded += 1;
        state.current = true;
        state.loaded_at = jiff::Timestamp::now().as_second();
    }

    /// Records a configuration that cannot be used.
    pub fn record_rejected_configuration(&self) {
        let mut state = self.pages.state();
        state.rejected += 1;
        state.current = false;
    }

    pub fn set_phase(&self, phase: AgentPhase) {
        self.pages.state().phase = phase;
    }
}

impl MonitoringPages {
    fn state(&self) -> MutexGuard<'_, AgentState> {
        sync::lock(&self.state)
    }

    fn since_last_loop(&self) -> Duration {
        BootTime::from_nanos(self.last_loop.load(Ordering::Relaxed)).elapsed()
    }

    /// 200 while the agent works; otherwise 503 with the reason.
    fn health(&self) -> PageResponse {
        let since = self.since_last_loop();
        let state = self.state();
        let refused = !state.runners.is_empty()
            && state.runners.iter().all(|(runner_labels, _)| metrics::is_paused(runner_labels));
        if since > HANG_TIMEOUT {
            PageResponse::text(503, format!("the main loop hangs for {} seconds\n", since.as_secs()))
        } else if let Some(reason) = state.phase.reason() {
            PageResponse::text(503, format!("{} ({reason}), jobs left: {}\n", state.phase.name(), self.slots.jobs()))
        } else if let Some((runner, unfit)) = self.fitness.reasons().into_iter().next() {
            let runner = runner.map(|name| format!(" runner={name}")).unwrap_or_default();
            PageResponse::text(503, format!("unfit reason={}{runner}: {unfit}\n", unfit.reason()))
        } else if refused {
            PageResponse::text(503, "GitLab rejects every runner; check their tokens with `mayfly verify`\n")
        } else {
            PageResponse::text(200, format!("{}\n", state.phase.name()))
        }
    }

    fn status(&self) -> AgentStatus {
        let state = self.state();
        let now = jiff::Timestamp::now();
        let (idle, timeout) = (self.slots.idle_for(), state.bounds.idle_timeout(now));
        let unfit = |(runner, unfit): (Option<String>, fitness::Unfit)| match runner {
            Some(runner) => format!("{runner}: {unfit}"),
            None => unfit.to_string(),
        };
        let job = |job: metrics::JobProgress| RunningJob {
            id: job.job,
            runner: job.runner,
            seconds: job.seconds as u64,
            stage: job.stage.map(|(stage, _)| stage.to_owned()).unwrap_or_default(),
            stage_seconds: job.stage.map_or(0, |(_, seconds)| seconds as u64),
        };
        AgentStatus {
            kind: "agent".to_owned(),
            version: VERSION.to_owned(),
            system_id: self.system_id.clone(),
            phase: state.phase.name().to_owned(),
            reason: state.phase.reason().map(str::to_owned),
            unfit: self.fitness.reasons().into_iter().map(unfit).collect(),
            concurrent: state.concurrent,
            builds_left: self.slots.builds_left(),
            idle_seconds: idle.map(|idle| idle.as_secs()),
            idle_timeout_seconds: timeout.map(|timeout| timeout.as_secs()),
            idle_left_seconds: idle.zip(timeout).map(|(idle, timeout)| timeout.saturating_sub(idle).as_secs()),
            policies: state.bounds.policies(now),
            jobs: metrics::running_jobs().into_iter().map(job).collect(),
        }
    }

    fn metrics(&self) -> String {
        let mut page = Page::default();
        let state = self.state();
        page.version();
        self.write_agent(&mut page, &state);
        write_configuration(&mut page, &state, &self.system_id);
        let runners: Vec<RunnerLabels> = state.runners.iter().map(|(runner_labels, _)| runner_labels.clone()).collect();
        let directories = state.directories.clone();
        drop(state);
        machine::write_space(&mut page, directories.iter().map(|(purpose, path)| (*purpose, path.as_path())));
        machine::write(&mut page);
        metrics::write(&mut page, &self.system_id, runners.into_iter());
        write_process(&mut page);
        page.finish()
    }

    fn write_agent(&self, page: &mut Page, state: &AgentState) {
        let mut phases = page.metric(
            "mayfly_phase",
            MetricKind::Gauge,
            "The phase of the agent: 1 for the current phase, 0 for the others.",
        );
        for phase in PHASES {
            phases.sample(&[("phase", phase)], f64::from(u8::from(phase == state.phase.name())));
        }
        let mut unfit = page.metric(
            "mayfly_runner_unfit",
            MetricKind::Gauge,
            "1 for a runner that the agent does not poll for, with the reason.",
        );
        for (runner, reason) in self.fitness.reasons() {
            unfit.sample(&[("runner_name", runner.as_deref().unwrap_or("")), ("reason", reason.reason())], 1.0);
        }
        let idle = self.slots.idle_for().unwrap_or_default().as_secs_f64();
        page.single(
            "mayfly_idle_seconds",
            MetricKind::Gauge,
            "Seconds since the last job ended; 0 while a job runs.",
            idle,
        );
        if let Some(left) = self.slots.builds_left() {
            page.single(
                "mayfly_builds_left",
                MetricKind::Gauge,
                "Jobs that the agent may still take before it shuts down.",
                f64::from(left),
            );
        }
        let since = self.since_last_loop().as_secs_f64();
        page.single(
            "mayfly_main_loop_age_seconds",
            MetricKind::Gauge,
            "Seconds since the last iteration of the main loop.",
            since,
        );
    }
}

fn write_configuration(page: &mut Page, state: &AgentState, system_id: &str) {
    let concurrent = f64::from(state.concurrent);
    page.single("gitlab_runner_concurrent", MetricKind::Gauge, "The value of `concurrent`.", concurrent);
    let mut limits = page.metric("gitlab_runner_limit", MetricKind::Gauge, "The value of `limit`; 0 for none.");
    for (runner_labels, limit) in &state.runners {
        let labels =
            [("runner", runner_labels.token.as_str()), ("runner_name", &runner_labels.name), ("system_id", system_id)];
        limits.sample(&labels, f64::from(limit.unwrap_or(0)));
    }
    for (name, help, value) in [
        ("gitlab_runner_configuration_loaded_total", "Configurations that were applied.", state.loaded),
        ("gitlab_runner_configuration_loading_error_total", "Configurations that were rejected.", state.rejected),
    ] {
        page.single(name, MetricKind::Counter, help, value as f64);
    }
    let help = "1 while the last configuration that was read is in force.";
    page.single("mayfly_configuration_current", MetricKind::Gauge, help, f64::from(u8::from(state.current)));
    let help = "Time at which the current configuration was applied, in seconds since the epoch.";
    page.single("mayfly_configuration_loaded_timestamp_seconds", MetricKind::Gauge, help, state.loaded_at as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Identity;
    use crate::journal::shutdown::{ShutdownReason, ShutdownState};
    use crate::token::Token;

    fn monitoring(token: &str) -> Monitoring {
        let monitoring = Monitoring::new(Slots::new(2, Some(3), 1), "s_1", Arc::default());
        let runner =
            format!("[[runners]]\nname = \"r\"\nurl = \"http://h\"\ntoken = \"{token}\"\nexecutor = \"shell\"\n");
        let config = Config::parse(std::path::Path::new("config.toml"), &runner).expect("a configuration");
        monitoring.record_loop();
        monitoring.record_configuration(&config, BTreeSet::from([("state", PathBuf::from("/"))]));
        monitoring
    }

    #[test]
    fn health_names_the_reason_without_polling() {
        let monitoring = monitoring("health");
        assert_eq!(monitoring.pages.health(), PageResponse::text(200, "working\n"));
        let runner_labels = RunnerLabels { token: Token::new("health").short(), name: "r".to_owned() };
        metrics::set_paused(&runner_labels, true);
        assert!(monitoring.pages.health().body.contains("GitLab rejects every runner"));
        metrics::set_paused(&runner_labels, false);
        monitoring.set_phase(AgentPhase::Stopping);
        assert_eq!(monitoring.pages.health(), PageResponse::text(503, "draining (signal), jobs left: 0\n"));
        let state = tempfile::tempdir().expect("a directory");
        let identity = Identity { instance: "i".to_owned(), boot: "b".to_owned() };
        let tracker =
            Arc::new(ShutdownTracker::begin(state.path(), ShutdownState::new(&identity, ShutdownReason::Idle)));
        monitoring.set_phase(AgentPhase::ShuttingDown(tracker));
        assert_eq!(monitoring.pages.health(), PageResponse::text(503, "draining (idle_timeout), jobs left: 0\n"));
        let long_ago = BootTime::now().as_nanos().saturating_sub(HANG_TIMEOUT.as_nanos() as u64 * 2).max(1);
        monitoring.pages.last_loop.store(long_ago, Ordering::Relaxed);
        let hangs = BootTime::now().as_nanos() - long_ago > HANG_TIMEOUT.as_nanos() as u64;
        assert_eq!(monitoring.pages.health().body.contains("main loop hangs"), hangs);
    }

    #[test]
    fn metrics_show_configuration_and_phase() {
        let monitoring = monitoring("metrics");
        monitoring.record_rejected_configuration();
        let text = monitoring.pages.metrics();
        for line in [
            "mayfly_phase{phase=\"working\"} 1",
            "mayfly_builds_left 2",
            "gitlab_runner_concurrent 1",
            "gitlab_runner_configuration_loaded_total 1",
            "gitlab_runner_configuration_loading_error_total 1",
            "mayfly_configuration_current 0",
            "gitlab_runner_limit{runner=\"metrics\",runner_name=\"r\",system_id=\"s_1\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }
}
