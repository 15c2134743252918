//! How an instance shuts down: unregisters, then runs the leave action, across restarts; and it never polls after the
//! decision.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::gitlab::{Fault, GitLab};
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Home, read};
use crate::support::scenario::Scenario;
use crate::support::{wait_until, write_program};

/// The number of job requests so far.
fn polls(gitlab: &GitLab) -> usize {
    gitlab.count("POST jobs/request")
}

fn lines(path: &Path) -> Vec<String> {
    read(path).lines().map(str::to_owned).collect()
}

/// Waits until a file exists.
fn wait_for_file(path: &Path) {
    wait_until(&path.display().to_string(), || path.exists());
}

#[test]
fn an_idle_agent_unregisters_its_runner_manager_and_can_start_again() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&["--idle-timeout", "1s"]);
    assert!(agent.wait().success());
    assert!(agent.log().contains("mayfly exits reason=idle_timeout"), "{}", agent.log());
    assert!(gitlab.managers().is_empty(), "{:?}", gitlab.managers());
    assert_eq!(gitlab.count("DELETE runners/managers"), 1);
    assert!(!home.path("state/leaving.json").exists());
    let id = gitlab.queue(job(&["true"]).build());
    let mut next = home.start(&["--once"]);
    assert!(next.wait().success());
    assert_eq!(gitlab.job_state(id), "success");
    assert!(gitlab.managers().is_empty());
    gitlab.assert_strict();
}

#[test]
fn a_stopped_agent_stays_registered() {
    for signal in ["QUIT", "TERM"] {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let mut agent = home.start(&[]);
        gitlab.wait_until("a request", |server| polls(server) > 0);
        agent.signal(signal);
        assert!(agent.wait().success());
        assert_eq!(gitlab.count("DELETE runners/managers"), 0);
        assert!(!home.path("state/leaving.json").exists());
    }
}

#[test]
fn an_unreachable_server_does_not_prevent_a_shutdown() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&["--idle-timeout", "2s"]);
    gitlab.wait_until("a request", |server| polls(server) > 0);
    gitlab.stop_responding();
    assert!(agent.wait().success());
    assert!(agent.log().contains("cannot unregister this runner manager"), "{}", agent.log());
}

#[test]
fn a_job_from_the_last_poll_runs_before_the_shutdown() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    // The second request is slow; meanwhile the agent becomes idle and the job arrives.
    gitlab.fail("POST jobs/request", [Fault::Slow(Duration::ZERO), Fault::Slow(Duration::from_secs(10))]);
    let mut agent = home.start(&["--idle-timeout", "2s"]);
    agent.wait_for_log("polling stopped reason=idle_timeout");
    let id = gitlab.queue(job(&["echo came late"]).build());
    assert!(agent.wait().success());
    assert_eq!(gitlab.job_state(id), "success", "{}", agent.log());
    assert_eq!(polls(&gitlab), 2);
    assert!(gitlab.managers().is_empty());
    gitlab.assert_strict();
}

#[test]
fn a_fitness_check_that_ends_after_the_shutdown_began_is_followed_by_no_request() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let (began, go) = (home.path("began"), home.path("go"));
    let directory = home.path("bin");
    fs::create_dir(&directory).expect("create the directory");
    let git = format!("#!/bin/sh\ntouch {}\n{}\necho git version 2.40.0\n", began.display(), until_there(go.display()));
    write_program(&directory.join("git"), &git);
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", directory.display());
    let mut agent = home.start_with(&[], &[("PATH", &path)]);
    wait_for_file(&began);
    agent.signal("QUIT");
    agent.wait_for_log("polling stopped");
    fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    assert_eq!(polls(&gitlab), 0, "{}", agent.log());
}

#[test]
fn a_token_that_is_rotated_during_a_shutdown_unregisters_the_runner_manager() {
    let gitlab = GitLab::start();
    let life = "token_obtained_at = 2020-01-01T00:00:00Z\ntoken_expires_at = 2020-06-01T00:00:00Z";
    let home = Scenario::shell().runner(life).home(&gitlab);
    // Meanwhile the agent becomes idle.
    gitlab.fail("POST runners/reset_authentication_token", [Fault::Slow(Duration::from_secs(4))]);
    let mut agent = home.start(&["--idle-timeout", "1s"]);
    assert!(agent.wait().success());
    assert!(agent.log().contains("token rotated"), "{}", agent.log());
    assert!(agent.log().contains("unregistered this runner manager"), "{}", agent.log());
    assert!(gitlab.managers().is_empty());
    gitlab.assert_strict();
}

#[test]
fn fleet_tables_set_the_lifetime_of_an_instance() {
    let machine = "[runners.machine]\nMaxBuilds = 2\nIdleTime = 3600\nIdleCount = 1\n";
    let autoscaler = "[runners.autoscaler]\nmax_use_count = 2\ncapacity_per_instance = 1\n";
    for (tables, told) in [(machine, "`runners.machine.IdleCount` has no effect"), (autoscaler, "mayfly is up")] {
        let gitlab = GitLab::start();
        let home = Scenario::shell().config("concurrent = 8").runner(tables).home(&gitlab);
        let ids: Vec<i64> = (0..3).map(|_| gitlab.queue(job(&["true"]).build())).collect();
        let mut agent = home.start(&[]);
        assert!(agent.wait().success());
        let done: Vec<String> = ids.iter().map(|id| gitlab.job_state(*id)).collect();
        assert_eq!(done, ["success", "success", "pending"]);
        assert!(agent.log().contains("mayfly exits reason=max_builds"), "{}", agent.log());
        assert!(agent.log().contains(told), "{}", agent.log());
    }
}

#[test]
fn the_last_matching_period_sets_the_idle_time() {
    let gitlab = GitLab::start();
    let windows = "[runners.machine]\nIdleTime = 3600\n\
        [[runners.machine.autoscaling]]\nPeriods = [\"* * * * *\"]\nTimezone = \"Europe/Amsterdam\"\nIdleTime = 1\n\
        [[runners.machine.autoscaling]]\nPeriods = [\"* * * * * * 1999\"]\nIdleTime = 7200\n";
    let home = Scenario::shell().runner(windows).home(&gitlab);
    // A new instance of a fleet waits longer for its first job.
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&[]);
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
    assert!(agent.log().contains("reason=idle_timeout"), "{}", agent.log());
    assert!(agent.log().contains("the period `* * * * * * 1999` never matches"), "{}", agent.log());
}

#[test]
fn a_reload_does_not_reset_the_idle_time() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&["--idle-timeout", "4s"]);
    let is_leaving = || agent.log().contains("polling stopped");
    agent.wait_for_log("mayfly is up");
    // Reload before each poll until the agent shuts down; if a reload reset the idle time, it never would.
    let began = Instant::now();
    while !is_leaving() {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", agent.log());
        let before = polls(&gitlab);
        agent.signal("HUP");
        agent.wait_until("a poll or the shutdown", || polls(&gitlab) > before || is_leaving());
    }
    assert!(agent.wait().success());
}

#[test]
fn an_agent_past_its_maximum_age_shuts_down_after_its_job() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().mayfly("max_age = \"2s\"").home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    let mut agent = home.start(&[]);
    agent.wait_for_log("polling stopped reason=max_age");
    assert_eq!(gitlab.job_state(id), "running");
    std::fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    assert_eq!(gitlab.job_state(id), "success");
    assert!(agent.log().contains("mayfly exits reason=max_age"), "{}", agent.log());
}

#[test]
fn the_leave_command_powers_off_the_machine() {
    let gitlab = GitLab::start();
    let keys = "max_builds = 1\nleave = \"poweroff\"\npoweroff_command = \"echo off $MAYFLY_LEAVE_REASON >>$HOME/off\"";
    let home = Scenario::shell().mayfly(keys).home(&gitlab);
    let off = home.path("off");
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&[]);
    assert!(agent.wait().success());
    assert_eq!(lines(&off), ["off max_builds"]);
    assert_eq!(gitlab.job_state(id), "success");
    assert!(gitlab.managers().is_empty());
    // The machine still runs for a moment: an agent started now must not poll and must not run the command again.
    let before = polls(&gitlab);
    assert!(home.start(&[]).wait().success());
    assert_eq!((polls(&gitlab), lines(&off).len()), (before, 1));
    gitlab.assert_strict();
}

#[test]
fn an_agent_works_after_power_off_and_boot() {
    let gitlab = GitLab::start();
    let keys = "max_builds = 1\nleave = \"poweroff\"\npoweroff_command = \"true\"";
    let home = Scenario::shell().mayfly(keys).home(&gitlab);
    gitlab.queue(job(&["true"]).build());
    assert!(home.start(&[]).wait().success());
    home.reboot();
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&[]);
    assert!(agent.wait().success());
    assert_eq!(gitlab.job_state(id), "success", "{}", agent.log());
}

#[test]
fn a_machine_powers_off_if_the_leave_command_does_not_end_it_in_time() {
    let gitlab = GitLab::start();
    let keys = "idle_timeout = \"1s\"\nleave = \"command\"\nleave_command = \"echo command >>$HOME/commands; exit 1\"\n\
                poweroff_command = \"echo off >>$HOME/commands\"\nleave_fallback_after = \"2s\"";
    let home = Scenario::shell().mayfly(keys).home(&gitlab);
    let commands = home.path("commands");
    let mut agent = home.start(&[]);
    assert!(agent.wait().success());
    assert_eq!(lines(&commands), ["command", "off"]);
    assert!(agent.log().contains("leave_command failed error=it ended with status 1"), "{}", agent.log());
}

#[test]
fn a_machine_that_cannot_power_off_takes_no_more_jobs() {
    let gitlab = GitLab::start();
    let keys = "max_builds = 1\nleave = \"poweroff\"\npoweroff_command = \"exit 4\"";
    let home = Scenario::shell().mayfly(keys).home(&gitlab);
    gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&[]);
    assert_eq!(agent.wait().code(), Some(70));
    assert!(agent.log().contains("poweroff_command failed"), "{}", agent.log());
    let waiting = gitlab.queue(job(&["true"]).build());
    let before = polls(&gitlab);
    assert_eq!(home.start(&[]).wait().code(), Some(70));
    assert_eq!((polls(&gitlab), gitlab.job_state(waiting).as_str()), (before, "pending"));
}

/// A home whose agent shuts down under the condition `key`. Its leave command adds a line to the first file, then waits
/// for the second file.
fn leaves_by_a_command_that_waits(gitlab: &GitLab, key: &str) -> (Home, PathBuf, PathBuf) {
    let command = format!("echo >>$HOME/ran; {}", until_there("$HOME/go"));
    let keys = format!("{key}\nleave = \"command\"\nleave_command = \"{command}\"");
    let home = Scenario::shell().mayfly(&keys).home(gitlab);
    let (ran, go) = (home.path("ran"), home.path("go"));
    (home, ran, go)
}

#[test]
fn the_next_agent_resumes_an_interrupted_shutdown() {
    // In each phase: while a job runs, after unregistering, and during the command.
    std::thread::scope(|scope| {
        for phase in ["draining", "unregistering", "terminating"] {
            scope.spawn(move || {
                let gitlab = GitLab::start();
                let (home, ran, go) = leaves_by_a_command_that_waits(&gitlab, "max_builds = 1");
                let end = home.path("end");
                let waits = format!("echo begun; {}", until_there(end.display()));
                let id = gitlab.queue(job(&[if phase == "draining" { &waits } else { "true" }, "echo end"]).build());
                if phase == "unregistering" {
                    gitlab.fail("DELETE runners/managers", [Fault::Slow(Duration::from_secs(8))]);
                }
                let agent = home.start(&[]);
                if phase == "draining" {
                    gitlab.wait_for_log(id, "begun");
                }
                let mark = home.path("state/leaving.json");
                agent.wait_until(phase, || {
                    read(&mark).contains(&format!("\"{phase}\"")) && (phase != "terminating" || ran.exists())
                });
                let before = polls(&gitlab);
                agent.kill();
                let waiting = gitlab.queue(job(&["true"]).build());
                for file in [&end, &go] {
                    fs::write(file, "").expect("write a file");
                }
                let mut next = home.start(&[]);
                assert!(next.wait().success(), "{phase}: {}", next.log());
                let states = (gitlab.job_state(id), gitlab.job_state(waiting));
                assert_eq!(states, ("success".to_owned(), "pending".to_owned()), "{phase}: {}", next.log());
                assert_eq!(polls(&gitlab), before, "{phase}: asked for jobs");
                let times = lines(&ran).len();
                assert_eq!(times, if phase == "terminating" { 2 } else { 1 }, "{phase}");
            });
        }
    });
}

#[test]
fn a_stopped_agent_resumes_its_shutdown_at_the_next_start() {
    let gitlab = GitLab::start();
    let (home, ran, go) = leaves_by_a_command_that_waits(&gitlab, "idle_timeout = \"1s\"");
    let mut agent = home.start(&[]);
    wait_for_file(&ran);
    agent.signal("TERM");
    // The agent waits for the command no longer than for jobs.
    assert!(agent.wait().success());
    assert!(agent.log().contains("the next start resumes it"), "{}", agent.log());
    fs::write(&go, "").expect("write a file");
    let before = polls(&gitlab);
    let mut next = home.start(&[]);
    assert!(next.wait().success());
    assert!(next.log().contains("resuming the shutdown reason=idle_timeout"), "{}", next.log());
    assert_eq!(polls(&gitlab), before);
}

#[test]
fn an_agent_whose_start_fails_resumes_its_shutdown() {
    let gitlab = GitLab::start();
    let (home, ran, go) = leaves_by_a_command_that_waits(&gitlab, "idle_timeout = \"1s\"");
    let agent = home.start(&[]);
    wait_for_file(&ran);
    agent.kill();
    fs::write(&go, "").expect("write a file");
    let text = read(&home.config());
    fs::write(home.config(), format!("listen_address = \"192.0.2.1:9252\"\n{text}")).expect("write a file");
    let mut next = home.start(&[]);
    assert!(next.wait().success(), "{}", next.log());
    assert!(next.log().contains("192.0.2.1") && lines(&ran).len() == 2, "{}", next.log());
    fs::remove_file(home.path("state/leaving.json")).expect("remove the file");
    assert!(!home.start(&[]).wait().success(), "an agent that does not shut down must not start without its listener");
}

#[test]
fn the_shutdown_state_of_another_machine_is_discarded() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    fs::create_dir(home.path("state")).expect("create the directory");
    let mark = "{\"identity\":{\"instance\":\"i-0000000000000000a\",\"boot\":\"b\"},\"reason\":\"max_builds\",\
                \"interrupted\":false,\"terminated\":false,\"phase\":\"left\",\"unregistered_at\":5}";
    fs::write(home.path("state/leaving.json"), mark).expect("write a file");
    let count = "{\"identity\":{\"instance\":\"i-0000000000000000a\",\"boot\":\"b\"},\"jobs\":9}";
    fs::write(home.path("state/agent.json"), count).expect("write a file");
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--max-builds", "1"]);
    assert!(agent.wait().success());
    assert_eq!(gitlab.job_state(id), "success", "{}", agent.log());
    assert!(agent.log().contains("discarding the shutdown state of another machine"), "{}", agent.log());
}

#[test]
fn a_new_instance_is_not_idle_before_its_first_job() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().runner("[[runners.autoscaler.policy]]\nidle_time = \"0s\"\n").home(&gitlab);
    let mut agent = home.start(&[]);
    gitlab.wait_until("empty answers", |server| polls(server) >= 3);
    assert!(!agent.log().contains("polling stopped"), "{}", agent.log());
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
    assert!(agent.log().contains("reason=idle_timeout"), "{}", agent.log());
}
