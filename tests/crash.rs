//! The agent dies, with or without its shims, and the next agent resumes its jobs. `crash_stages.rs` has each stage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::journal::has_outcome;
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::mayfly::{is_running, kill_shims, nap, read};
use crate::support::scenario::Scenario;
use crate::support::{holds_within, kill_process, unique_number, wait_until};

/// A job that prints numbered lines.
fn counting() -> JobBuilder {
    job(&["for i in 1 2 3 4 5 6; do echo \"tick $i\"; sleep 0.5; done"])
        .after_script(&["echo after; sleep 1; echo end"])
}

/// Asserts that the log of a job of [`counting`] is complete, without duplicates.
fn assert_whole(job: &Job) {
    assert_eq!(job.state, "success", "{}", job.log());
    let lines = job.lines();
    let once = ["tick 1", "tick 2", "tick 3", "tick 4", "tick 5", "tick 6", "after", "end", "Job succeeded"];
    let headings = [
        "Preparing environment",
        "Executing \"step_script\" stage of the job script",
        "Running after_script",
        "Cleaning up project directory and file based variables",
    ];
    for line in once.iter().chain(&headings) {
        assert_eq!(lines.iter().filter(|other| other == line).count(), 1, "{line} in {lines:#?}");
    }
}

#[test]
fn a_killed_agent_has_no_effect_on_its_job() {
    for moment in ["tick 1", "tick 4", "after"] {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let id = gitlab.queue(counting().build());
        let agent = home.start(&[]);
        gitlab.wait_for_log(id, moment);
        agent.kill();
        let mut next = home.start(&[]);
        assert_whole(&gitlab.finished(id));
        next.drain();
        gitlab.assert_strict();
    }
}

#[test]
fn no_log_line_is_lost_or_duplicated_if_the_agent_is_killed_at_any_time() {
    // These moments cover the whole job, within stages and between them.
    for millis in (0..1200).step_by(150) {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let id = gitlab.queue(job(&["echo only once", "sleep 0.4", "echo done"]).after_script(&["echo after"]).build());
        let agent = home.start(&[]);
        gitlab.wait_until("the job is taken", |server| server.job(id).state == "running");
        std::thread::sleep(std::time::Duration::from_millis(millis));
        agent.kill();
        if gitlab.job(id).state == "success" {
            continue;
        }
        if !home.path("state/slot-0/job.json").exists() {
            // The agent died between GitLab's response and the first write to the journal: GitLab drops such a job.
            continue;
        }
        let mut next = home.start(&[]);
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "after {millis} ms: {}", job.log());
        for line in ["only once", "done", "after", "Job succeeded"] {
            assert_eq!(
                job.lines().iter().filter(|other| *other == line).count(),
                1,
                "{line} after {millis} ms: {:#?}",
                job.lines()
            );
        }
        next.drain();
        gitlab.assert_strict();
    }
}

#[test]
fn a_job_that_repeatedly_crashes_the_agent_is_failed() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let nap = nap();
    let id = gitlab.queue(job(&["echo begun", &nap]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    for round in 1..=5 {
        let next = home.start(&[]);
        gitlab.wait_until("the record", |_| {
            home.record()["progress"]["resumed_at"].as_array().is_some_and(|deaths| deaths.len() == round)
        });
        next.kill();
    }
    let mut last = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
    assert!(
        job.log().contains("the agent was killed or crashed 6 times in a row while it ran this job"),
        "{}",
        job.log()
    );
    assert!(!is_running(&nap), "the agent must end the script");
    last.drain();
    gitlab.assert_strict();
}

#[test]
fn the_next_agent_reads_the_result_of_a_script_that_ended_meanwhile() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let lines = ["echo begun", &until_there(go.display()), "echo over; exit 7"];
    let id = gitlab.queue(job(&lines).after_script(&["echo after"]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    std::fs::write(&go, "").expect("write a file");
    gitlab.wait_until("the end of the script", |_| has_outcome(&home));
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(7)));
    assert!(job.lines().contains(&"over".to_owned()) && job.lines().contains(&"after".to_owned()));
    next.signal("QUIT");
    next.wait();
    gitlab.assert_strict();
}

#[test]
fn the_job_timeout_applies_while_no_agent_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let waited = nap();
    let id = gitlab.queue(job(&["echo begun", &waited]).after_script(&[&waited]).timeout(15).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    assert!(is_running(&waited), "the shim holds the script");
    wait_until("the end of the script", || !is_running(&waited));
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("job_execution_timeout"), "{}", job.log());
    next.drain();
    gitlab.assert_strict();
}

#[test]
fn a_job_whose_shim_died_is_reported_and_cleaned_up() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let (detached, waited) = (nap(), nap());
    let id = gitlab.queue(job(&["echo begun", &format!("setsid {detached} & {waited}")]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    assert!(kill_shims(id) > 0);
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"));
    assert!(job.lines().contains(&"begun".to_owned()), "the log up to there");
    assert!(!is_running(&detached) && !is_running(&waited));
    next.drain();
    gitlab.assert_strict();
}

#[test]
fn a_job_of_an_earlier_boot_is_reported_but_not_one_of_another_machine() {
    for (key, reported) in [("boot", true), ("instance", false)] {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let pid = home.path("pid");
        let id = gitlab.queue(
            job(&["echo $BASHPID >$PID_FILE", "echo begun", "exec sleep 600"])
                .variable("PID_FILE", &pid.display().to_string())
                .build(),
        );
        let agent = home.start(&[]);
        gitlab.wait_for_log(id, "begun");
        agent.kill();
        kill_shims(id);
        let mut record = home.record();
        record["identity"][key] = "another".into();
        home.set_record(&record);
        let mut next = home.start(&[]);
        next.wait_for_log("mayfly is up");
        if reported {
            let job = gitlab.finished(id);
            assert_eq!(job.failure_reason.as_deref(), Some("runner_system_failure"));
            assert!(job.lines().iter().any(|line| line.contains("the machine went down")));
        }
        next.drain();
        assert_eq!(gitlab.job(id).state == "failed", reported);
        assert!(!home.path("state/slot-0").exists());
        // The agent ends processes of its own machine only; the journal of another machine proves nothing about them.
        let script: i32 = read(&pid).trim().parse().expect("the pid of the script");
        assert_eq!(read(format!("/proc/{script}/cmdline").as_ref()).is_empty(), reported);
        kill_process(script);
    }
}

#[test]
fn the_next_agent_sends_an_unsent_final_state() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    gitlab.stop_responding();
    std::fs::write(&go, "").expect("write a file");
    let record = home.path("state/slot-0/job.json");
    gitlab.wait_until("the outcome in the record", |_| read(&record).contains("\"final_state\":\"success\""));
    agent.kill();
    gitlab.resume_responding();
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success");
    assert_eq!(job.lines().iter().filter(|line| *line == "Job succeeded").count(), 1);
    next.signal("QUIT");
    next.wait();
    gitlab.assert_strict();
}

#[test]
fn max_builds_counts_across_a_crash() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let go = home.path("go");
    let first = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    let agent = home.start(&["--max-builds", "1"]);
    gitlab.wait_for_log(first, "begun");
    agent.kill();
    std::fs::write(&go, "").expect("write a file");
    let second = gitlab.queue(job(&["true"]).build());
    let mut next = home.start(&["--max-builds", "1"]);
    assert!(next.wait().success());
    assert_eq!(gitlab.job(first).state, "success");
    assert_eq!(gitlab.job(second).state, "pending");
}

/// A limit for the processes and threads of one process and its children; removed when the test ends.
struct ProcessLimit(PathBuf);

impl ProcessLimit {
    fn of(process: i32) -> Self {
        let base = Path::new("/sys/fs/cgroup");
        let root = if base.join("pids").is_dir() { base.join("pids") } else { base.to_owned() };
        let limit = Self(root.join(format!("mayfly-test-{}-{}", std::process::id(), unique_number())));
        fs::create_dir(&limit.0).expect("a control group");
        limit.write("cgroup.procs", &process.to_string());
        limit
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

impl Drop for ProcessLimit {
    fn drop(&mut self) {
        // The kernel removes a group only after its last process has ended.
        holds_within(Duration::from_secs(10), || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_job_without_a_thread_fails_at_once_and_the_next_one_runs() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let agent = home.start(&[]);
    let limit = ProcessLimit::of(agent.pid());
    gitlab.wait_until("a request", |server| server.count("POST jobs/request") > 0);
    let threads = fs::read_to_string(limit.0.join("pids.current")).expect("a number");
    limit.write("pids.max", &threads);
    let id = gitlab.queue(job(&["true"]).build());
    let failed = gitlab.finished(id);
    assert_eq!(failed.failure_reason.as_deref(), Some("runner_system_failure"), "{}", agent.log());
    assert!(agent.log().contains("cannot create a thread for the job"), "{}", agent.log());
    limit.write("pids.max", "max");
    let id = gitlab.queue(job(&["echo number $CI_CONCURRENT_ID"]).build());
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}", agent.log());
    assert!(done.lines().contains(&"number 0".to_owned()), "{}", done.log());
    agent.kill();
    gitlab.assert_strict();
}
