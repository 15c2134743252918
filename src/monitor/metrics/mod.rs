//! Metrics of polls, jobs, stages, requests and logs. This file counts; `page` writes the counts.

mod page;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

pub use self::page::write;
use super::text::Histogram;
use crate::job_id::JobId;
use crate::sync;
use crate::sys::BootTime;

/// Histogram bounds for jobs, in seconds.
const JOB_BUCKETS: &[f64] = &[30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 10800.0, 18000.0, 36000.0];
/// Histogram bounds for stages and queue times, in seconds.
const STAGE_BUCKETS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0];
/// Histogram bounds for the agent's own part of the start of a job, in seconds.
const START_BUCKETS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The labels of a runner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunnerLabels {
    /// The short form of its token.
    pub token: String,
    pub name: String,
}

/// The result of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollResult {
    Job,
    /// No job was available.
    Nothing,
    /// No usable response.
    Failed,
    /// The token, the URL or the certificates are invalid.
    Refused,
}

const POLLS: [(PollResult, &str); 4] = [
    (PollResult::Job, "job"),
    (PollResult::Nothing, "nothing"),
    (PollResult::Failed, "failed"),
    (PollResult::Refused, "refused"),
];

/// The numbers of log lines at these levels.
static ERRORS: AtomicU64 = AtomicU64::new(0);
static WARNINGS: AtomicU64 = AtomicU64::new(0);
/// Bytes of job logs that servers accepted.
static TRACE_BYTES: AtomicU64 = AtomicU64::new(0);

static METRICS: Mutex<Metrics> =
    Mutex::new(Metrics { runners: BTreeMap::new(), running: BTreeMap::new(), calls: BTreeMap::new() });

struct Metrics {
    runners: BTreeMap<RunnerLabels, RunnerMetrics>,
    /// By runner and job id: two servers may use the same id.
    running: BTreeMap<(RunnerLabels, String), RunningJob>,
    /// By endpoint and status.
    calls: BTreeMap<(&'static str, u16), u64>,
}

struct RunnerMetrics {
    taken: u64,
    polls: [u64; POLLS.len()],
    /// By `success`, `dropped`, or the failure reason.
    results: BTreeMap<&'static str, u64>,
    durations: Histogram,
    queued: Histogram,
    starts: Histogram,
    stages: BTreeMap<&'static str, Histogram>,
    /// Whether polling is paused after rejections.
    paused: bool,
}

struct RunningJob {
    /// When the job was received.
    began: BootTime,
    /// The current stage, and when it began.
    stage: Option<(&'static str, BootTime)>,
    /// Whether an earlier agent received the job.
    resumed: bool,
}

impl Default for RunnerMetrics {
    fn default() -> Self {
        Self {
            taken: 0,
            polls: [0; POLLS.len()],
            results: BTreeMap::new(),
            durations: Histogram::new(JOB_BUCKETS),
            queued: Histogram::new(STAGE_BUCKETS),
            starts: Histogram::new(START_BUCKETS),
            stages: BTreeMap::new(),
            paused: false,
        }
    }
}

fn lock() -> MutexGuard<'static, Metrics> {
    sync::lock(&METRICS)
}

impl Metrics {
    fn runner(&mut self, runner_labels: &RunnerLabels) -> &mut RunnerMetrics {
        if !self.runners.contains_key(runner_labels) {
            self.runners.insert(runner_labels.clone(), RunnerMetrics::default());
        }
        self.runners.entry(runner_labels.clone()).or_default()
    }
}

/// Counts an error in the log.
pub fn error_logged() {
    ERRORS.fetch_add(1, Ordering::Relaxed);
}

/// Counts a warning in the log.
pub fn warning_logged() {
    WARNINGS.fetch_add(1, Ordering::Relaxed);
}

/// Counts bytes of a job's log that a server accepted.
pub fn trace_sent(bytes: usize) {
    TRACE_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Counts a request to a server; `None` if there was no response.
pub fn called(endpoint: &'static str, status: Option<u16>) {
    *lock().calls.entry((endpoint, status.unwrap_or(0))).or_default() += 1;
}

/// Counts a poll.
pub fn polled(runner_labels: &RunnerLabels, poll: PollResult) {
    if let Some(at) = POLLS.iter().position(|(kind, _)| *kind == poll) {
        lock().runner(runner_labels).polls[at] += 1;
    }
}

/// Sets whether polling of a runner is paused after rejections.
pub fn set_paused(runner_labels: &RunnerLabels, paused: bool) {
    lock().runner(runner_labels).paused = paused;
}

/// Whether polling of a runner is paused after rejections.
pub fn is_paused(runner_labels: &RunnerLabels) -> bool {
    lock().runners.get(runner_labels).is_some_and(|metrics| metrics.paused)
}

/// Records a received job, which was queued for `queued` seconds, if the server sends that number.
pub fn job_received(runner_labels: &RunnerLabels, job: &JobId, queued: Option<f64>) {
    let mut metrics = lock();
    let runner_metrics = metrics.runner(runner_labels);
    runner_metrics.taken += 1;
    if let Some(queued) = queued {
        runner_metrics.queued.observe(queued);
    }
    metrics.running.insert(
        (runner_labels.clone(), job.to_string()),
        RunningJob { began: BootTime::now(), stage: None, resumed: false },
    );
}

/// Records a resumed job, which an earlier agent received at `began`.
pub fn job_resumed(runner_labels: &RunnerLabels, job: &JobId, began: BootTime) {
    lock().running.insert((runner_labels.clone(), job.to_string()), RunningJob { began, stage: None, resumed: true });
}

/// The stage of a running job; `None` before its first.
pub fn stage_of(job: &str) -> Option<&'static str> {
    let metrics = lock();
    metrics.running.iter().find(|((_, known), _)| known == job).and_then(|(_, running)| Some(running.stage?.0))
}

/// Records the start of a stage.
pub fn stage_began(runner_labels: &RunnerLabels, job: &JobId, stage: &'static str) {
    let now = BootTime::now();
    let mut metrics = lock();
    let Some(running) = metrics.running.get_mut(&(runner_labels.clone(), job.to_string())) else { return };
    let before = running.stage.replace((stage, now));
    let (began, first) = (running.began, before.is_none() && !running.resumed);
    let runner_metrics = metrics.runner(runner_labels);
    if first {
        runner_metrics.starts.observe(seconds(began, now));
    }
    runner_metrics.end_stage(before, now);
}

/// Records the end of a job: `success`, `dropped`, or the failure reason.
pub fn job_ended(runner_labels: &RunnerLabels, job: &JobId, result: &'static str) {
    let now = BootTime::now();
    let mut metrics = lock();
    let Some(running) = metrics.running.remove(&(runner_labels.clone(), job.to_string())) else { return };
    let runner_metrics = metrics.runner(runner_labels);
    runner_metrics.end_stage(running.stage, now);
    runner_metrics.durations.observe(seconds(running.began, now));
    *runner_metrics.results.entry(result).or_default() += 1;
}

/// A running job, for the status of the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct JobProgress {
    /// The job's number.
    pub job: String,
    /// The name of the runner that took it.
    pub runner: String,
    /// Seconds since the agent received it.
    pub seconds: f64,
    /// The stage and the seconds since it began; `None` before the first one.
    pub stage: Option<(&'static str, f64)>,
}

/// The running jobs.
pub fn running_jobs() -> Vec<JobProgress> {
    let now = BootTime::now();
    let progress = |((runner_labels, job), running): (&(RunnerLabels, String), &RunningJob)| JobProgress {
        job: job.clone(),
        runner: runner_labels.name.clone(),
        seconds: seconds(running.began, now),
        stage: running.stage.map(|(stage, began)| (stage, seconds(began, now))),
    };
    lock().running.iter().map(progress).collect()
}

impl RunnerMetrics {
    fn end_stage(&mut self, stage: Option<(&'static str, BootTime)>, now: BootTime) {
        if let Some((stage, began)) = stage {
            self.stages.entry(stage).or_insert_with(|| Histogram::new(STAGE_BUCKETS)).observe(seconds(began, now));
        }
    }
}

fn seconds(from: BootTime, to: BootTime) -> f64 {
    to.since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::text::Page;

    /// The metrics are global: each test uses its own runner.
    fn runner_labels(token: &str) -> RunnerLabels {
        RunnerLabels { token: token.to_owned(), name: "n".to_owned() }
    }

    fn lines(token: &str) -> Vec<String> {
        let mut page = Page::default();
        write(&mut page, "s_1", [runner_labels(token)].into_iter());
        let labels_of_runner = format!("runner=\"{token}\",runner_name=\"n\",system_id=\"s_1\"");
        let text = page.finish();
        text.lines()
            .filter(|line| line.contains(&labels_of_runner))
            .map(|line| line.replace(&labels_of_runner, "*"))
            .collect()
    }

    #[test]
    fn a_runner_is_shown_before_anything_happened() {
        let lines = lines("quiet");
        for line in ["gitlab_runner_jobs{*,state=\"idle\",stage=\"idle\"} 0", "gitlab_runner_jobs_total{*} 0"] {
            assert!(lines.contains(&line.to_owned()), "{lines:#?}");
        }
    }

    #[test]
    fn counts_a_job_from_its_poll_to_its_end() {
        let runner_labels = runner_labels("busy");
        polled(&runner_labels, PollResult::Job);
        job_received(&runner_labels, &71.into(), Some(2.5));
        assert!(lines("busy").contains(&"gitlab_runner_jobs{*,state=\"pending\",stage=\"pending\"} 1".to_owned()));
        stage_began(&runner_labels, &71.into(), "get_sources");
        stage_began(&runner_labels, &71.into(), "step_script");
        assert!(lines("busy").contains(&"gitlab_runner_jobs{*,state=\"running\",stage=\"step_script\"} 1".to_owned()));
        job_ended(&runner_labels, &71.into(), "script_failure");
        job_ended(&runner_labels, &71.into(), "script_failure");
        job_resumed(&runner_labels, &72.into(), BootTime::default());
        stage_began(&runner_labels, &72.into(), "after_script");
        job_ended(&runner_labels, &72.into(), "success");
        let lines = lines("busy");
        for line in [
            "mayfly_polls_total{*,outcome=\"job\"} 1",
            "mayfly_polls_total{*,outcome=\"refused\"} 0",
            "gitlab_runner_jobs_total{*} 1",
            "gitlab_runner_failed_jobs_total{*,failure_reason=\"script_failure\"} 1",
            "mayfly_jobs_ended_total{*,state=\"failed\",result=\"script_failure\"} 1",
            "mayfly_jobs_ended_total{*,state=\"success\",result=\"success\"} 1",
            "gitlab_runner_job_duration_seconds_count{*} 2",
            "gitlab_runner_job_queue_duration_seconds_sum{*} 2.5",
            "mayfly_job_start_seconds_count{*} 1",
            "gitlab_runner_job_stage_duration_seconds_count{*,stage=\"get_sources\"} 1",
            "gitlab_runner_job_stage_duration_seconds_count{*,stage=\"after_script\"} 1",
        ] {
            assert!(lines.contains(&line.to_owned()), "{line} in {lines:#?}");
        }
        assert!(!lines.iter().any(|line| line.contains("state=\"running\"")));
    }

    #[test]
    fn distinguishes_equal_job_ids_by_their_runners() {
        let (one, other) = (runner_labels("one"), runner_labels("other"));
        job_received(&one, &73.into(), None);
        job_received(&other, &73.into(), None);
        stage_began(&one, &73.into(), "step_script");
        job_ended(&one, &73.into(), "success");
        assert!(lines("one").contains(&"mayfly_jobs_ended_total{*,state=\"success\",result=\"success\"} 1".to_owned()));
        let other = lines("other");
        assert!(
            other.contains(&"gitlab_runner_jobs{*,state=\"pending\",stage=\"pending\"} 1".to_owned()),
            "{other:#?}"
        );
    }

    #[test]
    fn knows_paused_runners() {
        let runner_labels = runner_labels("refused");
        assert!(!is_paused(&runner_labels));
        set_paused(&runner_labels, true);
        assert!(is_paused(&runner_labels));
        set_paused(&runner_labels, false);
        assert!(!is_paused(&runner_labels));
    }
}
