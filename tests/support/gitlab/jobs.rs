//! `POST jobs/request`, `PATCH trace` and `PUT job`, with the rules of each.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::http::{Answer, Request};
use super::{GitLab, Job, own_job};

impl GitLab {
    pub(super) fn request_job(&self, request: &Request) -> Answer {
        let body = request.json();
        if request.header("Content-Type") != "application/json" || request.body.len() > 32 * 1024 {
            self.violation("jobs/request: content type or size".to_owned());
        }
        if !self.is_valid_token(&body["token"]) {
            return Answer::json(403, &json!({"message": "403 Forbidden"}));
        }
        self.check_job_request(request, &body);
        let mut state = self.lock();
        let system_id = body["system_id"].as_str().unwrap_or_default().to_owned();
        if !state.managers.contains(&system_id) {
            state.managers.push(system_id);
        }
        let value = state.queue_value.to_string();
        if body["last_update"] == value.as_str() {
            let until = Instant::now() + self.shared.hold;
            while state.queue_value.to_string() == value && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                state = self.shared.changed.wait_timeout(state, left).expect("the thread must not panic").0;
            }
            // As Workhorse does: the response to a change is 204, too, without a value.
            return Answer::new(204);
        }
        let Some(id) = state.queue.pop_front() else {
            return Answer::new(204).with("X-GitLab-Last-Update", &value);
        };
        let two_phase = state.two_phase;
        if two_phase && body["info"]["features"]["two_phase_job_commit"] != true {
            state.violations.push("feature two_phase_job_commit is not announced".to_owned());
        }
        let job = state.jobs.iter_mut().find(|job| job.id == id).expect("the job");
        job.state = if two_phase { "pending" } else { "running" }.into();
        job.taken = Some(Instant::now());
        job.last_request = job.taken;
        Answer::new(201)
            .with("Content-Type", "application/json")
            .with("X-Request-Id", "0123456789abcdef0123456789abcdef")
            .body(job.payload.clone())
    }

    fn check_job_request(&self, request: &Request, body: &Value) {
        if request.header("RUNNER-TOKEN") != body["token"] || request.header("Accept") != "application/json" {
            self.violation("jobs/request: RUNNER-TOKEN or Accept".to_owned());
        }
        let system_id = body["system_id"].as_str().unwrap_or_default();
        let is_valid = system_id.len() == 14 && (system_id.starts_with("s_") || system_id.starts_with("r_"));
        if !is_valid {
            self.violation(format!("system_id `{system_id}`"));
        }
        for feature in ["trace_checksum", "trace_size", "cancel_gracefully", "return_exit_code", "refspecs"] {
            if body["info"]["features"][feature] != true {
                self.violation(format!("feature {feature} is not announced"));
            }
        }
    }

    pub(super) fn append_log(&self, request: &Request) -> Answer {
        let mut violations = Vec::new();
        let mut state = self.lock();
        let (interval, limit) = (state.interval.to_string(), state.trace_limit);
        let Some(job) = own_job(&mut state, request, request.header("JOB-TOKEN")) else { return Answer::new(403) };
        if job.state == "pending" {
            let violation = format!("job {}: a log before the acknowledgement", job.id);
            state.violations.push(violation);
            return Answer::new(403);
        }
        if !job.is_live() {
            return Answer::new(403).with("Job-Status", &job.state.clone());
        }
        if job.was_silent() {
            violations.push(format!("job {}: no request for more than a minute", job.id));
        }
        if request.header("Content-Type") != "text/plain" || !request.query.starts_with("debug_trace=") {
            violations.push("PATCH trace: content type or query".to_owned());
        }
        let range = request.header("Content-Range");
        let Some((first, last)) = content_range(range) else { return Answer::new(400) };
        if last + 1 - first != request.body.len() || request.body.is_empty() || request.body.len() > 1 << 20 {
            violations.push(format!("Content-Range {range} for {} bytes", request.body.len()));
        }
        let end = first + request.body.len();
        if limit.is_some_and(|limit| end > limit) {
            job.state = "failed".into();
            job.failure_reason = Some("trace_size_exceeded".into());
            return Answer::new(403).with("Job-Status", "failed");
        }
        if job.trace.len() == first {
            job.trace.extend_from_slice(&request.body);
        }
        let status = if job.trace.len() == end { 202 } else { 416 };
        let answer = Answer::new(status)
            .with("Range", &format!("0-{}", job.trace.len()))
            .with("Job-Status", &job.state.clone())
            .with("X-GitLab-Trace-Update-Interval", &interval);
        state.violations.extend(violations);
        answer
    }

    pub(super) fn update_job(&self, request: &Request) -> Answer {
        let body = request.json();
        let mut state = self.lock();
        let final_answer = if body["state"] == "running" { None } else { state.final_answers.pop_front() };
        let two_phase = state.two_phase;
        let Some(job) = own_job(&mut state, request, body["token"].as_str().unwrap_or_default()) else {
            return Answer::new(403);
        };
        let sent = body["state"].as_str().unwrap_or_default().to_owned();
        // The runner acknowledges the job: it starts.
        if job.state == "pending" && sent == "running" {
            job.state = "running".into();
        }
        if job.state == "pending" {
            job.was_silent();
            job.updates.push(sent.clone());
            return Answer::new(if sent == "pending" { 200 } else { 400 }).with("Job-Status", "pending");
        }
        if !job.is_live() {
            return Answer::new(403).with("Job-Status", &job.state.clone());
        }
        if two_phase && sent == "pending" {
            job.updates.push(sent);
            return Answer::new(409).with("Job-Status", &job.state.clone());
        }
        let mut violations = check_update(job, &body);
        job.updates.push(sent.clone());
        if sent == "running" {
            job.running.get_or_insert_with(Instant::now);
        }
        let status = match sent.as_str() {
            "running" => 200,
            "success" | "failed" => final_answer.unwrap_or(200),
            _ => 400,
        };
        if status == 412 {
            job.trace.clear();
        }
        if status == 200 && sent != "running" {
            violations.extend(check_log(job, &body));
            end_job(job, &body, sent);
        }
        let mut answer = Answer::new(status).with("Job-Status", &job.state.clone());
        if status == 202 {
            answer = answer.with("X-GitLab-Trace-Update-Interval", "1");
        }
        state.queue_value += 1;
        state.violations.extend(violations);
        answer
    }
}

/// The rules that an update of a running job breaks.
fn check_update(job: &mut Job, body: &Value) -> Vec<String> {
    let mut violations = Vec::new();
    if job.was_silent() {
        violations.push(format!("job {}: no request for more than a minute", job.id));
    }
    if !body["output"].is_object() || body["info"]["name"] != "mayfly" {
        violations.push("PUT job: `output` and `info` must be there".to_owned());
    }
    if body["exit_code"] == 0 || body["failure_reason"] == "" {
        violations.push("PUT job: zero values must be left out".to_owned());
    }
    violations
}

/// Compares the checksum and the size in a final update with the stored log. A runner that does not have the log sends
/// neither.
fn check_log(job: &Job, body: &Value) -> Option<String> {
    let output = &body["output"];
    let checksum = format!("crc32:{:08x}", crc32fast::hash(&job.trace));
    let size = job.trace.len() as u64;
    let lacks_log = output["checksum"].is_null() && output["bytesize"].is_null();
    let may_lack_log = body["failure_reason"] == "runner_system_failure";
    let is_equal = output["checksum"] == checksum.as_str() && output["bytesize"] == size;
    if size == 0 || lacks_log && may_lack_log || is_equal {
        return None;
    }
    let log = String::from_utf8_lossy(&job.trace);
    Some(format!("job {}: output {output} for {checksum}, {size} bytes stored:\n{log}", job.id))
}

/// Accepts a final state.
fn end_job(job: &mut Job, body: &Value, state: String) {
    job.ended = Some(Instant::now());
    job.exit_code = body["exit_code"].as_i64();
    job.failure_reason = body["failure_reason"].as_str().map(str::to_owned);
    job.state = if job.state == "canceling" { "canceled".into() } else { state };
}

/// The offsets of the first and the last byte in `Content-Range`.
fn content_range(range: &str) -> Option<(usize, usize)> {
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}
