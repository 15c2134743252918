//! The requests of one connection: faults that a test ordered, the checks of every request, and the route.

use std::collections::VecDeque;
use std::thread;
use std::time::Instant;

use serde_json::json;

use super::super::http::{Answer, Connection, Request, receive, write_answer, write_half};
use super::{ACCESS_TOKEN, Fault, GitLab, REGISTRATION_TOKEN, Received};

impl GitLab {
    pub(super) fn serve(&self, mut connection: Connection) {
        while let Some(request) = receive(&mut connection) {
            let route = route(&request);
            if self.is_unresponsive(&route) {
                return;
            }
            let fault = self.record(&route, &request);
            self.check_headers(&request);
            if let Some(Fault::Slow(delay)) = fault {
                thread::sleep(delay);
            }
            let answer = match &fault {
                Some(Fault::Cut) => return,
                Some(Fault::Answer(answer) | Fault::Half(answer)) => answer.clone(),
                Some(Fault::Slow(_) | Fault::TakeAndCut) | None => self.answer(&route, &request),
            };
            if matches!(fault, Some(Fault::TakeAndCut)) {
                return;
            }
            self.check_repetition(&request, answer.status);
            self.shared.changed.notify_all();
            if matches!(fault, Some(Fault::Half(_))) {
                let _ = write_half(connection.get_mut(), &answer);
                return;
            }
            if write_answer(connection.get_mut(), &answer).is_err() {
                return;
            }
        }
    }

    /// Whether the server gives no response; if so, records the request.
    fn is_unresponsive(&self, route: &str) -> bool {
        let mut state = self.lock();
        if state.is_unresponsive {
            state.unanswered.push((route.to_owned(), Instant::now()));
            self.shared.changed.notify_all();
        }
        state.is_unresponsive
    }

    /// Counts the request. Returns the fault that a test ordered for it.
    fn record(&self, route: &str, request: &Request) -> Option<Fault> {
        let mut state = self.lock();
        let id = request.header("X-Request-Id").to_owned();
        state.requests.push(Received { route: route.to_owned(), id, at: Instant::now() });
        state.faults.get_mut(route).and_then(VecDeque::pop_front)
    }

    fn answer(&self, route: &str, request: &Request) -> Answer {
        match route {
            "POST jobs/request" => self.request_job(request),
            "PATCH trace" => self.append_log(request),
            "PUT job" => self.update_job(request),
            "POST artifacts" => self.take_artifact(request),
            "GET artifacts" => self.give_artifact(request),
            "POST runners/verify" => self.verify(request),
            "POST user/runners" if request.header("PRIVATE-TOKEN") == ACCESS_TOKEN => self.create_runner(request),
            "POST runners" if request.json()["token"] == REGISTRATION_TOKEN => self.create_runner(request),
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
            self.violation(format!("{} {}: another body in the retry", request.method, request.path));
        }
    }
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
