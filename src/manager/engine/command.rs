//! Lists and sizes a pool through an operator's program, which exchanges one JSON object per line on its standard input
//! and output.
//!
//! The first call starts the program, which then keeps running. If the program does not respond in time, sends an
//! invalid response, or ends, the manager kills it and starts it again for the next call.
//! `docs/reference/manager-engine.md` documents the protocol.

mod conversation;
mod responses;

use std::sync::Mutex;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Check, CheckResult, Engine, EngineError, ErrorKind, FailedStart, Group};
use crate::instance::CapacityChange;
use crate::manager::pool::CommandEngine;
use crate::sync;
use conversation::{Conversation, NoResponse};
use responses::{FailureEntry, FailuresResponse, GroupResponse, printable_line};

/// An engine program.
pub struct EngineProgram {
    program: String,
    settings: CommandEngine,
    pool: String,
    state: Mutex<ProgramState>,
}

/// The program between two calls.
#[derive(Default)]
struct ProgramState {
    conversation: Option<Conversation>,
    /// The last call failed. While calls fail, each one starts the program again, so these starts are not logged at
    /// level info.
    fails: bool,
}

impl EngineProgram {
    /// The program that `plugin_config` names. Does not start it.
    pub fn new(settings: &CommandEngine, pool: &str) -> Self {
        Self {
            program: settings.program.display().to_string(),
            settings: settings.clone(),
            pool: pool.to_owned(),
            state: Mutex::default(),
        }
    }

    /// Sends a request, and returns the response: an object without `error`. Starts the program if it does not run.
    fn request(&self, call: &str, parameters: Value) -> Result<Value, EngineError> {
        let mut state = sync::lock(&self.state);
        let mut conversation = match state.conversation.take().filter(Conversation::is_alive) {
            Some(conversation) => conversation,
            None => {
                let level = if state.fails { log::Level::Debug } else { log::Level::Info };
                // The call counts as failed until the program has responded.
                state.fails = true;
                self.start(level)?
            }
        };
        let result = self.exchange(&mut conversation, call, parameters);
        // Kills a program that did not respond correctly: its next response might belong to this request.
        let keeps_program = result.as_ref().map_or_else(|failed| failed.keeps_program, |_| true);
        state.fails = !keeps_program;
        state.conversation = keeps_program.then_some(conversation);
        result.map_err(|failed| failed.error)
    }

    /// Starts the program, and sends it the name of the pool and the other keys of `plugin_config`.
    fn start(&self, level: log::Level) -> Result<Conversation, EngineError> {
        let mut conversation = Conversation::start(&self.program, &self.settings.args).map_err(|why| {
            self.error("", ErrorKind::Refused, format!("cannot be started: {why}; correct `command` in plugin_config"))
        })?;
        log::log!(level, "engine program started program={} pid={}", self.program, conversation.id());
        let settings = json!({ "pool": self.pool, "settings": self.settings.settings });
        self.exchange(&mut conversation, "init", settings).map_err(|failed| failed.error)?;
        Ok(conversation)
    }

    fn exchange(&self, conversation: &mut Conversation, call: &str, parameters: Value) -> Result<Value, FailedRequest> {
        let broken = |kind, why: String| FailedRequest { error: self.error(call, kind, why), keeps_program: false };
        let mut request = json!({ "call": call });
        if let (Some(request), Value::Object(parameters)) = (request.as_object_mut(), parameters) {
            request.extend(parameters);
        }
        let timeout = self.settings.timeout;
        let line = conversation.request(&request.to_string(), timeout).map_err(|why| match why {
            NoResponse::Timeout => broken(
                ErrorKind::Temporary,
                format!("no response within {} s; the program was killed", timeout.as_secs_f64()),
            ),
            NoResponse::Ended(status) => broken(ErrorKind::Temporary, format!("the program ended ({status})")),
            NoResponse::OutputClosed => broken(ErrorKind::Temporary, "the program closed its output".to_owned()),
            NoResponse::TooLong => broken(ErrorKind::InvalidResponse, "the response is longer than 1 MiB".to_owned()),
            NoResponse::Io(why) => broken(ErrorKind::Temporary, why),
        })?;
        let response: Value = serde_json::from_str(&line).map_err(|why| {
            broken(ErrorKind::InvalidResponse, format!("the response is not JSON ({why}): {}", printable_line(&line)))
        })?;
        let Some(object) = response.as_object() else {
            let why = format!("the response is not a JSON object: {}", printable_line(&line));
            return Err(broken(ErrorKind::InvalidResponse, why));
        };
        match self.reported_error(call, object) {
            Some(error) => Err(FailedRequest { error, keeps_program: true }),
            None => Ok(response),
        }
    }

    /// The error that the program reports in its response.
    fn reported_error(&self, call: &str, response: &Map<String, Value>) -> Option<EngineError> {
        let why = match response.get("error") {
            None | Some(Value::Null | Value::Bool(false)) => return None,
            Some(Value::String(why)) => why.clone(),
            Some(other) => other.to_string(),
        };
        let is_true = |key: &str| response.get(key) == Some(&Value::Bool(true));
        let kind = if is_true("gone") {
            ErrorKind::NoInstance
        } else if is_true("at_minimum") {
            ErrorKind::AtMinimum
        } else if is_true("temporary") {
            ErrorKind::Temporary
        } else {
            ErrorKind::Refused
        };
        Some(self.error(call, kind, printable_line(&why)))
    }

    fn error(&self, call: &str, kind: ErrorKind, why: String) -> EngineError {
        EngineError { kind, call: format!("{} {call}", self.program).trim_end().to_owned(), why }
    }

    fn decode<T: for<'de> Deserialize<'de>>(&self, call: &str, response: Value) -> Result<T, EngineError> {
        let text = response.to_string();
        serde_json::from_value(response).map_err(|why| {
            let why = format!("the response is invalid ({why}): {}", printable_line(&text));
            self.error(call, ErrorKind::InvalidResponse, why)
        })
    }
}

/// A request that failed.
struct FailedRequest {
    error: EngineError,
    /// Whether the program follows the protocol and can be used for the next request.
    keeps_program: bool,
}

impl Engine for EngineProgram {
    fn group(&self) -> Result<Group, EngineError> {
        let response: GroupResponse = self.decode("group", self.request("group", json!({}))?)?;
        response.into_group(&self.program).map_err(|why| self.error("group", ErrorKind::InvalidResponse, why))
    }

    fn set_desired_capacity(&self, instances: u32) -> Result<(), EngineError> {
        self.request("set_target", json!({ "instances": instances })).map(drop)
    }

    fn terminate(&self, instance: &str, capacity: CapacityChange) -> Result<(), EngineError> {
        let decrement = capacity == CapacityChange::Decrement;
        self.request("terminate", json!({ "instance": instance, "decrement": decrement })).map(drop)
    }

    fn terminated_among(&self, instances: &[String]) -> Result<Vec<String>, EngineError> {
        // The program must list every instance that exists, so the others have ended.
        Ok(instances.to_vec())
    }

    fn failed_starts(&self, since: Timestamp) -> Result<Vec<FailedStart>, EngineError> {
        let since_text = since.to_string();
        let response = self.request("failures", json!({ "since": since_text }))?;
        let response: FailuresResponse = self.decode("failures", response)?;
        let all = response.failures.into_iter().map(FailureEntry::into_failed_start);
        let mut recent: Vec<FailedStart> = all.filter(|failed| failed.at >= since).collect();
        recent.sort_unstable_by_key(|failed| failed.at);
        Ok(recent)
    }

    fn extend_termination_delay(&self, _instance: &str) -> Result<(), EngineError> {
        Ok(())
    }

    fn end_termination_delay(&self, _instance: &str) -> Result<(), EngineError> {
        Ok(())
    }

    fn check_permissions(&self) -> Vec<Check> {
        Vec::new()
    }

    fn check(&self, _max_instances: Option<u32>) -> Vec<Check> {
        let (result, text) = match self.group() {
            Ok(group) => {
                let most = group.max_size.map_or_else(|| "without limit".to_owned(), |most| format!("at most {most}"));
                (CheckResult::Passed, format!("{}: {} instances, {most}", group.name, group.members.len()))
            }
            Err(error) => (CheckResult::Failed, error.to_string()),
        };
        vec![Check { subject: "engine", result, text }]
    }
}

#[cfg(test)]
mod tests;
