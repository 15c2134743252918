//! The Runner API with a server that is unreachable, slow, faulty or hostile.

use std::io::BufReader;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::gitlab::{Answer, Fault, GitLab};
use crate::support::http::{read_request, write_answer};
use crate::support::job::{job, until_there};
use crate::support::scenario::Scenario;

fn answer(status: u16) -> Fault {
    Fault::Answer(Answer::new(status))
}

#[test]
fn retries_requests_after_temporary_errors() {
    let gitlab = GitLab::start();
    let later = Answer::new(429).with("Retry-After", "1");
    gitlab.fail("POST jobs/request", [answer(500), Fault::Answer(later), answer(503), Fault::Cut]);
    gitlab.fail("PUT job", [answer(502)]);
    gitlab.fail("PATCH trace", [answer(500), Fault::TakeAndCut, Fault::Cut]);
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["echo through it all"]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success");
    assert_eq!(job.lines().iter().filter(|line| *line == "through it all").count(), 1);
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_lost_response_never_duplicates_a_log_line() {
    let gitlab = GitLab::start();
    gitlab.fail("PATCH trace", [Fault::TakeAndCut, Fault::TakeAndCut]);
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo line 1", &until_there(go.display()), "echo line 2"]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_until("the requests without a response", |server| server.count("PATCH trace") >= 2);
    std::fs::write(&go, "").expect("write a file");
    let job = gitlab.finished(id);
    for line in ["line 1", "line 2"] {
        assert_eq!(job.lines().iter().filter(|other| *other == line).count(), 1, "{line}");
    }
    agent.wait();
    gitlab.assert_strict();
}

#[test]
fn an_outage_at_the_end_loses_nothing() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let lines = ["echo begun", &until_there(go.display()), "echo the end", "touch \"$OVER\""];
    let over = home.path("over");
    let id = gitlab.queue(job(&lines).variable("OVER", &over.display().to_string()).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_for_log(id, "begun");
    gitlab.stop_responding();
    std::fs::write(&go, "").expect("write a file");
    agent.wait_until("the end of the script", || over.exists());
    let before = gitlab.unanswered("PATCH trace").len();
    agent.wait_until("two requests without a response", || gitlab.unanswered("PATCH trace").len() >= before + 2);
    gitlab.resume_responding();
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success");
    assert!(job.lines().contains(&"the end".to_owned()));
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_final_state_is_sent_until_gitlab_accepts_it() {
    let gitlab = GitLab::start();
    gitlab.answer_finals([202, 202, 412, 500]);
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["echo once"]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success");
    assert_eq!(job.lines().iter().filter(|line| *line == "once").count(), 1, "sent again from its start after 412");
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_server_with_a_smaller_limit_ends_the_job() {
    let gitlab = GitLab::start();
    gitlab.limit_trace(3000);
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["head -c 5000 /dev/zero | tr '\\0' x; echo; sleep 600"]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("trace_size_exceeded"));
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_rejected_runner_pauses_polling() {
    let gitlab = GitLab::start();
    gitlab.delete_runner();
    let home = Scenario::shell().runner("unhealthy_requests_limit = 2\nunhealthy_interval = \"1h\"").home(&gitlab);
    let mut agent = home.start(&[]);
    agent.wait_for_log("rejected too often; polling paused");
    assert_eq!(gitlab.count("POST jobs/request"), 2);
    agent.drain();
}

#[test]
fn a_token_is_never_sent_to_another_host() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    let location =
        format!("http://localhost:{}/api/v4/jobs/request", elsewhere.local_addr().expect("an address").port());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    thread::spawn(move || {
        for mut stream in elsewhere.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            if let Some(request) = read_request(&mut reader) {
                log.lock().expect("the thread must not panic").push(format!(
                    "{:?} {}",
                    request.headers,
                    String::from_utf8_lossy(&request.body)
                ));
                let _ = write_answer(&mut stream, &Answer::new(204));
            }
        }
    });
    let gitlab = GitLab::start();
    let redirect = |status| Fault::Answer(Answer::new(status).with("Location", &location));
    gitlab.fail("POST jobs/request", [redirect(307), redirect(302), redirect(308)]);
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.finished(id);
    agent.wait();
    let seen = seen.lock().expect("the thread must not panic").join("\n");
    assert!(!seen.contains("tokenOfTheRunner"), "{seen}");
    assert!(agent.log().contains("tokens are not sent to another server"), "{}", agent.log());
}

#[test]
fn queued_jobs_start_without_delay_within_the_limits() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("concurrent = 3").runner("limit = 2\nrequest_concurrency = 2").home(&gitlab);
    let marks = home.path("marks");
    std::fs::create_dir(&marks).expect("create the directory");
    let script = format!(
        "touch {0}/$CI_JOB_ID_; ls {0} | wc -l; test $(ls {0} | wc -l) -le 2; sleep 0.3; rm {0}/$CI_JOB_ID_",
        marks.display()
    );
    let jobs: Vec<i64> =
        (0..8).map(|n| gitlab.queue(job(&[&script]).variable("CI_JOB_ID_", &format!("job{n}")).build())).collect();
    let mut agent = home.start(&["--max-builds", "8"]);
    for id in jobs {
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "{}", job.log());
    }
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_request_is_tried_five_times_with_one_request_id() {
    let gitlab = GitLab::start();
    gitlab.fail("PUT job", [500, 503, 429, 502].map(answer));
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--once"]);
    assert_eq!(gitlab.finished(id).state, "success");
    let ids = gitlab.request_ids("PUT job");
    assert!(ids[1..5].iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(agent.wait().success());
}

#[test]
fn polling_a_failing_server_backs_off() {
    let gitlab = GitLab::start();
    gitlab.fail("POST jobs/request", [500, 503, 502, 504].map(answer));
    let home = Scenario::shell().home(&gitlab);
    let began = std::time::Instant::now();
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--once"]);
    let taken = gitlab.finished(id).taken.expect("an agent must have the job").duration_since(began);
    let ids = gitlab.request_ids("POST jobs/request");
    assert!(ids.len() == 5 && ids.iter().all(|id| ids.iter().filter(|other| *other == id).count() == 1), "{ids:?}");
    // 1, 1 to 2, 2 to 4 and 4 to 8 seconds.
    assert!(taken >= std::time::Duration::from_secs(8), "{taken:?}");
    assert!(agent.wait().success());
}

#[test]
fn obeys_retry_after() {
    let gitlab = GitLab::start();
    let in_three_seconds = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let date = in_three_seconds.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let later = Answer::new(429).with("RateLimit-ResetTime", &date).with("Retry-After", "600");
    let then = Answer::new(503).with("Retry-After", "2");
    gitlab.fail("POST jobs/request", [Fault::Answer(later), Fault::Answer(then)]);
    let home = Scenario::shell().home(&gitlab);
    let began = std::time::Instant::now();
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    let waited = job.taken.expect("an agent must have the job").duration_since(began);
    assert!(waited >= std::time::Duration::from_secs(4), "{waited:?}");
    assert!(agent.wait().success());
}

#[test]
fn survives_a_truncated_and_a_late_response() {
    let gitlab = GitLab::start();
    let half = Answer::json(201, &serde_json::json!({"id": 1, "token": "x", "steps": []}));
    let late = std::time::Duration::from_secs(3);
    gitlab.fail("POST jobs/request", [Fault::Half(half), Fault::Slow(late)]);
    gitlab.fail("PATCH trace", [Fault::Slow(late), Fault::Half(Answer::new(202).body("nobody needs it"))]);
    gitlab.fail("PUT job", [Fault::Slow(late)]);
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo line 1", &until_there(go.display()), "echo line 2"]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_until("the request with the late response", |server| server.count("PATCH trace") >= 1);
    std::fs::write(&go, "").expect("write a file");
    let job = gitlab.finished(id);
    for line in 1..=2 {
        let line = format!("line {line}");
        assert_eq!(job.lines().iter().filter(|other| **other == line).count(), 1, "{line} in {:#?}", job.lines());
    }
    assert_eq!(job.state, "success");
    assert!(gitlab.count("PATCH trace") >= 3, "the request with the truncated response must be repeated");
    assert!(agent.wait().success());
}

#[test]
fn resends_the_log_from_the_offset_that_the_server_requests() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let gate = home.path("gate");
    let id = gitlab.queue(job(&["echo first", &until_there(gate.display()), "echo second"]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_until("the first line", |server| server.job(id).lines().contains(&"first".to_owned()));
    gitlab.cut_trace(id, 20);
    std::fs::write(&gate, "").expect("write a file");
    let job = gitlab.finished(id);
    for line in ["first", "second", "Job succeeded"] {
        assert_eq!(job.lines().iter().filter(|other| *other == line).count(), 1, "{line} in {:#?}", job.lines());
    }
    assert!(agent.wait().success());
}

#[test]
fn a_job_that_the_server_withdraws_does_not_start() {
    for status in [403, 404] {
        let gitlab = GitLab::start();
        gitlab.fail("PUT job", [answer(status)]);
        let home = Scenario::shell().home(&gitlab);
        let mark = home.path("mark");
        let dropped = gitlab.queue(job(&[&format!("touch {}", mark.display())]).build());
        let next = gitlab.queue(job(&["true"]).build());
        let mut agent = home.start(&[]);
        assert_eq!(gitlab.finished(next).state, "success");
        assert!(!mark.exists() && gitlab.job(dropped).updates.is_empty() && gitlab.job(dropped).trace.is_empty());
        agent.drain();
    }
}

#[test]
fn a_job_cancelled_before_its_start_runs_nothing() {
    let gitlab = GitLab::start();
    gitlab.fail("PUT job", [Fault::Answer(Answer::new(200).with("Job-Status", "canceling"))]);
    let home = Scenario::shell().home(&gitlab);
    let mark = home.path("mark");
    let touch = format!("touch {}", mark.display());
    let id = gitlab.queue(job(&[&touch]).after_script(&[&touch]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.failure_reason.as_deref()), ("failed", Some("job_canceled")));
    assert!(!mark.exists());
    assert!(agent.wait().success());
}

#[test]
fn a_log_is_complete_although_its_first_parts_were_refused() {
    let gitlab = GitLab::start();
    gitlab.fail("PUT job", (0..5).map(|_| answer(500)));
    gitlab.fail("PATCH trace", [answer(404), answer(400), Fault::Cut]);
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo line 1", &until_there(go.display()), "echo line 2"]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_until("the refused requests", |server| server.count("PATCH trace") >= 3);
    std::fs::write(&go, "").expect("write a file");
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success");
    for line in ["line 1", "line 2"] {
        assert_eq!(job.lines().iter().filter(|other| *other == line).count(), 1, "{line} in {:#?}", job.lines());
    }
    assert!(agent.wait().success());
}

#[test]
fn a_job_without_output_sends_keepalives() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&[&until_there(go.display())]).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_until("a keepalive after the start of the job", |server| server.job(id).updates.len() >= 2);
    std::fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).updates, ["running", "running", "success"]);
    assert!(agent.wait().success());
}

#[test]
fn conflicts_and_unexpected_responses_do_not_pause_a_runner() {
    let gitlab = GitLab::start();
    gitlab.fail("POST jobs/request", [409, 409, 422, 400, 418].map(answer));
    let home = Scenario::shell().runner("unhealthy_requests_limit = 1").home(&gitlab);
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--once"]);
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
}
