//! Tests of the Runner API with all kinds of responses from a server or a proxy.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ApiError, GitLab, RunnerManagerInfo, TokenStatus};
use crate::coordinator::source::{JobRequest, PollMode, PollOutcome};
use crate::coordinator::{
    Coordinator, JobHandle, JobState, JobStatus, TraceKind, TraceOutcome, TraceSummary, UpdateOutcome,
};
use crate::http::testing::TestServer;
use crate::http::tls::TlsFiles;
use crate::token::Token;

fn gitlab(server: &TestServer) -> GitLab {
    let info = RunnerManagerInfo::new(crate::config::ExecutorKind::Shell, "bash", &BTreeMap::new());
    GitLab::new(&server.url, &TlsFiles::default(), info, Duration::from_secs(60)).expect("a client")
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn poll(gitlab: &GitLab, mode: PollMode) -> PollOutcome {
    gitlab.request_job(&JobRequest { token: &Token::new("glrt-t"), system_id: "s_0a1b2c3d4e5f", mode }).outcome
}

fn job() -> JobHandle {
    JobHandle { id: 7.into(), token: Token::new("glcbt-t") }
}

#[test]
fn what_is_no_job_is_not_taken_for_one() {
    let html = answer(201, "Content-Type: text/html\r\n", "<html>sign in</html>");
    let outcome = poll(&gitlab(&TestServer::new(&[&html])), PollMode::Long);
    assert!(matches!(&outcome, PollOutcome::Failed(why) if why.contains("201")), "{outcome:?}");
}

#[test]
fn a_job_that_is_cut_off_is_handed_on_so_that_it_can_be_failed() {
    let head = "HTTP/1.1 201 X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n";
    let whose = format!("{head}{{\"id\":7,\"token\":\"glcbt-t\",\"ste");
    let gitlab = gitlab(&TestServer::new(&[&whose]));
    let PollOutcome::Job { payload, .. } = poll(&gitlab, PollMode::Long) else { panic!("the job is lost") };
    assert!(payload.ends_with(b"\"ste"));
}

#[test]
fn the_state_of_the_queue_is_kept_until_another_one_comes() {
    let with_value = answer(204, "X-GitLab-Last-Update: value-1\r\n", "");
    let without = answer(204, "", "");
    let server = TestServer::new(&[&with_value, &without, &without, &without]);
    let gitlab = gitlab(&server);
    for mode in [PollMode::Long, PollMode::Long, PollMode::Short, PollMode::Long] {
        assert!(matches!(poll(&gitlab, mode), PollOutcome::NoJob));
    }
    let sent: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| {
            serde_json::from_slice::<serde_json::Value>(&seen.body).expect("must be JSON")["last_update"].clone()
        })
        .collect();
    assert_eq!(sent, [serde_json::Value::Null, "value-1".into(), serde_json::Value::Null, "value-1".into()]);
}

#[test]
fn statuses_of_a_poll_mean_what_they_should() {
    for (status, refused) in [(403, true), (400, false), (409, false), (422, false), (500, false)] {
        let message = answer(status, "Content-Type: application/json\r\n", "{\"message\":\"because\"}");
        let gitlab = gitlab(&TestServer::new(&[message.as_str(); 5]));
        gitlab.stop_waiting();
        let outcome = poll(&gitlab, PollMode::Long);
        assert!(
            matches!(&outcome, PollOutcome::Refused(why) if refused && why == "because")
                || matches!(&outcome, PollOutcome::Failed(why) if !refused && why.contains("because")),
            "{status}: {outcome:?}"
        );
    }
}

#[test]
fn a_piece_of_log_is_answered_in_every_way() {
    for (status, headers, outcome, over) in [
        (202, "Range: 0-3\r\n", TraceOutcome::Accepted, JobStatus::Ongoing),
        (202, "Job-Status: canceling\r\n", TraceOutcome::Accepted, JobStatus::Canceling),
        (202, "Job-Status: canceled\r\n", TraceOutcome::Accepted, JobStatus::Finished),
        (416, "Range: 0-42\r\n", TraceOutcome::Resync(42), JobStatus::Ongoing),
        (416, "Range: nonsense\r\n", TraceOutcome::Resync(0), JobStatus::Ongoing),
        (404, "", TraceOutcome::NotFound, JobStatus::Ongoing),
        (403, "", TraceOutcome::Failed, JobStatus::Finished),
        (400, "", TraceOutcome::Failed, JobStatus::Ongoing),
    ] {
        let server = TestServer::new(&[&answer(status, headers, "")]);
        let reply = gitlab(&server).append_trace(&job(), 10, b"log", TraceKind::Normal);
        assert_eq!((reply.outcome, reply.status), (outcome, over), "{status} {headers}");
        let seen = &server.seen()[0];
        assert!(seen.head.starts_with("patch /api/v4/jobs/7/trace?debug_trace=false "), "{seen:?}");
        assert_eq!(seen.header("content-range"), Some("10-12"));
        assert_eq!(seen.header("content-type"), Some("text/plain"));
    }
}

#[test]
fn intervals_are_taken_within_reason() {
    for (value, interval) in [("60", Some(60)), ("100000", Some(900)), ("0", None), ("-3", None), ("soon", None)] {
        let headers = format!("X-GitLab-Trace-Update-Interval: {value}\r\n");
        let server = TestServer::new(&[&answer(202, &headers, "")]);
        let reply = gitlab(&server).append_trace(&job(), 0, b"x", TraceKind::Debug);
        assert_eq!(reply.interval.map(|interval| interval.as_secs()), interval, "{value}");
    }
}

#[test]
fn a_state_is_answered_in_every_way() {
    for (status, outcome, over) in [
        (200, UpdateOutcome::Done, JobStatus::Ongoing),
        (202, UpdateOutcome::Accepted, JobStatus::Ongoing),
        (412, UpdateOutcome::TraceInvalid, JobStatus::Ongoing),
        (403, UpdateOutcome::Gone, JobStatus::Finished),
        (404, UpdateOutcome::Gone, JobStatus::Finished),
        (400, UpdateOutcome::Failed, JobStatus::Ongoing),
    ] {
        let server = TestServer::new(&[&answer(status, "", "")]);
        let reply = gitlab(&server).update_job(&job(), &JobState::Success, TraceSummary { size: 5, crc32: 0x1b });
        assert_eq!((reply.outcome, reply.status), (outcome, over), "{status}");
        let sent: serde_json::Value = serde_json::from_slice(&server.seen()[0].body).expect("must be JSON");
        assert_eq!(sent["output"], serde_json::json!({"checksum": "crc32:0000001b", "bytesize": 5}));
        assert_eq!((&sent["state"], &sent["exit_code"]), (&"success".into(), &serde_json::Value::Null));
    }
}

#[test]
fn an_old_server_may_verify_with_a_bare_number() {
    let server = TestServer::new(&[&answer(200, "Content-Type: text/plain\r\n", "200")]);
    let verdict = gitlab(&server).verify(&Token::new("glrt-t"), "s_0a1b2c3d4e5f").expect("an answer");
    assert!(matches!(verdict, TokenStatus::Valid(registration) if registration.id == 0));
}

#[test]
fn a_token_that_does_not_come_back_whole_is_an_error() {
    let head = "HTTP/1.1 201 X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n";
    let server = TestServer::new(&[&format!("{head}{{\"id\":7,\"token\":\"glrt-new")]);
    let error =
        gitlab(&server).reset_token(&Token::new("glrt-old")).expect_err("an answer without a token must be refused");
    assert!(matches!(&error, ApiError::Unreachable(why) if !why.contains("glrt")), "{error}");
}

#[test]
fn an_answer_that_breaks_off_proves_nothing() {
    let cut = |status: u16| format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: 99\r\n\r\n{{");
    let gitlab = gitlab(&TestServer::new(&[&cut(202), &cut(200)]));
    assert_eq!(gitlab.append_trace(&job(), 0, b"x", TraceKind::Normal).outcome, TraceOutcome::Failed);
    let reply = gitlab.update_job(&job(), &JobState::Success, TraceSummary::default());
    assert_eq!((reply.outcome, reply.status), (UpdateOutcome::Failed, JobStatus::Ongoing));
}
