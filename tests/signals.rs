//! Signals, lifetime and reload of the agent.

use std::time::{Duration, Instant};

use crate::support::gitlab::{Fault, GitLab, TOKEN_AFTER_RESET};
use crate::support::job::{job, until_there};
use crate::support::scenario::Scenario;
use crate::support::write_program;

#[test]
fn quit_finishes_the_job_and_stops_polling() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let wait = until_there(go.display());
    let id = gitlab.queue(job(&["echo begun", &wait, "echo finished"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.signal("QUIT");
    agent.wait_for_log("polling stopped");
    let waiting = gitlab.queue(job(&["true"]).build());
    std::fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    assert!(gitlab.job(id).lines().contains(&"finished".to_owned()));
    assert_eq!(gitlab.job(waiting).state, "pending");
    gitlab.assert_strict();
}

#[test]
fn a_poll_in_flight_is_awaited_and_its_job_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&[]);
    gitlab.wait_until("a held request", |server| server.count("POST jobs/request") >= 2);
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn term_interrupts_jobs_after_the_shutdown_timeout() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    // The configuration of every test home sets shutdown_timeout.
    let id = gitlab.queue(job(&["echo begun", "sleep 600"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    let began = Instant::now();
    agent.signal("TERM");
    assert!(agent.wait().success(), "{}", agent.log());
    assert!(began.elapsed() >= Duration::from_secs(4), "the job had its time");
    let job = gitlab.job(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_interrupted"));
    assert!(job.lines().iter().any(|line| line.starts_with("ERROR: Job failed: aborted")));
    gitlab.assert_strict();
}

#[test]
fn a_second_term_exits_immediately_and_the_next_agent_resumes() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo finished"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.signal("TERM");
    agent.wait_for_log("polling stopped");
    agent.signal("TERM");
    assert!(!agent.wait().success());
    std::fs::write(&go, "").expect("write a file");
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", next.log());
    assert!(job.lines().contains(&"finished".to_owned()));
    next.signal("QUIT");
    next.wait();
    gitlab.assert_strict();
}

#[test]
fn the_next_agent_reports_a_stopped_job_after_the_end_of_its_script() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().runner("[runners.mayfly]\nkill_grace = \"10m\"").home(&gitlab);
    let go = home.path("go");
    // SIGTERM ends the first command that waits.
    let wait = until_there(go.display());
    let first_wait = format!("({wait}) || true");
    let script = ["trap 'echo signal=$((10 + 5))' TERM", "echo begun", &first_wait, &wait, "echo the-last-line"];
    let id = gitlab.queue(job(&script).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    // The agent stops the job after shutdown_timeout. The second signal ends the agent before the script has ended.
    agent.signal("TERM");
    gitlab.wait_for_log(id, "signal=15");
    agent.signal("TERM");
    assert!(!agent.wait().success());
    let mut next = home.start(&["--once"]);
    next.wait_for_log("job resumed from journal");
    std::fs::write(&go, "").expect("write a file");
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_interrupted"), "{}", next.log());
    assert!(job.lines().contains(&"the-last-line".to_owned()), "{}", job.log());
    next.wait();
    gitlab.assert_strict();
}

#[test]
fn hup_applies_a_valid_configuration_and_refuses_a_broken_one() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    std::fs::write(home.config(), "concurrent = \"many\"\n").expect("write a file");
    agent.signal("HUP");
    agent.wait_for_log("the old one stays in use");
    let id = gitlab.queue(job(&["echo ${MARK:-none}"]).build());
    assert!(gitlab.finished(id).lines().contains(&"none".to_owned()));
    Scenario::shell().runner("environment = [\"MARK=new\"]").write(&home, &gitlab.url);
    agent.wait_for_log("configuration loaded");
    gitlab.wait_for_fresh_request();
    let id = gitlab.queue(job(&["echo ${MARK:-none}"]).build());
    assert!(gitlab.finished(id).lines().contains(&"new".to_owned()));
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn a_reload_names_a_changed_setting_that_needs_a_restart() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("log_level = \"info\"").home(&gitlab);
    let mut agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    Scenario::shell().config("log_level = \"debug\"").state_dir("$HOME/other").write(&home, &gitlab.url);
    agent.wait_for_log("configuration loaded");
    let warning = format!(
        "state_dir has changed; the agent keeps its journal in the old directory until it restarts in_use={}",
        home.path("state").display()
    );
    for part in [warning.as_str(), "a changed setting takes effect when the agent restarts key=log_level"] {
        assert!(agent.log().contains(part), "{part} in {}", agent.log());
    }
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(!home.path("other").exists());
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn usr2_hands_over_while_a_job_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let lines = ["echo begun", &until_there(go.display()), "echo finished"];
    let id = gitlab.queue(job(&lines).after_script(&["echo after"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.signal("USR2");
    agent.wait_for_log("job resumed from journal");
    std::fs::write(&go, "").expect("write a file");
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success");
    for line in ["begun", "finished", "after", "Job succeeded"] {
        assert_eq!(job.lines().iter().filter(|other| *other == line).count(), 1, "{line} in {:#?}", job.lines());
    }
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn a_signal_during_the_hand_over_takes_effect() {
    let gitlab = GitLab::start();
    let mut home = Scenario::shell().home(&gitlab);
    let program = home.own_program();
    let mut agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    // The next program gets a signal before its first instruction.
    let next = home.path("next");
    let signal = "case \"$*\" in *--validate) ;; *) kill -s QUIT $$ ;; esac";
    let text = format!("#!/bin/sh\n{signal}\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_mayfly"));
    write_program(&next, &text);
    std::fs::rename(&next, program).expect("rename the file");
    agent.signal("USR2");
    assert!(agent.wait().success(), "{}", agent.log());
    // The new agent receives the signal during its start or soon after it.
    let effects = ["stop signal received during the start", "polling stopped"];
    assert!(effects.iter().any(|effect| agent.log().contains(effect)), "{}", agent.log());
    gitlab.assert_strict();
}

#[test]
fn an_event_during_a_hand_over_that_fails_takes_effect() {
    let gitlab = GitLab::start();
    let life = "token_obtained_at = 2020-01-01T00:00:00Z\ntoken_expires_at = 2020-06-01T00:00:00Z";
    let ready = "ready_command = \"test -e $HOME/ready\"";
    let mut home = Scenario::shell().mayfly(ready).runner(life).home(&gitlab);
    let program = home.own_program();
    let aside = home.path("aside");
    std::fs::hard_link(&program, &aside).expect("keep the program");
    // The hand-over waits for the rotation of the token. Meanwhile the machine becomes ready.
    gitlab.fail("POST runners/reset_authentication_token", [Fault::Slow(Duration::from_secs(6))]);
    let mut agent = home.start(&[]);
    agent.wait_for_log("polling starts when the readiness commands have succeeded");
    agent.signal("USR2");
    agent.wait_for_log("handing over to the new program on disk");
    std::fs::remove_file(&program).expect("remove the program");
    std::fs::write(home.path("ready"), "").expect("write a file");
    // On a slow machine, the new program starts before its file is removed.
    agent.wait_until("the end of the hand-over", || {
        let log = agent.log();
        log.contains("cannot start the new program on disk") || log.matches("mayfly is up").count() > 1
    });
    std::fs::rename(&aside, &program).expect("restore the program");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn a_stopping_agent_does_not_hand_over() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let wait = until_there(go.display());
    let id = gitlab.queue(job(&["echo begun", &wait]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.signal("QUIT");
    agent.wait_for_log("polling stopped");
    agent.signal("USR2");
    agent.wait_for_log("the next start uses the new program");
    let waiting = gitlab.queue(job(&["true"]).build());
    std::fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    assert_eq!([gitlab.job_state(id), gitlab.job_state(waiting)], ["success", "pending"]);
    gitlab.assert_strict();
}

#[test]
fn a_stopped_and_continued_agent_notices_configuration_changes() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    agent.signal("STOP");
    agent.signal("CONT");
    Scenario::shell().runner("environment = [\"MARK=new\"]").write(&home, &gitlab.url);
    agent.wait_for_log("configuration loaded");
    gitlab.wait_for_fresh_request();
    let id = gitlab.queue(job(&["echo $MARK"]).build());
    assert!(gitlab.finished(id).lines().contains(&"new".to_owned()));
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn an_idle_agent_exits_and_a_busy_one_stays() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    // The job takes longer than the idle timeout with its random part.
    let id = gitlab.queue(job(&["sleep 3"]).build());
    let mut agent = home.start(&["--idle-timeout", "1s"]);
    assert!(agent.wait().success());
    assert_eq!(gitlab.job(id).state, "success");
    assert!(agent.log().contains("mayfly exits reason=idle_timeout"), "{}", agent.log());
}

#[test]
fn only_one_agent_uses_a_state_directory() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut first = home.start(&[]);
    first.wait_for_log("mayfly is up");
    let config = home.config().display().to_string();
    let second = home.call(&["run", "--config", &config]);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another mayfly runs"));
    first.signal("QUIT");
    first.wait();
}

#[test]
fn a_token_is_rotated_before_it_expires_while_jobs_run() {
    let gitlab = GitLab::start();
    let life = "token_obtained_at = 2020-01-01T00:00:00Z\ntoken_expires_at = 2020-06-01T00:00:00Z # soon";
    let home = Scenario::shell().config("# kept").runner(life).home(&gitlab);
    let mut agent = home.start(&[]);
    agent.wait_for_log("token rotated");
    let id = gitlab.queue(job(&["echo with the new token"]).build());
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    let written = std::fs::read_to_string(home.config()).expect("a configuration");
    for part in [TOKEN_AFTER_RESET, "2040-01-02T03:04:05Z", "# kept", "# soon"] {
        assert!(written.contains(part), "{part} in {written}");
    }
    agent.drain();
    gitlab.assert_strict();
}
