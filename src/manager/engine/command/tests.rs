use std::time::{Duration, Instant};

use super::*;
use crate::manager::engine::{FailureKind, MemberState};

fn engine(program: &str, args: &[&str], timeout: Duration) -> EngineProgram {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let settings = CommandEngine { program: program.into(), args, timeout, settings: Default::default() };
    EngineProgram::new(&settings, "fleet")
}

/// A program with these lines of shell.
fn program(lines: &str, timeout: Duration) -> EngineProgram {
    engine("/bin/sh", &["-c", lines], timeout)
}

const LONG: Duration = Duration::from_secs(20);

fn responding(response: &str) -> EngineProgram {
    program(&format!("read -r init; echo '{{}}'; while read -r line; do printf '%s\\n' '{response}'; done"), LONG)
}

#[test]
fn a_program_lists_its_group() {
    let group = responding(
        r#"{"desired": 3, "max": 9, "members": [{"instance": "a", "state": "creating"}, {"instance": "b"}], "new": 1}"#,
    );
    let group = group.group().expect("a group");
    assert_eq!((group.desired, group.min_size, group.max_size), (3, 0, Some(9)));
    let states: Vec<_> = group.members.iter().map(|member| (member.instance.as_str(), member.state)).collect();
    assert_eq!(states, [("a", MemberState::Creating), ("b", MemberState::Running)]);
    assert_eq!(responding(r#"{"members": [{"instance": "a"}]}"#).group().expect("a group").desired, 1);
}

#[test]
fn requests_are_one_object_a_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let script = format!("while read -r line; do echo \"$line\" >>{}; echo '{{}}'; done", log.display());
    let program = program(&script, LONG);
    program.set_desired_capacity(3).expect("set the target");
    program.terminate("vm-1", CapacityChange::Decrement).expect("terminate the instance");
    assert!(program.failed_starts(Timestamp::UNIX_EPOCH).expect("ask for failed starts").is_empty());
    let expected = "{\"call\":\"init\",\"pool\":\"fleet\",\"settings\":{}}\n{\"call\":\"set_target\",\"instances\":3}\n{\"call\":\"terminate\",\"decrement\":true,\"instance\":\"vm-1\"}\n\
                    {\"call\":\"failures\",\"since\":\"1970-01-01T00:00:00Z\"}\n";
    assert_eq!(std::fs::read_to_string(log).expect("a log"), expected);
}

#[test]
fn an_error_names_the_program_and_quotes_its_message() {
    let error = |response: &str| responding(response).set_desired_capacity(1).expect_err("an error");
    let refused = error(r#"{"error": "the cluster\nis full"}"#);
    assert_eq!(
        (refused.kind, refused.to_string().as_str()),
        (ErrorKind::Refused, "/bin/sh set_target: the cluster is full")
    );
    assert_eq!(error(r#"{"error": "later", "temporary": true}"#).kind, ErrorKind::Temporary);
    assert_eq!(error(r#"{"error": "unknown", "gone": true}"#).kind, ErrorKind::NoInstance);
    // An error that is not text is quoted as JSON.
    assert_eq!(error(r#"{"error": {"code": 42}}"#).why, "{\"code\":42}");
    assert_eq!(error(r#"{"error": "\u001b[31mred"}"#).why, "\u{fffd}[31mred");
}

#[test]
fn failed_starts_have_a_kind() {
    let failures = r#"{"failures": [{"at": "2026-01-02T00:00:00Z", "cause": "no more", "kind": "quota"},
        {"at": "2026-01-01T00:00:00Z", "cause": "old"}]}"#
        .replace('\n', " ");
    let since = "2026-01-01T12:00:00Z".parse().expect("a time");
    let failures = responding(&failures).failed_starts(since).expect("ask for failed starts");
    assert_eq!((failures.len(), failures[0].kind), (1, FailureKind::Quota));
}

#[test]
fn an_invalid_response_is_an_error_and_the_next_call_starts_the_program_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mark = directory.path().join("mark");
    let script = format!(
        "if [ -e {0} ]; then while read -r line; do echo '{{}}'; done; else : >{0}; read -r line; echo '{{}}'; read -r line; echo nonsense; cat; fi",
        mark.display()
    );
    let program = program(&script, LONG);
    let error = program.set_desired_capacity(1).expect_err("an invalid response must be refused");
    assert_eq!(error.kind, ErrorKind::InvalidResponse);
    assert!(
        error.to_string().contains("the response is not JSON") && error.to_string().ends_with("nonsense"),
        "{error}"
    );
    program.set_desired_capacity(1).expect("start the program again");
    for response in ["[]", "3"] {
        let error = responding(response).set_desired_capacity(1).expect_err("must be refused");
        assert!(error.why.starts_with("the response is not a JSON object"), "{error}");
    }
    // A group without a valid list of members is not an empty group.
    for response in [
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
        let error = responding(response).group().expect_err("must be refused");
        assert_eq!(error.kind, ErrorKind::InvalidResponse, "{response}");
        assert!(error.why.starts_with("the response is invalid"), "{response}: {error}");
    }
}

#[test]
fn a_program_that_hangs_is_killed_with_its_processes() {
    let directory = tempfile::tempdir().expect("a directory");
    let pid = directory.path().join("pid");
    let program =
        program(&format!("sleep 1000 & echo $! >{}; read -r line; wait", pid.display()), Duration::from_millis(300));
    let began = Instant::now();
    let error = program.group().expect_err("a timeout must be reported");
    assert_eq!(error.kind, ErrorKind::Temporary);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let sleeper = std::fs::read_to_string(pid).expect("a process id");
    let path = format!("/proc/{}/stat", sleeper.trim());
    let gone = || std::fs::read_to_string(&path).map_or(true, |stat| stat.contains(") Z ")).then_some(());
    let end = crate::sync::try_until(LONG, Duration::from_millis(10), gone);
    assert!(end.is_some(), "the program's child must be killed");
}

#[test]
fn a_program_that_is_missing_or_ends_is_an_error() {
    let error =
        engine("/nowhere/at/all", &[], LONG).group().expect_err("a missing program must be reported").to_string();
    assert!(error.contains("cannot be started") && error.contains("correct `command`"), "{error}");
    let error = program("exit 3", LONG).group().expect_err("an exit status must be reported").to_string();
    assert!(error.contains("the program ended"), "{error}");
    let endless =
        program("while :; do printf xxxxxxxxxxxxxxxx; done", LONG).group().expect_err("endless output must be refused");
    assert_eq!(endless.why, "the response is longer than 1 MiB");
}
