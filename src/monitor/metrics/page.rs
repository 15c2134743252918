//! Writes the metrics of polls, jobs, stages, requests and logs to a page.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::{ERRORS, Metrics, POLLS, RunnerLabels, RunnerMetrics, TRACE_BYTES, WARNINGS};
use crate::monitor::text::{Histogram, MetricKind, Page};

/// Writes all metrics. `runners` are shown even if nothing was counted for them yet.
pub fn write(page: &mut Page, system_id: &str, runners: impl Iterator<Item = RunnerLabels>) {
    let mut metrics = super::lock();
    runners.for_each(|runner_labels| {
        metrics.runner(&runner_labels);
    });
    write_jobs(page, system_id, &metrics);
    write_results(page, system_id, &metrics);
    write_durations(page, system_id, &metrics);
    write_polls(page, system_id, &metrics);
    write_calls(page, system_id, &metrics);
    let sent = TRACE_BYTES.load(Ordering::Relaxed) as f64;
    page.single("mayfly_trace_bytes_total", MetricKind::Counter, "Bytes of job logs that servers accepted.", sent);
    let mut errors = page.metric("gitlab_runner_errors_total", MetricKind::Counter, "Lines of the log, by level.");
    for (level, count) in [("error", &ERRORS), ("warning", &WARNINGS)] {
        errors.sample(&[("level", level)], count.load(Ordering::Relaxed) as f64);
    }
}

fn write_polls(page: &mut Page, system_id: &str, metrics: &Metrics) {
    let mut polls = page.metric("mayfly_polls_total", MetricKind::Counter, "Requests for a job, by outcome.");
    for (runner_labels, runner_metrics) in &metrics.runners {
        for ((_, outcome), count) in POLLS.iter().zip(runner_metrics.polls) {
            polls
                .sample(&[labels(runner_labels, system_id).as_slice(), &[("outcome", outcome)]].concat(), count as f64);
        }
    }
}

fn write_calls(page: &mut Page, system_id: &str, metrics: &Metrics) {
    let help = "Requests to servers, by endpoint and status; status 0 means no response.";
    let mut calls = page.metric("gitlab_runner_api_request_statuses_total", MetricKind::Counter, help);
    for ((endpoint, status), count) in &metrics.calls {
        let labels = [("system_id", system_id), ("endpoint", endpoint), ("status", &status.to_string())];
        calls.sample(&labels, *count as f64);
    }
}

fn labels<'a>(runner_labels: &'a RunnerLabels, system_id: &'a str) -> [(&'a str, &'a str); 3] {
    [("runner", &runner_labels.token), ("runner_name", &runner_labels.name), ("system_id", system_id)]
}

fn write_jobs(page: &mut Page, system_id: &str, metrics: &Metrics) {
    let mut now: BTreeMap<(&RunnerLabels, &str, &str), u32> = BTreeMap::new();
    for runner_labels in metrics.runners.keys() {
        now.insert((runner_labels, "idle", "idle"), 0);
    }
    for ((runner_labels, _), running) in &metrics.running {
        let stage = running.stage.map_or("pending", |(stage, _)| stage);
        let state = if running.stage.is_some() { "running" } else { "pending" };
        *now.entry((runner_labels, state, stage)).or_default() += 1;
    }
    let mut jobs = page.metric("gitlab_runner_jobs", MetricKind::Gauge, "Running jobs, by state and stage.");
    for ((runner_labels, state, stage), count) in now {
        let labels = [labels(runner_labels, system_id).as_slice(), &[("state", state), ("stage", stage)]].concat();
        jobs.sample(&labels, f64::from(count));
    }
    let mut taken = page.metric("gitlab_runner_jobs_total", MetricKind::Counter, "Received jobs.");
    for (runner_labels, runner_metrics) in &metrics.runners {
        taken.sample(&labels(runner_labels, system_id), runner_metrics.taken as f64);
    }
}

fn write_results(page: &mut Page, system_id: &str, metrics: &Metrics) {
    let is_failure = |result: &str| !matches!(result, "success" | "dropped");
    let mut failed = page.metric("gitlab_runner_failed_jobs_total", MetricKind::Counter, "Failed jobs, by reason.");
    for (runner_labels, runner_metrics) in &metrics.runners {
        for (reason, count) in runner_metrics.results.iter().filter(|(result, _)| is_failure(result)) {
            failed.sample(
                &[labels(runner_labels, system_id).as_slice(), &[("failure_reason", reason)]].concat(),
                *count as f64,
            );
        }
    }
    let help = "Finished jobs, by result; dropped: the server no longer expected the job.";
    let mut ended = page.metric("mayfly_jobs_ended_total", MetricKind::Counter, help);
    for (runner_labels, runner_metrics) in &metrics.runners {
        for (result, count) in &runner_metrics.results {
            let state = if is_failure(result) { "failed" } else { result };
            ended.sample(
                &[labels(runner_labels, system_id).as_slice(), &[("state", state), ("result", result)]].concat(),
                *count as f64,
            );
        }
    }
}

fn write_durations(page: &mut Page, system_id: &str, metrics: &Metrics) {
    type HistogramField = fn(&RunnerMetrics) -> &Histogram;
    let of_jobs: [(&'static str, &str, HistogramField); 3] = [
        ("gitlab_runner_job_duration_seconds", "Time from receiving a job to its end.", |metrics| &metrics.durations),
        ("gitlab_runner_job_queue_duration_seconds", "Time that jobs were queued on the server.", |metrics| {
            &metrics.queued
        }),
        ("mayfly_job_start_seconds", "Time from receiving a job to its first stage.", |metrics| &metrics.starts),
    ];
    for (name, help, histogram) in of_jobs {
        let mut metric = page.metric(name, MetricKind::Histogram, help);
        for (runner_labels, runner_metrics) in &metrics.runners {
            metric.histogram(&labels(runner_labels, system_id), histogram(runner_metrics));
        }
    }
    let name = "gitlab_runner_job_stage_duration_seconds";
    let mut metric = page.metric(name, MetricKind::Histogram, "Duration of the stages of jobs.");
    for (runner_labels, runner_metrics) in &metrics.runners {
        for (stage, histogram) in &runner_metrics.stages {
            metric.histogram(&[labels(runner_labels, system_id).as_slice(), &[("stage", stage)]].concat(), histogram);
        }
    }
}
