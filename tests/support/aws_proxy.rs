//! A proxy for moto. It forwards calls, except those that a test refuses or answers, and a test may change responses.
//! So it provides what moto lacks: throttling, outages, lifecycle states.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};

use super::cloud::autoscaling::parameters;
use super::http::{Answer, Connection, Request, listen, receive, write_answer};
use super::moto::Moto;

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    pub action: String,
    pub parameters: BTreeMap<String, String>,
    /// The time in the signature, `20260706T120000Z`.
    pub signed: String,
}

/// A test's response to a call; `None` to forward the call.
type Rule = dyn Fn(&Call) -> Option<Answer> + Send + Sync;
/// A test's change of a response.
type Edit = dyn Fn(&Call, String) -> String + Send + Sync;

#[derive(Default)]
struct State {
    next: BTreeMap<String, VecDeque<Answer>>,
    rule: Option<Arc<Rule>>,
    edit: Option<Arc<Edit>>,
    calls: Vec<Call>,
}

/// The proxy; it runs until the process ends.
#[derive(Clone)]
pub struct AwsProxy {
    pub url: String,
    target: String,
    state: Arc<Mutex<State>>,
}

impl AwsProxy {
    pub fn start(moto: &Moto) -> Self {
        let mut front = Self {
            url: String::new(),
            target: moto.url.trim_start_matches("http://").to_owned(),
            state: Arc::default(),
        };
        let serving = front.clone();
        front.url = listen(None, move |connection| serving.serve(connection));
        front
    }

    /// Sets the responses to the next calls of an action.
    pub fn answer(&self, action: &str, answers: impl IntoIterator<Item = Answer>) {
        self.lock().next.entry(action.to_owned()).or_default().extend(answers);
    }

    /// From now on, calls for which the rule returns a response are not forwarded.
    pub fn rule(&self, rule: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static) {
        self.lock().rule = Some(Arc::new(rule));
    }

    /// From now on, the bodies of responses are changed.
    pub fn edit(&self, edit: impl Fn(&Call, String) -> String + Send + Sync + 'static) {
        self.lock().edit = Some(Arc::new(edit));
    }

    /// The calls of an action so far.
    pub fn calls(&self, action: &str) -> Vec<Call> {
        self.lock().calls.iter().filter(|call| call.action == action).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the thread must not panic")
    }

    fn serve(&self, mut connection: Connection) {
        while let Some(request) = receive(&mut connection) {
            let parameters = parameters(&request.body);
            let action = parameters.get("Action").cloned().unwrap_or_default();
            let call = Call { action, parameters, signed: request.header("X-Amz-Date").to_owned() };
            let (next, rule, edit) = {
                let mut state = self.lock();
                state.calls.push(call.clone());
                let next = state.next.get_mut(&call.action).and_then(VecDeque::pop_front);
                (next, state.rule.clone(), state.edit.clone())
            };
            let answer = next.or_else(|| rule.and_then(|rule| rule(&call)));
            let Some(answer) = answer.or_else(|| self.pass(&request, &call, edit.as_deref())) else { return };
            if write_answer(connection.get_mut(), &answer).is_err() {
                return;
            }
        }
    }

    fn pass(&self, request: &Request, call: &Call, edit: Option<&Edit>) -> Option<Answer> {
        let mut stream = TcpStream::connect(&self.target).ok()?;
        let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        let mut head = format!("{} {}{query} HTTP/1.1\r\nconnection: close\r\n", request.method, request.path);
        for (name, value) in request.headers.iter().filter(|(name, _)| *name != "connection") {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes()).ok()?;
        stream.write_all(&request.body).ok()?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let body = edit.map_or_else(|| body.to_owned(), |edit| edit(call, body.to_owned()));
        Some(Answer::new(status).with("Content-Type", "text/xml").body(body))
    }
}
