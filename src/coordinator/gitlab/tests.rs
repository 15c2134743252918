//! Tests of the Runner API with all kinds of responses from a server or a proxy.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ApiError, GitLab, RunnerManagerInfo, TokenStatus, api_base, request_id};
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

fn response(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn poll(gitlab: &GitLab, mode: PollMode) -> PollOutcome {
    gitlab.request_job(&JobRequest { token: &Token::new("glrt-t"), system_id: "s_0a1b2c3d4e5f", mode }).outcome
}

fn job() -> JobHandle {
    JobHandle { id: 7.into(), token: Token::new("glcbt-t") }
}

#[test]
fn a_sign_in_page_is_not_a_job() {
    let html = response(201, "Content-Type: text/html\r\n", "<html>sign in</html>");
    let outcome = poll(&gitlab(&TestServer::new(&[&html])), PollMode::Long);
    assert!(matches!(&outcome, PollOutcome::Failed(why) if why.contains("201")), "{outcome:?}");
}

#[test]
fn a_truncated_job_is_returned_so_that_it_can_be_reported_as_failed() {
    let head = "HTTP/1.1 201 X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n";
    let truncated = format!("{head}{{\"id\":7,\"token\":\"glcbt-t\",\"ste");
    let gitlab = gitlab(&TestServer::new(&[&truncated]));
    let PollOutcome::Job { payload, .. } = poll(&gitlab, PollMode::Long) else { panic!("the job is lost") };
    assert!(payload.ends_with(b"\"ste"));
}

#[test]
fn the_queue_state_is_sent_until_the_server_returns_another_one() {
    let with_value = response(204, "X-GitLab-Last-Update: value-1\r\n", "");
    let without = response(204, "", "");
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
fn only_a_403_rejects_the_runner() {
    for (status, refused) in [(403, true), (400, false), (409, false), (422, false), (500, false)] {
        let message = response(status, "Content-Type: application/json\r\n", "{\"message\":\"because\"}");
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
fn the_response_to_a_part_of_the_log_gives_its_outcome_and_the_status_of_the_job() {
    for (status, headers, outcome, job_status) in [
        (202, "Range: 0-3\r\n", TraceOutcome::Accepted, JobStatus::Ongoing),
        (202, "Job-Status: canceling\r\n", TraceOutcome::Accepted, JobStatus::Canceling),
        (202, "Job-Status: canceled\r\n", TraceOutcome::Accepted, JobStatus::Finished),
        (416, "Range: 0-42\r\n", TraceOutcome::Resync(42), JobStatus::Ongoing),
        (416, "Range: nonsense\r\n", TraceOutcome::Resync(0), JobStatus::Ongoing),
        (404, "", TraceOutcome::NotFound, JobStatus::Ongoing),
        (403, "", TraceOutcome::Failed, JobStatus::Finished),
        (400, "", TraceOutcome::Failed, JobStatus::Ongoing),
    ] {
        let server = TestServer::new(&[&response(status, headers, "")]);
        let reply = gitlab(&server).append_trace(&job(), 10, b"log", TraceKind::Normal);
        assert_eq!((reply.outcome, reply.status), (outcome, job_status), "{status} {headers}");
        let seen = &server.seen()[0];
        assert!(seen.head.starts_with("patch /api/v4/jobs/7/trace?debug_trace=false "), "{seen:?}");
        assert_eq!(seen.header("content-range"), Some("10-12"));
        assert_eq!(seen.header("content-type"), Some("text/plain"));
    }
}

#[test]
fn an_update_interval_is_positive_and_limited() {
    for (value, interval) in [("60", Some(60)), ("100000", Some(900)), ("0", None), ("-3", None), ("soon", None)] {
        let headers = format!("X-GitLab-Trace-Update-Interval: {value}\r\n");
        let server = TestServer::new(&[&response(202, &headers, "")]);
        let reply = gitlab(&server).append_trace(&job(), 0, b"x", TraceKind::Debug);
        assert_eq!(reply.interval.map(|interval| interval.as_secs()), interval, "{value}");
    }
}

#[test]
fn the_response_to_a_state_gives_its_outcome_and_the_status_of_the_job() {
    for (status, outcome, job_status) in [
        (200, UpdateOutcome::Done, JobStatus::Ongoing),
        (202, UpdateOutcome::Accepted, JobStatus::Ongoing),
        (412, UpdateOutcome::TraceInvalid, JobStatus::Ongoing),
        (403, UpdateOutcome::Gone, JobStatus::Finished),
        (404, UpdateOutcome::Gone, JobStatus::Finished),
        (400, UpdateOutcome::Failed, JobStatus::Ongoing),
    ] {
        let server = TestServer::new(&[&response(status, "", "")]);
        let reply = gitlab(&server).update_job(&job(), &JobState::Success, TraceSummary { size: 5, crc32: 0x1b });
        assert_eq!((reply.outcome, reply.status), (outcome, job_status), "{status}");
        let sent: serde_json::Value = serde_json::from_slice(&server.seen()[0].body).expect("must be JSON");
        assert_eq!(sent["output"], serde_json::json!({"checksum": "crc32:0000001b", "bytesize": 5}));
        assert_eq!((&sent["state"], &sent["exit_code"]), (&"success".into(), &serde_json::Value::Null));
    }
}

#[test]
fn an_old_server_verifies_a_token_with_a_bare_number() {
    let server = TestServer::new(&[&response(200, "Content-Type: text/plain\r\n", "200")]);
    let status = gitlab(&server).verify(&Token::new("glrt-t"), "s_0a1b2c3d4e5f").expect("a response");
    assert!(matches!(status, TokenStatus::Valid(registration) if registration.id == 0));
}

#[test]
fn a_truncated_new_token_is_an_error() {
    let head = "HTTP/1.1 201 X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n";
    let server = TestServer::new(&[&format!("{head}{{\"id\":7,\"token\":\"glrt-new")]);
    let error =
        gitlab(&server).reset_token(&Token::new("glrt-old")).expect_err("a response without a token must be rejected");
    assert!(matches!(&error, ApiError::Unreachable(why) if !why.contains("glrt")), "{error}");
}

#[test]
fn a_truncated_response_is_a_failure() {
    let cut = |status: u16| format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: 99\r\n\r\n{{");
    let gitlab = gitlab(&TestServer::new(&[&cut(202), &cut(200)]));
    assert_eq!(gitlab.append_trace(&job(), 0, b"x", TraceKind::Normal).outcome, TraceOutcome::Failed);
    let reply = gitlab.update_job(&job(), &JobState::Success, TraceSummary::default());
    assert_eq!((reply.outcome, reply.status), (UpdateOutcome::Failed, JobStatus::Ongoing));
}

#[test]
fn derives_the_base_url_of_the_api() {
    for (url, base) in [
        ("https://h", "https://h/api/v4/"),
        ("https://h/gitlab//", "https://h/gitlab/api/v4/"),
        ("https://h/ci/", "https://h/api/v4/"),
    ] {
        assert_eq!(api_base(url), base);
    }
}

#[test]
fn request_ids_are_unique() {
    let (a, b) = (request_id(), request_id());
    assert!(a != b && a.len() == 32 && a.bytes().all(|byte| byte.is_ascii_hexdigit()));
}
