//! Lists and sizes a pool through an operator's program, which exchanges one JSON object per line on its standard input
//! and output.
//!
//! The program is started by the first call and keeps running. If it does not respond in time, sends an invalid
//! response, or ends, the manager kills it and starts it again for the next call. `docs/reference/manager-engine.md`
//! documents the protocol.

mod conversation;

use std::collections::HashSet;
use std::sync::Mutex;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{Engine, EngineError, ErrorKind, Examined, FailedStart, FailureKind, Group, Member, State, Verdict};
use crate::instance::CapacityChange;
use crate::manager::pool::CommandEngine;
use crate::sync;
use conversation::{Broken, Conversation};

/// The maximum number of characters of a response in an error message.
const SHOWN: usize = 200;
/// Letters of the id of an instance.
const LONGEST_ID: usize = 255;

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

/// The response of the program to `group`.
#[derive(Debug, Deserialize)]
struct GroupAnswer {
    desired: Option<u32>,
    #[serde(default)]
    min: u32,
    max: Option<u32>,
    /// Required: an answer without it would mean that every instance has ended.
    members: Vec<MemberAnswer>,
}

#[derive(Debug, Deserialize)]
struct MemberAnswer {
    instance: String,
    #[serde(default)]
    state: StateAnswer,
    #[serde(default = "yes")]
    healthy: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateAnswer {
    Creating,
    #[default]
    Running,
    Terminating,
    Aside,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FailuresAnswer {
    failures: Vec<FailureAnswer>,
}

#[derive(Debug, Deserialize)]
struct FailureAnswer {
    #[serde(deserialize_with = "time")]
    at: Timestamp,
    cause: String,
    #[serde(default)]
    kind: String,
}

/// RFC 3339.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn yes() -> bool {
    true
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
        let answer: GroupAnswer = self.decoded("group", self.ask("group", json!({}))?)?;
        check_ids(&answer.members).map_err(|why| self.error("group", ErrorKind::Nonsense, why))?;
        let member = |member: MemberAnswer| Member {
            instance: member.instance,
            state: match member.state {
                StateAnswer::Creating => State::Creating,
                StateAnswer::Running => State::Running,
                StateAnswer::Terminating => State::Terminating,
                StateAnswer::Aside => State::Aside,
            },
            healthy: member.healthy,
            protected: true,
            detail: String::new(),
        };
        let members: Vec<Member> = answer.members.into_iter().map(member).collect();
        let counted = members.iter().filter(|member| member.state.counts()).count();
        Ok(Group {
            name: self.program.clone(),
            desired_is_counted: answer.desired.is_none(),
            desired: answer.desired.unwrap_or(u32::try_from(counted).unwrap_or(u32::MAX)),
            least: answer.min,
            most: answer.max,
            protects_new: true,
            members,
        })
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
        let answer: FailuresAnswer = self.decoded("failures", answer)?;
        let failure = |failure: FailureAnswer| FailedStart {
            at: failure.at,
            kind: FailureKind::ALL.into_iter().find(|kind| kind.as_str() == failure.kind).unwrap_or(FailureKind::Other),
            cause: shown(&failure.cause),
        };
        let mut all: Vec<FailedStart> =
            answer.failures.into_iter().map(failure).filter(|one| one.at >= since).collect();
        all.sort_by_key(|failure| failure.at);
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

/// Each instance needs an id of its own, in letters that logs and pages can show.
fn check_ids(members: &[MemberAnswer]) -> Result<(), String> {
    let mut known = HashSet::new();
    for MemberAnswer { instance, .. } in members {
        if instance.is_empty() || instance.len() > LONGEST_ID || !instance.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "the answer cannot be used: the id `{}` of an instance must have 1 to {LONGEST_ID} printable ASCII characters",
                shown(instance)
            ));
        }
        if !known.insert(instance) {
            return Err(format!("the answer cannot be used: it lists the instance `{instance}` twice"));
        }
    }
    Ok(())
}

/// One line without control characters, which could move the cursor of a terminal, cut to [`SHOWN`] letters.
fn shown(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "\u{fffd}");
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn engine(program: &str, args: &[&str], timeout: Duration) -> Command {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let settings = CommandEngine { program: program.into(), args, timeout, settings: Default::default() };
        Command::new(&settings, "fleet")
    }

    /// A program with these lines of shell.
    fn program(lines: &str, timeout: Duration) -> Command {
        engine("/bin/sh", &["-c", lines], timeout)
    }

    const LONG: Duration = Duration::from_secs(20);

    fn answering(answer: &str) -> Command {
        program(&format!("read -r init; echo '{{}}'; while read -r line; do printf '%s\\n' '{answer}'; done"), LONG)
    }

    #[test]
    fn a_program_tells_its_group() {
        let group = answering(
            r#"{"desired": 3, "max": 9, "members": [{"instance": "a", "state": "creating"}, {"instance": "b"}], "new": 1}"#,
        );
        let group = group.group().expect("a group");
        assert_eq!((group.desired, group.least, group.most), (3, 0, Some(9)));
        let states: Vec<_> = group.members.iter().map(|member| (member.instance.as_str(), member.state)).collect();
        assert_eq!(states, [("a", State::Creating), ("b", State::Running)]);
        assert_eq!(answering(r#"{"members": [{"instance": "a"}]}"#).group().expect("a group").desired, 1);
    }

    #[test]
    fn requests_are_one_object_a_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("log");
        let script = format!("while read -r line; do echo \"$line\" >>{}; echo '{{}}'; done", log.display());
        let command = program(&script, LONG);
        command.set_target(3).expect("set the target");
        command.terminate("vm-1", CapacityChange::Decrement).expect("terminate the instance");
        assert!(command.failed_starts(Timestamp::UNIX_EPOCH).expect("ask for failed starts").is_empty());
        let expected = "{\"call\":\"init\",\"pool\":\"fleet\",\"settings\":{}}\n{\"call\":\"set_target\",\"instances\":3}\n{\"call\":\"terminate\",\"decrement\":true,\"instance\":\"vm-1\"}\n\
                        {\"call\":\"failures\",\"since\":\"1970-01-01T00:00:00Z\"}\n";
        assert_eq!(std::fs::read_to_string(log).expect("a log"), expected);
    }

    #[test]
    fn an_error_of_the_program_names_it_and_its_words() {
        let error = |answer: &str| answering(answer).set_target(1).expect_err("an error");
        let refused = error(r#"{"error": "the cluster\nis full"}"#);
        assert_eq!(
            (refused.kind, refused.to_string().as_str()),
            (ErrorKind::Refused, "/bin/sh set_target: the cluster is full")
        );
        assert_eq!(error(r#"{"error": "later", "temporary": true}"#).kind, ErrorKind::Temporary);
        assert_eq!(error(r#"{"error": "unknown", "gone": true}"#).kind, ErrorKind::NoInstance);
        // An error that is not text is one all the same.
        assert_eq!(error(r#"{"error": {"code": 42}}"#).why, "{\"code\":42}");
        assert_eq!(error(r#"{"error": "\u001b[31mred"}"#).why, "\u{fffd}[31mred");
    }

    #[test]
    fn failures_have_a_kind() {
        let answer = r#"{"failures": [{"at": "2026-01-02T00:00:00Z", "cause": "no more", "kind": "quota"},
            {"at": "2026-01-01T00:00:00Z", "cause": "old"}]}"#
            .replace('\n', " ");
        let since = "2026-01-01T12:00:00Z".parse().expect("a time");
        let failures = answering(&answer).failed_starts(since).expect("ask for failed starts");
        assert_eq!((failures.len(), failures[0].kind), (1, FailureKind::Quota));
    }

    #[test]
    fn nonsense_is_an_error_and_the_next_call_starts_the_program_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("mark");
        let script = format!(
            "if [ -e {0} ]; then while read -r line; do echo '{{}}'; done; else : >{0}; read -r line; echo '{{}}'; read -r line; echo nonsense; cat; fi",
            mark.display()
        );
        let command = program(&script, LONG);
        let error = command.set_target(1).expect_err("an invalid answer must be refused");
        assert_eq!(error.kind, ErrorKind::Nonsense);
        assert!(
            error.to_string().contains("the answer is not JSON") && error.to_string().ends_with("nonsense"),
            "{error}"
        );
        command.set_target(1).expect("start the program again");
        for answer in ["[]", "3"] {
            let error = answering(answer).set_target(1).expect_err("must be refused");
            assert!(error.why.starts_with("the answer is not a JSON object"), "{error}");
        }
        // Without a list of members, nothing says that there is none.
        for answer in [
            "{}",
            r#"{"members": 3}"#,
            r#"{"members": null}"#,
            r#"{"desired": -1, "members": []}"#,
            r#"{"members": [{"id": "a"}]}"#,
            r#"{"members": [{"instance": "a", "state": "zombie"}]}"#,
            r#"{"members": [{"instance": ""}]}"#,
            r#"{"members": [{"instance": "a b"}]}"#,
            r#"{"members": [{"instance": "a"}, {"instance": "a"}]}"#,
        ] {
            let error = answering(answer).group().expect_err("must be refused");
            assert_eq!(error.kind, ErrorKind::Nonsense, "{answer}");
            assert!(error.why.starts_with("the answer cannot be used"), "{answer}: {error}");
        }
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let pid = directory.path().join("pid");
        let command = program(
            &format!("sleep 1000 & echo $! >{}; read -r line; wait", pid.display()),
            Duration::from_millis(300),
        );
        let began = Instant::now();
        let error = command.group().expect_err("a timeout must be reported");
        assert_eq!(error.kind, ErrorKind::Temporary);
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        let sleeper = std::fs::read_to_string(pid).expect("a process id");
        let path = format!("/proc/{}/stat", sleeper.trim());
        let gone = || std::fs::read_to_string(&path).map_or(true, |stat| stat.contains(") Z "));
        let until = Instant::now() + Duration::from_secs(30);
        while !gone() {
            assert!(Instant::now() < until, "the program's child lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_program_that_is_missing_or_ends_is_an_error() {
        let error =
            engine("/nowhere/at/all", &[], LONG).group().expect_err("a missing program must be reported").to_string();
        assert!(error.contains("cannot be started") && error.contains("correct `command`"), "{error}");
        let error = program("exit 3", LONG).group().expect_err("an exit status must be reported").to_string();
        assert!(error.contains("the program ended"), "{error}");
        let endless = program("while :; do printf xxxxxxxxxxxxxxxx; done", LONG)
            .group()
            .expect_err("endless output must be refused");
        assert_eq!(endless.why, "the answer is longer than 1 MiB");
    }
}
