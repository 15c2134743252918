//! Responses to a poll whose job cannot be decoded, or that contain no job.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::gitlab::{Answer, Fault, GitLab, Job};
use crate::support::job::job;
use crate::support::scenario::Scenario;

/// The line that the agent logs for a job that it can neither decode nor report.
const NOT_REPORTED: &str = "GitLab sent a job that cannot be decoded (no id or token); it cannot be reported";

#[test]
fn survives_invalid_responses_to_a_poll() {
    let gitlab = GitLab::start();
    let html = Answer::new(201).with("Content-Type", "text/html").body("<html>sign in</html>");
    let empty = Answer::new(201).with("Content-Type", "application/json");
    gitlab.fail("POST jobs/request", [Fault::Answer(html), Fault::Answer(empty)]);
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["echo ok"]).build());
    let mut agent = home.start(&[]);
    assert_eq!(gitlab.finished(id).state, "success");
    agent.drain();
}

#[test]
fn a_response_without_a_job_does_not_count_and_is_followed_by_a_pause() {
    let gitlab = GitLab::start();
    let nonsense = Answer::json(201, &json!({"message": "maintenance"}));
    gitlab.fail("POST jobs/request", [Fault::Answer(nonsense)]);
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["true"]).build());
    let began = Instant::now();
    let mut agent = home.start(&["--once"]);
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(began.elapsed() >= Duration::from_secs(1), "check_interval lies between the two requests");
    assert!(agent.wait().success());
    assert!(agent.log().contains(NOT_REPORTED), "{}", agent.log());
}

/// Makes the payload of the job with this id.
type MakePayload = fn(i64) -> Vec<u8>;

/// Payloads that cannot be decoded, but whose id and token can be read.
const PAYLOADS: [(&str, MakePayload); 13] = [
    ("id as text, steps as a number", |id| format!(r#"{{"id":"{id}","token":"glcbt-job-{id}","steps":5}}"#).into()),
    ("id as a fraction", |id| format!(r#"{{"id":{id}.0,"token":"glcbt-job-{id}","steps":5}}"#).into()),
    ("a list of lists", |id| format!(r#"{{"id":{id},"token":"glcbt-job-{id}","variables":[[[[]]]]}}"#).into()),
    ("nested too deep", |id| {
        let deep = "[".repeat(100_000);
        format!(r#"{{"id":{id},"token":"glcbt-job-{id}","steps":{deep}"#).into()
    }),
    ("the same key twice", |id| {
        format!(r#"{{"id":1,"id":{id},"token":"glcbt-job-{id}","token":"glcbt-job-{id}"}}"#).into()
    }),
    ("a timeout of 64 bits and more", |id| {
        format!(r#"{{"id":{id},"token":"glcbt-job-{id}","runner_info":{{"timeout":"99999999999999999999"}}}}"#).into()
    }),
    ("bytes that are not UTF-8", |id| {
        [format!(r#"{{"id":{id},"token":"glcbt-job-{id}","steps":""#).as_bytes(), b"\xff\xfe\x80\"}"].concat()
    }),
    ("a zero byte", |id| format!("{{\"id\":{id},\"token\":\"glcbt-job-{id}\",\"steps\":\0}}").into()),
    ("cut off in a value", |id| format!(r#"{{"id":{id},"token":"glcbt-job-{id}","steps":[{{"na"#).into()),
    ("keys with escapes", |id| format!(r#"{{"i\u0064":{id},"tok\u0065n":"glcbt-job-{id}","steps":5}}"#).into()),
    ("text after the object", |id| format!(r#"{{"id":{id},"token":"glcbt-job-{id}"}} {{}}"#).into()),
    ("a dependency first", |id| {
        format!(r#"{{"dependencies":[{{"id":1,"token":"x"}}],"id":{id},"token":"glcbt-job-{id}","steps":5}}"#).into()
    }),
    ("larger than the limit of a payload", |id| {
        let junk = "x".repeat(65 << 20);
        format!(r#"{{"id":{id},"token":"glcbt-job-{id}","variables":[{{"key":"A","value":"{junk}"}}]}}"#).into()
    }),
];

/// Asserts that the agent reported a job that it could not decode.
fn assert_reported(what: &str, job: &Job) {
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"), "{what}: {}", job.log());
    assert_eq!(job.state, "failed", "{what}");
    assert!(job.has("the payload of this job cannot be read"), "{what}: {}", job.log());
}

#[test]
fn a_job_that_cannot_be_decoded_is_failed_if_its_id_and_token_are_readable() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let ids = PAYLOADS.map(|(what, make)| (what, gitlab.queue_text(make)));
    let good = gitlab.queue(job(&["echo ok"]).build());
    let mut agent = home.start(&[]);
    for (what, id) in ids {
        assert_reported(what, &gitlab.finished(id));
    }
    assert_eq!(gitlab.finished(good).state, "success");
    agent.drain();
    assert!(!agent.log().contains("glcbt-job"), "{}", agent.log());
}

#[test]
fn a_job_whose_id_is_huge_or_not_a_number_is_failed_under_that_id() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    // The id in the paths of requests, and the id in the payload.
    let ids = [
        ("99999999999999999999999", "99999999999999999999999"),
        ("9223372036854775808", "9223372036854775808"),
        ("99999999999999999999999", "\"99999999999999999999999\""),
        ("9223372036854775808", "\"9223372036854775808\""),
        ("build-17", "\"build-17\""),
    ]
    .map(|(name, value)| {
        let id = gitlab.queue_text(|id| format!(r#"{{"id":{value},"token":"glcbt-job-{id}","steps":[]}}"#));
        // The tokens distinguish jobs with the same name in paths.
        gitlab.name_job(id, name);
        (name, id)
    });
    let mut agent = home.start(&[]);
    for (name, id) in ids {
        assert_reported(name, &gitlab.finished(id));
    }
    agent.drain();
}

#[test]
fn a_job_without_a_usable_id_or_token_is_logged() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let payloads: [fn(i64) -> String; 6] = [
        |_| "null".to_owned(),
        |_| r#"{"id":7}"#.to_owned(),
        |id| format!(r#"{{"id":null,"token":"glcbt-job-{id}"}}"#),
        |id| format!(r#"{{"id":7.5,"token":"glcbt-job-{id}"}}"#),
        |id| format!(r#"{{"id":"../{id}","token":"glcbt-job-{id}"}}"#),
        |_| String::new(),
    ];
    for make in payloads {
        gitlab.queue_text(make);
    }
    let good = gitlab.queue(job(&["echo ok"]).build());
    let mut agent = home.start(&[]);
    assert_eq!(gitlab.finished(good).state, "success");
    agent.drain();
    let log = agent.log();
    assert_eq!(log.matches(NOT_REPORTED).count(), payloads.len(), "{log}");
    assert!(!log.contains("glcbt-job"), "{log}");
}
