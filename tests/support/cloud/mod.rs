//! One EC2 instance in an Auto Scaling group: a metadata service and an Auto Scaling service with a common state.

pub mod autoscaling;
pub mod metadata;
mod signature;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

pub use autoscaling::{Call, Group, refusal};
pub use metadata::Metadata;

use crate::support::gitlab::Fault;
use crate::support::http::{Answer, Connection, Request, listen, read_request, write_answer, write_half};
use crate::support::unique_number;

pub const REGION: &str = "eu-west-1";

struct State {
    group: Group,
    faults: BTreeMap<String, VecDeque<Fault>>,
    /// Actions that are refused: status and code.
    refused: BTreeMap<String, (u16, String)>,
    /// The actions of the refused calls.
    refusals: Vec<String>,
    secret_key: String,
    access_key: String,
    session_token: String,
    /// The delay until the metadata service shows a decision of the group.
    lag: Duration,
}

/// The cloud of one test. Fails the test if a rule was broken.
pub struct Cloud {
    /// The id of the instance.
    pub instance: String,
    pub metadata: Arc<Metadata>,
    url: String,
    state: Arc<Mutex<State>>,
}

/// Serves requests.
#[derive(Clone)]
struct Server {
    instance: String,
    metadata: Arc<Metadata>,
    state: Arc<Mutex<State>>,
}

impl Cloud {
    /// A spot instance in service, in the group `builders` (desired capacity 3, minimum 0, no hooks).
    pub fn start() -> Self {
        Self::start_with(Metadata::start())
    }

    /// The same with an existing metadata service.
    pub fn start_with(metadata: Metadata) -> Self {
        let instance = format!("i-{:017x}", unique_number());
        let metadata = Arc::new(metadata);
        let state = State {
            group: Group::new(),
            faults: BTreeMap::new(),
            refused: BTreeMap::new(),
            refusals: Vec::new(),
            access_key: String::new(),
            secret_key: String::new(),
            session_token: String::new(),
            lag: Duration::ZERO,
        };
        let state = Arc::new(Mutex::new(state));
        let server = Server { instance: instance.clone(), metadata: Arc::clone(&metadata), state: Arc::clone(&state) };
        let url = listen(None, move |connection| server.serve(connection));
        let cloud = Self { instance, metadata, url, state };
        cloud.metadata.set("instance-id", &cloud.instance);
        cloud.metadata.set("instance-life-cycle", "spot");
        cloud.metadata.set("placement/region", REGION);
        cloud.metadata.set("autoscaling/target-lifecycle-state", "InService");
        cloud.metadata.set("tags/instance/aws:autoscaling:groupName", "builders");
        cloud.metadata.set("iam/security-credentials/", "builder");
        cloud.rotate_credentials();
        cloud
    }

    /// The variables for the agent's environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs =
            [("AWS_EC2_METADATA_SERVICE_ENDPOINT", &self.metadata.url), ("AWS_ENDPOINT_URL_AUTO_SCALING", &self.url)];
        pairs.map(|(name, value)| (name.to_owned(), value.clone())).to_vec()
    }

    /// Replaces the credentials of the instance profile; invalidates the old ones.
    pub fn rotate_credentials(&self) {
        let number = unique_number();
        let mut state = self.lock();
        state.access_key = format!("ASIA{number}");
        state.secret_key = format!("secret+/{number}");
        state.session_token = format!("session/token+{number}==");
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(6);
        let credentials = serde_json::json!({
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": state.access_key,
            "SecretAccessKey": state.secret_key,
            "Token": state.session_token,
            "Expiration": expires.to_string(),
        });
        self.metadata.set("iam/security-credentials/builder", credentials.to_string());
    }

    pub fn change(&self, change: impl FnOnce(&mut Group)) {
        change(&mut self.lock().group);
    }

    /// Reads the state of the group.
    pub fn read<T>(&self, read: impl FnOnce(&Group) -> T) -> T {
        read(&self.lock().group)
    }

    /// Makes the next calls of an action fail.
    pub fn fail(&self, action: &str, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.entry(action.to_owned()).or_default().extend(faults);
    }

    /// Refuses an action with this status and code, until [`Self::allow`].
    pub fn refuse(&self, action: &str, status: u16, code: &str) {
        self.lock().refused.insert(action.to_owned(), (status, code.to_owned()));
    }

    /// The number of calls of an action that were refused.
    pub fn refusals(&self, action: &str) -> usize {
        self.lock().refusals.iter().filter(|refused| *refused == action).count()
    }

    /// Ends [`Self::refuse`].
    pub fn allow(&self, action: &str) {
        self.lock().refused.remove(action);
    }

    /// Delays the announcement of the group's decisions by the metadata service.
    pub fn set_lag(&self, lag: Duration) {
        self.lock().lag = lag;
    }

    /// The group terminates the instance.
    pub fn scale_in(&self) {
        let mut state = self.lock();
        state.group.end();
        state.group.desired -= 1;
        self.metadata.set("autoscaling/target-lifecycle-state", "Terminated");
    }

    /// Announces an interruption of the instance after this time.
    pub fn interrupt(&self, after: Duration) {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::try_from(after).expect("a duration");
        let at = at.strftime("%Y-%m-%dT%H:%M:%SZ");
        self.metadata.set("spot/instance-action", format!("{{\"action\": \"terminate\", \"time\": \"{at}\"}}"));
    }

    /// Recommends a rebalance.
    pub fn recommend_rebalance(&self) {
        let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        self.metadata.set("events/recommendations/rebalance", format!("{{\"noticeTime\": \"{at}\"}}"));
    }

    /// The calls of an action so far.
    pub fn calls(&self, action: &str) -> Vec<Call> {
        self.read(|group| group.calls.iter().filter(|call| call.action == action).cloned().collect())
    }

    /// Waits until a condition holds.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Group) -> bool) {
        super::wait_or_explain(|| self.read(&holds), || format!("{what}; {:#?}", self.lock().group));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("the thread must not panic");
        state.group.expire_hooks();
        state
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if !thread::panicking() {
            let violations = self.read(|group| group.violations.clone());
            assert!(violations.is_empty(), "Auto Scaling was misused:\n{}", violations.join("\n"));
        }
    }
}

impl Server {
    fn serve(&self, mut connection: Connection) {
        while let Some(request) = read_request(&mut connection) {
            let action = action(&request);
            let fault = self.lock().faults.get_mut(&action).and_then(VecDeque::pop_front);
            let answer = match fault {
                Some(Fault::Cut) => return,
                Some(Fault::TakeAndCut) => {
                    self.answer(&request);
                    return;
                }
                Some(Fault::Half(answer)) => {
                    let _ = write_half(connection.get_mut(), &answer);
                    return;
                }
                Some(Fault::Answer(answer)) => answer,
                Some(Fault::Slow(wait)) => {
                    thread::sleep(wait);
                    self.answer(&request)
                }
                None => self.answer(&request),
            };
            if write_answer(connection.get_mut(), &answer).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let mut state = self.lock();
        let is_old = request.header("authorization").contains("Credential=ASIA")
            && !request.header("authorization").contains(&state.access_key);
        if is_old {
            return refusal(403, "ExpiredToken", "The security token included in the request is expired");
        }
        let expected = signature::Expected {
            access_key: &state.access_key,
            secret_key: &state.secret_key,
            session_token: Some(&state.session_token),
            region: REGION,
            service: "autoscaling",
        };
        if let Err(why) = signature::check(request, &expected) {
            state.group.violations.push(why);
            return refusal(403, "SignatureDoesNotMatch", "The request signature does not match");
        }
        let kind = request.header("content-type");
        if (request.method.as_str(), request.path.as_str()) != ("POST", "/")
            || !kind.starts_with("application/x-www-form-urlencoded")
        {
            let line = format!("{} {} {kind}", request.method, request.path);
            state.group.violations.push(format!("not a call of the API: {line}"));
        }
        let action = action(request);
        if let Some((status, code)) = state.refused.get(&action).cloned() {
            state.refusals.push(action);
            let message = "User: arn:aws:sts::1:assumed-role/builder/i is not authorized to perform it";
            return refusal(status, &code, message);
        }
        let was_ending = state.group.is_ending();
        let answer = state.group.answer(&self.instance, request);
        if state.group.is_ending() && !was_ending {
            let (metadata, lag) = (Arc::clone(&self.metadata), state.lag);
            let announce = move || metadata.set("autoscaling/target-lifecycle-state", "Terminated");
            match lag.is_zero() {
                true => announce(),
                false => drop(thread::spawn(move || {
                    thread::sleep(lag);
                    announce();
                })),
            }
        }
        answer
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("the thread must not panic");
        state.group.expire_hooks();
        state
    }
}

fn action(request: &Request) -> String {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    body.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default().to_owned()
}
