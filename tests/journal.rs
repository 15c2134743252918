//! The content of the journal, and how the next agent uses it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::gitlab::{Fault, GitLab, Job};
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Home, read};
use crate::support::scenario::Scenario;

fn change(home: &Home, change: impl FnOnce(&mut Value)) {
    let mut record = home.record();
    assert!(record.is_object(), "a record");
    change(&mut record);
    home.set_record(&record);
}

fn count(job: &Job, line: &str) -> usize {
    job.lines().iter().filter(|other| *other == line).count()
}

/// Whether a step has written its result.
pub fn has_outcome(home: &Home) -> bool {
    let entries = std::fs::read_dir(home.path("state/slot-0")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.path().extension().is_some_and(|extension| extension == "status"))
}

#[test]
fn the_next_agent_knows_of_a_cancel() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let gate = home.path("gate");
    // The script notices the stop and continues for a while, so that the agent dies between the stop and the result.
    let script = format!(
        "trap ': >{0}.heard; while [ ! -e {0} ]; do sleep 0.1; done; exit 9' TERM; echo begun; \
         while :; do echo tick; sleep 0.1 || true; done",
        gate.display()
    );
    let id = gitlab.queue(job(&[&script]).after_script(&["echo \"after: $CI_JOB_STATUS\""]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    gitlab.cancel(id);
    gitlab.wait_until("the script to be stopped", |_| home.path("gate.heard").exists());
    agent.kill();
    std::fs::write(&gate, "").expect("write a file");
    // The result exists before the next agent starts; it says `exit 9` and nothing of the cancel.
    gitlab.wait_until("the step to end", |_| has_outcome(&home));
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.failure_reason.as_deref()), ("canceled", Some("job_canceled")));
    assert_eq!(count(&job, "after: canceled"), 1, "{:#?}", job.lines());
    assert_eq!(count(&job, "WARNING: script canceled externally (UI, API)"), 1);
    next.drain();
    gitlab.assert_strict();
}

#[test]
fn a_pending_warning_is_written_once() {
    for said in [false, true] {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let gate = home.path("gate");
        let id = gitlab.queue(job(&["echo begun", &until_there(gate.display()), "echo over"]).build());
        let agent = home.start(&[]);
        // The last line before the script waits: the log must not grow later.
        gitlab.wait_until("the echo of the last command", |server| {
            server.job(id).lines().iter().any(|line| line.starts_with("$ for i in"))
        });
        agent.kill();
        // The same state as if the agent had died while it wrote the warning: before the write, or just after it.
        let size = std::fs::metadata(home.path("state/slot-0/trace")).expect("a log").len();
        change(&home, |record| {
            record["progress"]["log"]["pending_warning"] = json!("only once");
            record["progress"]["log"]["size"] = json!(if said { size - 1 } else { size });
        });
        let mut next = home.start(&[]);
        next.wait_for_log("job resumed from journal");
        std::fs::write(&gate, "").expect("write a file");
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "{}", job.log());
        assert_eq!(count(&job, "WARNING: only once"), usize::from(!said), "{:#?}", job.lines());
        assert_eq!(count(&job, "over"), 1);
        next.drain();
        gitlab.assert_strict();
    }
}

#[test]
fn a_finished_stage_is_not_repeated() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let (gate, mark) = (home.path("gate"), home.path("mark"));
    let count_runs = format!("echo x >>{}", mark.display());
    let script = ["echo begun", &count_runs, &until_there(gate.display()), "exit 4"];
    let id = gitlab.queue(job(&script).after_script(&["echo after"]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    std::fs::write(&gate, "").expect("write a file");
    gitlab.wait_until("the step to end", |_| has_outcome(&home));
    // The same state as if the agent had died right after it recorded the result of the script.
    change(&home, |record| {
        let progress = &mut record["progress"];
        progress["stage"]["state"] = json!("settled");
        progress["failure"] = json!({"reason": "script_failure", "exit_code": 4, "message": "exit status 4"});
    });
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(4)));
    assert_eq!((count(&job, "after"), read(&mark).as_str()), (1, "x\n"), "{:#?}", job.lines());
    next.drain();
    gitlab.assert_strict();
}

#[test]
fn a_resumed_job_keeps_its_directories_after_a_configuration_change() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let gate = home.path("gate");
    let script = ["echo \"script in $PWD\"", "echo begun", &until_there(gate.display())];
    let after = ["echo \"after in $PWD\"", "cat \"$KEY\""];
    let id = gitlab.queue(job(&script).after_script(&after).file("KEY", "of the job").build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    Scenario::shell()
        .runner(&format!("builds_dir = \"{}\"", home.path("elsewhere").display()))
        .write(&home, &gitlab.url);
    let mut next = home.start(&[]);
    std::fs::write(&gate, "").expect("write a file");
    let job = gitlab.finished(id);
    let of = |prefix: &str| {
        let line = job.lines().into_iter().find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
        line.unwrap_or_else(|| panic!("{prefix} in {:#?}", job.lines()))
    };
    assert_eq!(of("script in "), of("after in "));
    assert!(!Path::new(&format!("{}.tmp/KEY", of("after in "))).exists(), "secrets are removed there");
    next.drain();
    gitlab.assert_strict();
}

#[test]
fn a_job_that_was_not_acknowledged_is_acknowledged_by_the_next_agent() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    gitlab.fail("PUT job", [Fault::Slow(Duration::from_secs(5))]);
    let id = gitlab.queue(job(&["echo begun"]).build());
    let agent = home.start(&[]);
    gitlab.wait_until("the job to be acknowledged", |gitlab| gitlab.count("PUT job") == 1);
    agent.kill();
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), count(&job, "begun")), ("success", 1));
    // The one without a response, the one of the next agent, and the final state.
    assert_eq!(gitlab.count("PUT job"), 3);
    next.drain();
    gitlab.assert_strict();
}

#[test]
fn a_job_of_another_versions_journal_is_reported_as_failed() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let id = gitlab.queue(job(&["echo begun", "sleep 1000"]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    change(&home, |record| {
        record["version"] = json!(99);
        record["progress"]["stage"] = json!({"running": record["progress"]["stage"]["state"]});
    });
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
    assert_eq!(count(&job, "begun"), 1, "{:#?}", job.lines());
    assert!(job.log().contains("another version of mayfly"), "{}", job.log());
    assert!(next.log().contains("version=99 own_version="), "{}", next.log());
    next.drain();
    assert!(!home.path("state/slot-0").exists());
    gitlab.assert_strict();
}
