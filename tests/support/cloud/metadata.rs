//! A strict instance metadata service, version 2 only. A request without a token, through a proxy, or above the rate
//! limit fails the test.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::http::{Answer, Connection, Request, connection, read_request, write_answer};
use crate::support::unique_number;

/// The maximum number of requests per second.
const REQUESTS_A_SECOND: usize = 5;

#[derive(Default)]
struct State {
    items: BTreeMap<String, String>,
    tokens: BTreeMap<String, Instant>,
    /// The real lifetime of tokens, regardless of the requested one.
    token_life: Option<Duration>,
    /// The times of the latest requests, by token: each process has its own token.
    arrivals: BTreeMap<String, VecDeque<Instant>>,
    requests: Vec<String>,
    faults: VecDeque<u16>,
    is_unresponsive: bool,
    violations: Vec<String>,
}

/// The service; its threads run until the process ends.
pub struct Metadata {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Metadata {
    /// An empty service on loopback.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    /// An empty service at another address.
    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("an address");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State::default()));
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&serving);
                thread::spawn(move || serve(connection(stream, None), &state));
            }
        });
        Self { url, state }
    }

    /// Sets an item below `meta-data/`.
    pub fn set(&self, path: &str, value: impl Into<String>) {
        self.lock().items.insert(path.to_owned(), value.into());
    }

    /// Removes an item.
    pub fn remove(&self, path: &str) {
        self.lock().items.remove(path);
    }

    /// The statuses of the responses to the next requests with a token.
    pub fn fail(&self, statuses: impl IntoIterator<Item = u16>) {
        self.lock().faults.extend(statuses);
    }

    /// From now on, requests get no response.
    pub fn stop_responding(&self) {
        self.lock().is_unresponsive = true;
    }

    /// Ends [`Self::stop_responding`].
    pub fn resume_responding(&self) {
        self.lock().is_unresponsive = false;
    }

    /// Limits the lifetime of tokens; invalidates existing ones.
    pub fn shorten_tokens(&self, life: Duration) {
        let mut state = self.lock();
        state.token_life = Some(life);
        state.tokens.clear();
    }

    /// The requests so far: `PUT api/token`, `GET meta-data/instance-id`, …
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// The number of equal requests.
    pub fn count(&self, request: &str) -> usize {
        self.lock().requests.iter().filter(|known| *known == request).count()
    }

    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the thread must not panic")
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        if !thread::panicking() {
            let violations = self.violations();
            assert!(violations.is_empty(), "the metadata service was misused:\n{}", violations.join("\n"));
        }
    }
}

fn serve(mut connection: Connection, state: &Mutex<State>) {
    while let Some(request) = read_request(&mut connection) {
        let answer = {
            let mut state = state.lock().expect("the thread must not panic");
            state.check(&request);
            if state.is_unresponsive { None } else { Some(state.answer(&request)) }
        };
        let Some(answer) = answer else {
            // The client times out and closes the connection.
            let _ = read_request(&mut connection);
            return;
        };
        let date = jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&jiff::Timestamp::try_from(SystemTime::now()).expect("a time"));
        let answer = answer.with("Date", &date.expect("a date")).with("Content-Type", "text/plain");
        if write_answer(connection.get_mut(), &answer).is_err() {
            return;
        }
    }
}

impl State {
    /// Records a request, and the rules that it breaks.
    fn check(&mut self, request: &Request) {
        let path = request.path.strip_prefix("/latest/").unwrap_or(&request.path).to_owned();
        self.requests.push(format!("{} {path}", request.method));
        self.count_arrival(request.header("x-aws-ec2-metadata-token"), &path);
        for header in ["x-forwarded-for", "via", "forwarded"] {
            if !request.header(header).is_empty() {
                self.violations.push(format!("{path} came through a proxy: {header}"));
            }
        }
    }

    fn count_arrival(&mut self, token: &str, path: &str) {
        let now = Instant::now();
        let arrivals = self.arrivals.entry(token.to_owned()).or_default();
        arrivals.push_back(now);
        arrivals.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
        if arrivals.len() > REQUESTS_A_SECOND {
            self.violations.push(format!("{} requests in one second, with {path}", arrivals.len()));
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let Some(path) = request.path.strip_prefix("/latest/") else {
            self.violations.push(format!("{} is not below /latest/", request.path));
            return Answer::new(404);
        };
        match (request.method.as_str(), path) {
            ("PUT", "api/token") => self.token(request),
            ("GET", path) => self.item(request, path),
            (method, path) => {
                self.violations.push(format!("{method} {path} is not a request of this service"));
                Answer::new(405)
            }
        }
    }

    fn token(&mut self, request: &Request) -> Answer {
        const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
        let seconds = request.header(TTL).parse().ok().filter(|seconds| (1..=21_600).contains(seconds));
        let Some(seconds) = seconds else {
            self.violations.push(format!("a token for `{}` seconds", request.header(TTL)));
            return Answer::new(400);
        };
        let token = format!("token-{}==", unique_number());
        let life = self.token_life.unwrap_or(Duration::from_secs(seconds));
        self.tokens.insert(token.clone(), Instant::now() + life);
        Answer::new(200).with(TTL, &seconds.to_string()).body(token)
    }

    fn item(&mut self, request: &Request, path: &str) -> Answer {
        let token = request.header("x-aws-ec2-metadata-token");
        if token.is_empty() {
            self.violations.push(format!("{path} was requested without a token"));
            return Answer::new(401);
        }
        if self.tokens.get(token).is_none_or(|end| *end < Instant::now()) {
            return Answer::new(401);
        }
        if let Some(status) = self.faults.pop_front() {
            return Answer::new(status);
        }
        match path.strip_prefix("meta-data/").and_then(|name| self.items.get(name)) {
            Some(value) => Answer::new(200).body(value.clone()),
            None => Answer::new(404).body("<html>404 - Not Found</html>"),
        }
    }
}
