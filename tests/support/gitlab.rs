//! A strict fake GitLab: it checks the rules of the Runner API. A request that breaks a rule fails the test.

use std::collections::{BTreeMap, VecDeque};
use std::io::BufReader;
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use serde_json::{Value, json};

pub use super::http::{Answer, Request, read_request, write_answer};
use super::http::{Connection, listen, receive, write_half};
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

/// A job in the server's view.
#[derive(Clone, Debug, Default)]
pub struct Job {
    pub id: i64,
    pub token: String,
    /// `pending`, `running`, `canceling`, or the final state.
    pub state: String,
    pub trace: Vec<u8>,
    pub failure_reason: Option<String>,
    pub exit_code: Option<i64>,
    pub artifacts: Vec<Artifact>,
    /// When the runner got the job.
    pub taken: Option<Instant>,
    /// When the server accepted its final state.
    pub ended: Option<Instant>,
    /// When the server got the last request about the job.
    heard: Option<Instant>,
    /// When the server first heard that it runs.
    #[allow(dead_code, reason = "the bench reads it")]
    pub running: Option<Instant>,
    /// The states in all updates.
    pub updates: Vec<String>,
    payload: Vec<u8>,
    /// The text that replaces the id in the paths of its requests.
    name: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Artifact {
    pub kind: String,
    pub format: String,
    pub expire_in: String,
    pub name: String,
    pub content: Vec<u8>,
    #[allow(dead_code, reason = "the bench reads it")]
    pub at: Option<SystemTime>,
}

impl Job {
    /// Whether the job sent no request for a minute, which breaks the rules.
    fn was_silent(&mut self) -> bool {
        self.heard.replace(Instant::now()).is_some_and(|heard| heard.elapsed() > Duration::from_secs(60))
    }

    /// The log as text.
    pub fn log(&self) -> String {
        String::from_utf8(self.trace.clone()).expect("the log is UTF-8")
    }

    /// The log without time stamps and colours, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.log().lines().map(plain).collect()
    }

    /// Whether a line of the log contains this part.
    pub fn has(&self, part: &str) -> bool {
        self.lines().iter().any(|line| line.contains(part))
    }
}

/// A line without its time stamp, colours and section markers.
fn plain(line: &str) -> String {
    let line = match line.get(26..27) {
        Some("Z") => &line[32..],
        _ => line,
    };
    let mut text = String::new();
    let mut rest = line.rsplit('\r').next().unwrap_or_default();
    while let Some(at) = rest.find('\x1b') {
        text.push_str(&rest[..at]);
        let end = rest[at..].find(|c: char| c.is_ascii_alphabetic()).map_or(rest.len(), |end| at + end + 1);
        rest = &rest[end..];
    }
    text + rest
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    queue: VecDeque<i64>,
    /// Changes whenever a job is queued or ends.
    queue_value: u64,
    violations: Vec<String>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    /// The server does not respond.
    away: bool,
    /// The routes of requests to which it did not respond, with their times.
    unanswered: Vec<(String, Instant)>,
    requests: Vec<(String, String)>,
    /// For each request id: the status of the response, and the checksum of the request body.
    request_ids: BTreeMap<String, (u16, u32)>,
    managers: Vec<String>,
    runner_gone: bool,
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
    _verdict: Option<Verdict>,
}

/// Fails the test if a rule was broken and the test did not check.
struct Verdict(Arc<Shared>);

impl Drop for Verdict {
    fn drop(&mut self) {
        let violations = std::mem::take(&mut self.0.state.lock().expect("the thread must not panic").violations);
        if !thread::panicking() {
            assert!(violations.is_empty(), "the protocol was violated:\n{}", violations.join("\n"));
        }
    }
}

/// The same server; the clone does not fail the test.
impl Clone for GitLab {
    fn clone(&self) -> Self {
        Self { url: self.url.clone(), shared: Arc::clone(&self.shared), _verdict: None }
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
            Self { url: String::new(), shared: Arc::clone(&serving), _verdict: None }.serve(connection);
        });
        Self { url, _verdict: Some(Verdict(Arc::clone(&shared))), shared }
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
        state.jobs.iter_mut().find(|job| job.id == id).expect("the job").name = Some(name.to_owned());
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

    /// Stops or resumes responding.
    pub fn set_away(&self, away: bool) {
        self.lock().away = away;
    }

    /// When requests to a route came to which the server did not respond.
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
        self.lock().runner_gone = true;
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
        self.lock().requests.iter().filter(|(name, _)| name == route).map(|(_, id)| id.clone()).collect()
    }

    /// The number of requests to a route.
    pub fn count(&self, route: &str) -> usize {
        self.lock().requests.iter().filter(|(name, _)| name == route).count()
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
        let told = |line: &String| line.contains(text) && !line.starts_with("$ ");
        self.wait_until(&format!("`{text}` in the log"), |server| server.job(id).lines().iter().any(told));
    }

    /// Asserts that no rule was broken.
    pub fn assert_strict(&self) {
        let violations = self.lock().violations.clone();
        assert!(violations.is_empty(), "the protocol was violated:\n{}", violations.join("\n"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no test thread panicked here")
    }

    fn serve(&self, mut connection: Connection) {
        while let Some(request) = receive(&mut connection) {
            let route = route(&request);
            {
                let mut state = self.lock();
                if state.away {
                    state.unanswered.push((route, Instant::now()));
                    self.shared.changed.notify_all();
                    return;
                }
            }
            let fault = {
                let mut state = self.lock();
                state.requests.push((route.clone(), request.header("X-Request-Id").to_owned()));
                state.faults.get_mut(&route).and_then(VecDeque::pop_front)
            };
            self.check_headers(&request);
            let (answer, half) = match fault {
                Some(Fault::Answer(answer)) => (answer, false),
                Some(Fault::Half(answer)) => (answer, true),
                Some(Fault::Slow(duration)) => {
                    thread::sleep(duration);
                    (self.answer(&route, &request), false)
                }
                Some(Fault::Cut) => return,
                Some(Fault::TakeAndCut) => {
                    self.answer(&route, &request);
                    return;
                }
                None => (self.answer(&route, &request), false),
            };
            self.check_repetition(&request, answer.status);
            self.shared.changed.notify_all();
            if half {
                let _ = write_half(connection.get_mut(), &answer);
                return;
            }
            if write_answer(connection.get_mut(), &answer).is_err() {
                return;
            }
        }
    }

    fn answer(&self, route: &str, request: &Request) -> Answer {
        match route {
            "POST jobs/request" => self.request_job(request),
            "PATCH trace" => self.append(request),
            "PUT job" => self.update(request),
            "POST artifacts" => self.take_artifact(request),
            "GET artifacts" => self.give_artifact(request),
            "POST runners/verify" => self.verify(request),
            "POST user/runners" if request.header("PRIVATE-TOKEN") == ACCESS_TOKEN => self.create(request),
            "POST runners" if request.json()["token"] == REGISTRATION_TOKEN => self.create(request),
            "POST user/runners" | "POST runners" => Answer::json(403, &json!({"message": "403 Forbidden"})),
            "DELETE runners/managers" => self.remove_manager(request),
            "DELETE runners" => Answer::new(204),
            "POST runners/reset_authentication_token" => self.reset_token(request),
            other => {
                self.violation(format!("an unknown route: {other}"));
                Answer::json(404, &json!({"message": "404"}))
            }
        }
    }

    fn violation(&self, text: String) {
        self.lock().violations.push(text);
    }

    fn check_headers(&self, request: &Request) {
        let id = request.header("X-Request-Id");
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.violation(format!("X-Request-Id `{id}` on {}", request.path));
        }
        if !request.header("User-Agent").starts_with("mayfly ") {
            self.violation(format!("User-Agent `{}`", request.header("User-Agent")));
        }
    }

    /// A request may reuse a request id only if the previous response asked for a retry, and then it must be the same
    /// request.
    fn check_repetition(&self, request: &Request, status: u16) {
        let id = request.header("X-Request-Id").to_owned();
        let body = crc32fast::hash(&request.body);
        let before = self.lock().request_ids.insert(id, (status, body));
        let Some((status, before)) = before else { return };
        if !matches!(status, 301..=308 | 408 | 429 | 500 | 502..=504 | 512..) {
            self.violation(format!("{} {}: X-Request-Id of a call that got {status}", request.method, request.path));
        } else if status >= 400 && before != body {
            self.violation(format!("{} {}: another body in the next try", request.method, request.path));
        }
    }

    fn request_job(&self, request: &Request) -> Answer {
        let body = request.json();
        if request.header("Content-Type") != "application/json" || request.body.len() > 32 * 1024 {
            self.violation("jobs/request: content type or size".to_owned());
        }
        if !self.knows(&body["token"]) {
            return Answer::json(403, &json!({"message": "403 Forbidden"}));
        }
        if request.header("RUNNER-TOKEN") != body["token"] || request.header("Accept") != "application/json" {
            self.violation("jobs/request: RUNNER-TOKEN or Accept".to_owned());
        }
        let system_id = body["system_id"].as_str().unwrap_or_default().to_owned();
        let valid = system_id.len() == 14 && (system_id.starts_with("s_") || system_id.starts_with("r_"));
        if !valid {
            self.violation(format!("system_id `{system_id}`"));
        }
        for feature in ["trace_checksum", "trace_size", "cancel_gracefully", "return_exit_code", "refspecs"] {
            if body["info"]["features"][feature] != true {
                self.violation(format!("feature {feature} is not announced"));
            }
        }
        let mut state = self.lock();
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
        job.heard = job.taken;
        Answer::new(201)
            .with("Content-Type", "application/json")
            .with("X-Request-Id", "0123456789abcdef0123456789abcdef")
            .body(job.payload.clone())
    }

    fn append(&self, request: &Request) -> Answer {
        let mut violations = Vec::new();
        let mut state = self.lock();
        let (interval, limit) = (state.interval.to_string(), state.trace_limit);
        let Some(job) = own_job(&mut state, request, request.header("JOB-TOKEN")) else { return Answer::new(403) };
        if job.state == "pending" {
            let violation = format!("job {}: a log before the acknowledgement", job.id);
            state.violations.push(violation);
            return Answer::new(403);
        }
        if !is_live(job) {
            return Answer::new(403).with("Job-Status", &job.state.clone());
        }
        if job.was_silent() {
            violations.push(format!("job {}: no sign of life for more than a minute", job.id));
        }
        if request.header("Content-Type") != "text/plain" || !request.query.starts_with("debug_trace=") {
            violations.push("PATCH trace: content type or query".to_owned());
        }
        let range = request.header("Content-Range").to_owned();
        let Some((first, last)) = range.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))
        else {
            return Answer::new(400);
        };
        let (first, last): (usize, usize) = (first, last);
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

    fn update(&self, request: &Request) -> Answer {
        let body = request.json();
        let mut violations = Vec::new();
        let mut state = self.lock();
        let final_answer = if body["state"] == "running" { None } else { state.final_answers.pop_front() };
        let two_phase = state.two_phase;
        let Some(job) = own_job(&mut state, request, body["token"].as_str().unwrap_or_default()) else {
            return Answer::new(403);
        };
        let told = body["state"].as_str().unwrap_or_default().to_owned();
        // Acknowledged: a runner starts the job.
        if job.state == "pending" && told == "running" {
            job.state = "running".into();
        }
        if job.state == "pending" {
            job.was_silent();
            job.updates.push(told.clone());
            return Answer::new(if told == "pending" { 200 } else { 400 }).with("Job-Status", "pending");
        }
        if !is_live(job) {
            return Answer::new(403).with("Job-Status", &job.state.clone());
        }
        if two_phase && told == "pending" {
            job.updates.push(told);
            return Answer::new(409).with("Job-Status", &job.state.clone());
        }
        if job.was_silent() {
            violations.push(format!("job {}: no sign of life for more than a minute", job.id));
        }
        job.updates.push(told.clone());
        if told == "running" {
            job.running.get_or_insert_with(Instant::now);
        }
        if !body["output"].is_object() || body["info"]["name"] != "mayfly" {
            violations.push("PUT job: `output` and `info` must be there".to_owned());
        }
        if body["exit_code"] == 0 || body["failure_reason"] == "" {
            violations.push("PUT job: zero values must be left out".to_owned());
        }
        let status = match told.as_str() {
            "running" => 200,
            "success" | "failed" => final_answer.unwrap_or(200),
            _ => 400,
        };
        if status == 412 {
            job.trace.clear();
        }
        if status == 200 && told != "running" {
            let checksum = format!("crc32:{:08x}", crc32fast::hash(&job.trace));
            let size = job.trace.len() as u64;
            // A runner that does not have the log says nothing of it.
            let is_silent = body["output"]["checksum"].is_null() && body["output"]["bytesize"].is_null();
            let may_be_silent = is_silent && body["failure_reason"] == "runner_system_failure";
            if size > 0
                && !may_be_silent
                && (body["output"]["checksum"] != checksum.as_str() || body["output"]["bytesize"] != size)
            {
                let log = String::from_utf8_lossy(&job.trace);
                violations.push(format!(
                    "job {}: output {} for {checksum}, {size} bytes stored:\n{log}",
                    job.id, body["output"]
                ));
            }
            job.ended = Some(Instant::now());
            job.exit_code = body["exit_code"].as_i64();
            job.failure_reason = body["failure_reason"].as_str().map(str::to_owned);
            job.state = if job.state == "canceling" { "canceled".into() } else { told };
        }
        let mut answer = Answer::new(status).with("Job-Status", &job.state.clone());
        if status == 202 {
            answer = answer.with("X-GitLab-Trace-Update-Interval", "1");
        }
        state.queue_value += 1;
        state.violations.extend(violations);
        answer
    }

    fn take_artifact(&self, request: &Request) -> Answer {
        let Some(artifact) = multipart(request) else {
            self.violation("artifacts: not one part called `file`".to_owned());
            return Answer::new(400);
        };
        let mut state = self.lock();
        let Some(job) = own_job(&mut state, request, request.header("JOB-TOKEN")) else { return Answer::new(403) };
        if !is_live(job) {
            return Answer::new(403).with("Job-Status", &job.state.clone());
        }
        job.artifacts.push(artifact);
        Answer::json(201, &json!({"id": job.id}))
    }

    /// The archive of a job, for a client with a valid token; on request through a redirect to another host, which must
    /// not get the token.
    fn give_artifact(&self, request: &Request) -> Answer {
        let mut state = self.lock();
        let Some(job) = own_job(&mut state, request, request.header("JOB-TOKEN")) else { return Answer::new(403) };
        let Some(artifact) = job.artifacts.iter().find(|artifact| artifact.kind == "archive").cloned() else {
            return Answer::new(404);
        };
        drop(state);
        if request.query != "direct_download=true" {
            return Answer::new(200).with("Content-Type", "application/octet-stream").body(artifact.content);
        }
        Answer::new(302).with("Location", &self.object_store(artifact.content))
    }

    /// Another host, which serves this content once.
    fn object_store(&self, content: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://localhost:{}/object", listener.local_addr().expect("an address").port());
        let server = self.clone();
        thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let Some(request) = read_request(&mut reader) else { return };
            if request.headers.contains_key("job-token") || request.headers.contains_key("authorization") {
                server.violation("the object store was sent a token".to_owned());
            }
            let _ = write_answer(&mut stream, &Answer::new(200).body(content));
        });
        url
    }

    fn verify(&self, request: &Request) -> Answer {
        let body = request.json();
        if !self.knows(&body["token"]) {
            return Answer::json(403, &json!({"message": "403 Forbidden"}));
        }
        if body["info"]["features"]["cancel_gracefully"] != true {
            self.violation("verify: `info` must announce the features".to_owned());
        }
        let system_id = body["system_id"].as_str().unwrap_or_default().to_owned();
        self.lock().managers.push(system_id);
        Answer::json(200, &json!({"id": 7, "token": body["token"], "token_expires_at": null}))
    }

    fn knows(&self, token: &Value) -> bool {
        let state = self.lock();
        !state.runner_gone && *token == state.new_token.as_deref().unwrap_or(RUNNER_TOKEN)
    }

    fn reset_token(&self, request: &Request) -> Answer {
        if !self.knows(&request.json()["token"]) {
            return Answer::json(403, &json!({"message": "403 Forbidden"}));
        }
        self.lock().new_token = Some(TOKEN_AFTER_RESET.to_owned());
        Answer::json(201, &json!({"token": TOKEN_AFTER_RESET, "token_expires_at": "2040-01-02T03:04:05Z"}))
    }

    fn create(&self, request: &Request) -> Answer {
        self.lock().created.push(request.json());
        Answer::json(201, &json!({"id": 7, "token": RUNNER_TOKEN, "token_expires_at": null}))
    }

    fn remove_manager(&self, request: &Request) -> Answer {
        let body = request.json();
        let mut state = self.lock();
        let known = state.managers.len();
        state.managers.retain(|id| body["system_id"] != id.as_str());
        Answer::new(if state.managers.len() < known { 204 } else { 404 })
    }
}

/// The only part of a multipart body, with the parameters of the query.
fn multipart(request: &Request) -> Option<Artifact> {
    let boundary = request.header("Content-Type").split_once("boundary=")?.1.to_owned();
    let head_end = request.body.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&request.body[..head_end]).into_owned();
    let tail = format!("\r\n--{boundary}--");
    let content = &request.body[head_end + 4..];
    let end = content.windows(tail.len()).rposition(|window| window == tail.as_bytes())?;
    if !head.contains("name=\"file\"") || head.matches("Content-Disposition").count() != 1 {
        return None;
    }
    let name = head.split_once("filename=\"")?.1.split_once('"')?.0.to_owned();
    let parameter = |key: &str| {
        let pair = request.query.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
        pair.unwrap_or_default().replace("%20", " ").replace('+', " ")
    };
    let (kind, format, expire_in) = (parameter("artifact_type"), parameter("artifact_format"), parameter("expire_in"));
    Some(Artifact { kind, format, expire_in, name, content: content[..end].to_vec(), at: Some(SystemTime::now()) })
}

fn is_live(job: &Job) -> bool {
    matches!(job.state.as_str(), "running" | "canceling")
}

fn own_job<'a>(state: &'a mut State, request: &Request, token: &str) -> Option<&'a mut Job> {
    let name = request.path.split('/').nth(4)?;
    let job = state.jobs.iter_mut().find(|job| match &job.name {
        Some(other) => name == other && job.token == token,
        None => name == job.id.to_string(),
    })?;
    (job.token == token).then_some(job)
}

fn route(request: &Request) -> String {
    let path = request.path.trim_start_matches("/api/v4/");
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        ["jobs", "request"] => format!("{} jobs/request", request.method),
        ["jobs", _, "trace"] => format!("{} trace", request.method),
        ["jobs", _, "artifacts"] => format!("{} artifacts", request.method),
        ["jobs", _] => format!("{} job", request.method),
        _ => format!("{} {path}", request.method),
    }
}
