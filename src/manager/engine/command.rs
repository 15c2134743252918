//! Lists and sizes a pool through an operator's program, which exchanges one JSON object per line on its standard input
//! and output.
//!
//! The program is started by the first call and keeps running. If it does not respond in time, sends an invalid
//! response, or ends, the manager kills it and starts it again for the next call. `docs/reference/manager-engine.md`
//! documents the protocol.

mod conversation;
mod responses;

use std::sync::Mutex;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Engine, EngineError, ErrorKind, Examined, FailedStart, Group, Verdict};
use crate::instance::CapacityChange;
use crate::manager::pool::CommandEngine;
use crate::sync;
use conversation::{Broken, Conversation};
use responses::{FailureEntry, FailuresResponse, GroupResponse, shown};

/// A program.
pub struct Command {
    program: String,
    settings: CommandEngine,
    pool: String,
    kept: Mutex<Kept>,
}

/// The program between two calls.
#[derive(Default)]
struct Kept {
    conversation: Option<Conversation>,
    /// The last call failed. While calls fail, each one starts the program again, so these starts are not logged at level
    /// info.
    fails: bool,
}

impl Command {
    /// The program that `plugin_config` names. Does not start it.
    pub fn new(settings: &CommandEngine, pool: &str) -> Self {
        Self {
            program: settings.program.display().to_string(),
            settings: settings.clone(),
            pool: pool.to_owned(),
            kept: Mutex::default(),
        }
    }

    /// Sends a request and returns the response: an object without `error`.
    fn ask(&self, call: &str, more: Value) -> Result<Value, EngineError> {
        let mut kept = sync::lock(&self.kept);
        let mut conversation = match kept.conversation.take().filter(Conversation::is_alive) {
            Some(conversation) => conversation,
            None => {
                let announced = if kept.fails { log::Level::Debug } else { log::Level::Info };
                // Until it has answered.
                kept.fails = true;
                self.start(announced)?
            }
        };
        let answer = self.exchange(&mut conversation, call, more);
        // Kills a program that did not respond correctly: its next response might belong to this request.
        kept.fails = !answer.as_ref().map_or_else(|failed| failed.keeps_program, |_| true);
        if !kept.fails {
            kept.conversation = Some(conversation);
        }
        answer.map_err(|failed| failed.error)
    }

    /// Starts the program and sends it the name of the pool and the other keys of `plugin_config`.
    fn start(&self, announced: log::Level) -> Result<Conversation, EngineError> {
        let mut conversation = Conversation::start(&self.program, &self.settings.args).map_err(|why| {
            self.error("", ErrorKind::Refused, format!("cannot be started: {why}; correct `command` in plugin_config"))
        })?;
        log::log!(announced, "engine program started program={} pid={}", self.program, conversation.id());
        let settings = json!({ "pool": self.pool, "settings": self.settings.settings });
        self.exchange(&mut conversation, "init", settings).map_err(|failed| failed.error)?;
        Ok(conversation)
    }

    fn exchange(&self, conversation: &mut Conversation, call: &str, more: Value) -> Result<Value, Failed> {
        let broken = |kind, why: String| Failed { error: self.error(call, kind, why), keeps_program: false };
        let mut request = json!({ "call": call });
        if let (Some(request), Value::Object(more)) = (request.as_object_mut(), more) {
            request.extend(more);
        }
        let timeout = self.settings.timeout;
        let line = conversation.ask(&request.to_string(), timeout).map_err(|why| match why {
            Broken::Silent => broken(
                ErrorKind::Temporary,
                format!("no answer within {} s; the program was killed", timeout.as_secs_f64()),
            ),
            Broken::Ended(status) => broken(ErrorKind::Temporary, format!("the program ended ({status})")),
            Broken::OutputClosed => broken(ErrorKind::Temporary, "the program closed its output".to_owned()),
            Broken::TooLong => broken(ErrorKind::Nonsense, "the answer is longer than 1 MiB".to_owned()),
            Broken::Io(why) => broken(ErrorKind::Temporary, why),
        })?;
        let answer: Value = serde_json::from_str(&line)
            .map_err(|why| broken(ErrorKind::Nonsense, format!("the answer is not JSON ({why}): {}", shown(&line))))?;
        let Some(object) = answer.as_object() else {
            return Err(broken(ErrorKind::Nonsense, format!("the answer is not a JSON object: {}", shown(&line))));
        };
        let why = match object.get("error") {
            None | Some(Value::Null | Value::Bool(false)) => return Ok(answer),
            Some(Value::String(why)) => why.clone(),
            Some(other) => other.to_string(),
        };
        let is = |key: &str| object.get(key) == Some(&Value::Bool(true));
        let kind = match () {
            () if is("gone") => ErrorKind::NoInstance,
            () if is("at_minimum") => ErrorKind::AtMinimum,
            () if is("temporary") => ErrorKind::Temporary,
            () => ErrorKind::Refused,
        };
        Err(Failed { error: self.error(call, kind, shown(&why)), keeps_program: true })
    }

    fn error(&self, call: &str, kind: ErrorKind, why: String) -> EngineError {
        EngineError { kind, call: format!("{} {call}", self.program).trim_end().to_owned(), why }
    }

    fn decoded<T: for<'de> Deserialize<'de>>(&self, call: &str, answer: Value) -> Result<T, EngineError> {
        let text = answer.to_string();
        serde_json::from_value(answer).map_err(|why| {
            self.error(call, ErrorKind::Nonsense, format!("the answer cannot be used ({why}): {}", shown(&text)))
        })
    }
}

/// A request that failed.
struct Failed {
    error: EngineError,
    /// Whether the program follows the protocol and can be used for the next request.
    keeps_program: bool,
}

impl Engine for Command {
    fn group(&self) -> Result<Group, EngineError> {
        let answer: GroupResponse = self.decoded("group", self.ask("group", json!({}))?)?;
        answer.into_group(&self.program).map_err(|why| self.error("group", ErrorKind::Nonsense, why))
    }

    fn set_target(&self, instances: u32) -> Result<(), EngineError> {
        self.ask("set_target", json!({ "instances": instances })).map(drop)
    }

    fn terminate(&self, instance: &str, capacity: CapacityChange) -> Result<(), EngineError> {
        let decrement = capacity == CapacityChange::Decrement;
        self.ask("terminate", json!({ "instance": instance, "decrement": decrement })).map(drop)
    }

    fn ended(&self, instances: &[String]) -> Result<Vec<String>, EngineError> {
        // The program must list every instance that exists, so the others have ended.
        Ok(instances.to_vec())
    }

    fn failed_starts(&self, since: Timestamp) -> Result<Vec<FailedStart>, EngineError> {
        let since_text = since.to_string();
        let answer = self.ask("failures", json!({ "since": since_text }))?;
        let answer: FailuresResponse = self.decoded("failures", answer)?;
        let mut all: Vec<FailedStart> =
            answer.failures.into_iter().map(FailureEntry::into_failed_start).filter(|one| one.at >= since).collect();
        all.sort_unstable_by_key(|failure| failure.at);
        Ok(all)
    }

    fn keep_held(&self, _instance: &str) -> Result<(), EngineError> {
        Ok(())
    }

    fn release_held(&self, _instance: &str) -> Result<(), EngineError> {
        Ok(())
    }

    fn examine_permissions(&self) -> Vec<Examined> {
        Vec::new()
    }

    fn examine(&self, _max_instances: Option<u32>) -> Vec<Examined> {
        let (verdict, text) = match self.group() {
            Ok(group) => {
                let most = group.most.map_or_else(|| "without limit".to_owned(), |most| format!("at most {most}"));
                (Verdict::Good, format!("{}: {} instances, {most}", group.name, group.members.len()))
            }
            Err(error) => (Verdict::Bad, error.to_string()),
        };
        vec![Examined { what: "engine", verdict, text }]
    }
}

#[cfg(test)]
mod tests;
