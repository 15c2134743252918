//! A strict fake GitLab: it checks the rules of the Runner API. A request that breaks a rule fails the test.

mod artifacts;
mod job;
mod jobs;
mod runners;
mod serving;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use serde_json::{Value, json};

pub use self::job::{Artifact, Job};
use super::http::listen;
pub use super::http::{Answer, Request};
use super::unique_number;

/// The token of the only runner.
pub const RUNNER_TOKEN: &str = "glrt-tokenOfTheRunner";

/// The runner's token after a reset.
pub const TOKEN_AFTER_RESET: &str = "glrt-tokenAfterReset";

/// A personal access token that may create runners.
pub const ACCESS_TOKEN: &str = "glpat-of-a-person";

/// A legacy registration token.
pub const REGISTRATION_TOKEN: &str = "registration-token";

/// How a route misbehaves, once.
#[derive(Clone)]
pub enum Fault {
    /// A different response.
    Answer(Answer),
    /// The connection is closed without a response.
    Cut,
    /// The request takes effect, and the connection is closed without a response.
    TakeAndCut,
    /// The connection is closed in the middle of this response.
    Half(Answer),
    /// The correct response after a delay.
    Slow(Duration),
}

/// A request that the server received.
struct Received {
    route: String,
    /// The id of the request that the client chose.
    id: String,
    at: Instant,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    queue: VecDeque<i64>,
    /// Changes whenever a job is queued or ends.
    queue_value: u64,
    violations: Vec<String>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    is_unresponsive: bool,
    /// The routes of the requests that got no response, with their times.
    unanswered: Vec<(String, Instant)>,
    requests: Vec<Received>,
    /// For each request id: the status of the response, and the checksum of the request body.
    request_ids: BTreeMap<String, (u16, u32)>,
    managers: Vec<String>,
    is_runner_deleted: bool,
    /// The token after a reset; the first one is then invalid.
    new_token: Option<String>,
    interval: u32,
    trace_limit: Option<usize>,
    final_answers: VecDeque<u16>,
    /// A job stays pending until its runner acknowledges it (`two_phase_job_commit`).
    two_phase: bool,
    created: Vec<Value>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    hold: Duration,
}

/// The server; its threads run until the process ends.
pub struct GitLab {
    pub url: String,
    shared: Arc<Shared>,
    _strict: Option<Strict>,
}

/// Fails the test if a rule was broken and the test did not check. If the test fails for another reason, prints what
/// the server knows.
struct Strict(Arc<Shared>);

impl Drop for Strict {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if thread::panicking() {
            println!("==> the fake GitLab\n{}", state.summary());
            return;
        }
        let violations = std::mem::take(&mut state.violations);
        drop(state);
        assert!(violations.is_empty(), "the protocol was violated:\n{}", violations.join("\n"));
    }
}

impl State {
    /// The jobs with the ends of their logs, and the newest requests with their age and the status of the response.
    fn summary(&self) -> String {
        const NEWEST: usize = 60;
        let mut text = String::new();
        for job in &self.jobs {
            let (lines, ages) = (job.lines(), [job.taken, job.ended].map(|at| at.map(|at| at.elapsed())));
            text += &format!("job={} state={} taken and ended before {ages:?}\n", job.id, job.state);
            text += &format!("  updates={:?} failure_reason={:?}\n", job.updates, job.failure_reason);
            lines[lines.len().saturating_sub(20)..].iter().for_each(|line| text += &format!("  | {line}\n"));
        }
        for Received { route, id, at } in &self.requests[self.requests.len().saturating_sub(NEWEST)..] {
            let status = self.request_ids.get(id).map(|(status, _)| status);
            text += &format!("{:.3} s ago: {route} status={status:?}\n", at.elapsed().as_secs_f64());
        }
        text + &self.violations.join("\n")
    }
}

/// The same server; the clone does not fail the test.
impl Clone for GitLab {
    fn clone(&self) -> Self {
        Self { url: self.url.clone(), shared: Arc::clone(&self.shared), _strict: None }
    }
}

impl GitLab {
    /// Starts a server on loopback.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// The same over HTTPS.
    pub fn start_with(tls: Option<Arc<ServerConfig>>) -> Self {
        let state = State { interval: 1, ..State::default() };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), hold: Duration::from_millis(1500) });
        let serving = Arc::clone(&shared);
        let url = listen(tls, move |connection| {
            Self { url: String::new(), shared: Arc::clone(&serving), _strict: None }.serve(connection);
        });
        Self { url, _strict: Some(Strict(Arc::clone(&shared))), shared }
    }

    /// Queues a job.
    pub fn queue(&self, payload: Value) -> i64 {
        let mut state = self.lock();
        let id = unique_number();
        let mut payload = payload;
        payload["id"] = json!(id);
        if payload["token"].is_null() {
            payload["token"] = json!(format!("glcbt-job-{id}"));
        }
        self.put(&mut state, id, payload["token"].as_str().unwrap_or_default().to_owned(), payload.to_string().into());
        id
    }

    /// Queues a job with any text as payload.
    pub fn queue_text<T: Into<Vec<u8>>>(&self, make: impl Fn(i64) -> T) -> i64 {
        let mut state = self.lock();
        let id = unique_number();
        self.put(&mut state, id, format!("glcbt-job-{id}"), make(id).into());
        id
    }

    /// Sets the text that replaces the id in the paths of a job's requests.
    pub fn name_job(&self, id: i64, name: &str) {
        let mut state = self.lock();
        state.jobs.iter_mut().find(|job| job.id == id).expect("the job").name_in_paths = Some(name.to_owned());
    }

    fn put(&self, state: &mut State, id: i64, token: String, payload: Vec<u8>) {
        state.jobs.push(Job { id, token, state: "pending".into(), payload, ..Job::default() });
        state.queue.push_back(id);
        state.queue_value += 1;
        self.shared.changed.notify_all();
    }

    /// Makes the next requests to a route (such as `PATCH trace`) fail.
    pub fn fail(&self, route: &str, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.entry(route.to_owned()).or_default().extend(faults);
    }

    /// From now on, requests get no response.
    pub fn stop_responding(&self) {
        self.lock().is_unresponsive = true;
    }

    /// Ends [`Self::stop_responding`].
    pub fn resume_responding(&self) {
        self.lock().is_unresponsive = false;
    }

    /// The times of the requests to a route that got no response.
    pub fn unanswered(&self, route: &str) -> Vec<Instant> {
        self.lock().unanswered.iter().filter(|(name, _)| name == route).map(|(_, at)| *at).collect()
    }

    /// Leaves jobs pending until their runner acknowledges them (`two_phase_job_commit`).
    pub fn enable_two_phase(&self) {
        self.lock().two_phase = true;
    }

    /// The statuses of the next responses to a final state, before one is accepted.
    pub fn answer_finals(&self, statuses: impl IntoIterator<Item = u16>) {
        self.lock().final_answers.extend(statuses);
    }

    /// Limits the log size; a larger log fails the job.
    pub fn limit_trace(&self, bytes: usize) {
        self.lock().trace_limit = Some(bytes);
    }

    /// A user cancels a job.
    pub fn cancel(&self, id: i64) {
        self.set_job_state(id, "canceling");
    }

    /// Sets the state of a job on the server.
    pub fn set_job_state(&self, id: i64, to: &str) {
        let mut state = self.lock();
        let job = state.jobs.iter_mut().find(|job| job.id == id).expect("the job");
        job.state = to.to_owned();
    }

    /// The server loses the end of a job's log.
    pub fn cut_trace(&self, id: i64, size: usize) {
        let mut state = self.lock();
        state.jobs.iter_mut().find(|job| job.id == id).expect("the job").trace.truncate(size);
    }

    /// The runner is deleted on the server.
    pub fn delete_runner(&self) {
        self.lock().is_runner_deleted = true;
    }

    /// The current state of a job.
    pub fn job(&self, id: i64) -> Job {
        self.lock().jobs.iter().find(|job| job.id == id).expect("the job").clone()
    }

    /// The state of a job, without copying its log.
    pub fn job_state(&self, id: i64) -> String {
        self.lock().jobs.iter().find(|job| job.id == id).expect("the job").state.clone()
    }

    /// The attributes of the created runners.
    pub fn created(&self) -> Vec<Value> {
        self.lock().created.clone()
    }

    /// The system ids of the registered runner managers.
    pub fn managers(&self) -> Vec<String> {
        self.lock().managers.clone()
    }

    /// The request ids of the requests to a route, in order.
    pub fn request_ids(&self, route: &str) -> Vec<String> {
        self.lock().requests.iter().filter(|one| one.route == route).map(|one| one.id.clone()).collect()
    }

    /// The number of requests to a route.
    pub fn count(&self, route: &str) -> usize {
        self.lock().requests.iter().filter(|one| one.route == route).count()
    }

    /// Waits until a condition holds; fails the test after two minutes.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.wait_for(Duration::from_secs(120), what, holds);
    }

    /// Waits until a condition holds; fails the test after a given time.
    pub fn wait_for(&self, timeout: Duration, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + timeout;
        while !holds(self) {
            assert!(Instant::now() < until, "timed out waiting for {what}");
            let state = self.lock();
            let _unused = self.shared.changed.wait_timeout(state, Duration::from_millis(20));
        }
    }

    /// Waits until the agent, which has one runner, polls with its current state: the poll in flight has ended, and the
    /// next one has started.
    pub fn wait_for_fresh_request(&self) {
        let asked = self.count("POST jobs/request");
        self.wait_until("a fresh request", |server| server.count("POST jobs/request") >= asked + 2);
    }

    /// Waits until a job has ended, and returns it.
    pub fn finished(&self, id: i64) -> Job {
        self.wait_until("the end of the job", |server| {
            !matches!(server.job_state(id).as_str(), "pending" | "running" | "canceling")
        });
        self.job(id)
    }

    /// Waits until a job has printed a line; the echo of its command does not count.
    pub fn wait_for_log(&self, id: i64, text: &str) {
        let is_printed = |line: &String| line.contains(text) && !line.starts_with("$ ");
        self.wait_until(&format!("`{text}` in the log"), |server| server.job(id).lines().iter().any(is_printed));
    }

    /// Asserts that no rule was broken.
    pub fn assert_strict(&self) {
        let violations = self.lock().violations.clone();
        assert!(violations.is_empty(), "the protocol was violated:\n{}", violations.join("\n"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("the thread must not panic")
    }

    fn violation(&self, text: String) {
        self.lock().violations.push(text);
    }
}

fn own_job<'a>(state: &'a mut State, request: &Request, token: &str) -> Option<&'a mut Job> {
    let name = request.path.split('/').nth(4)?;
    let job = state.jobs.iter_mut().find(|job| match &job.name_in_paths {
        Some(other) => name == other && job.token == token,
        None => name == job.id.to_string(),
    })?;
    (job.token == token).then_some(job)
}
