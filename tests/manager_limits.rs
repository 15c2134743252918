//! The limits of the jobs that a manager holds, and of the jobs of an instance.

use std::fs;

use crate::support::fleet::{Fleet, wait_until};
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::read;

const RELAY: &str = "[[runners.autoscaler.policy]]\nidle_count = 2\nidle_time = \"1h\"\npreemptive_mode = true\n";
const HOLD: &str = "[[runners.autoscaler.policy]]\nidle_count = 0\nidle_time = \"1h\"\npreemptive_mode = false\n";

/// A fleet with another value in its configuration.
fn fleet_with(gitlab: &GitLab, policy: &str, old: &str, new: &str) -> Fleet {
    let fleet = Fleet::new(gitlab, "", policy);
    let text = read(&fleet.home.config());
    assert!(text.contains(old), "{text}");
    fs::write(fleet.home.config(), text.replace(old, new)).expect("write a file");
    fleet
}

/// `concurrent`, `limit` and `max_instances` bound held and running jobs together.
#[test]
fn no_more_jobs_are_in_hand_than_the_limits_allow() {
    for (old, new) in [
        ("concurrent = 100\n", "concurrent = 2\n"),
        ("executor = \"instance\"\n", "executor = \"instance\"\nlimit = 2\n"),
        ("max_instances = 10\n", "max_instances = 2\n"),
    ] {
        let gitlab = GitLab::start();
        let fleet = fleet_with(&gitlab, HOLD, old, new);
        let manager = fleet.start();
        let ids: Vec<i64> = (0..4).map(|_| gitlab.queue(job(&["true"]).build())).collect();
        ids[..2].iter().for_each(|id| gitlab.wait_for_log(*id, "waiting for an instance"));
        fleet.set_members(&["i-1"]);
        let (_home, agent) = fleet.agent(&manager, "i-1");
        for id in &ids {
            assert_eq!(gitlab.finished(*id).state, "success", "{new}\n{}\n{}", agent.log(), manager.log());
        }
        wait_until("all jobs must end", || manager.log().matches("job ended").count() == 4);
        let (mut in_hand, mut most) = (0_i32, 0);
        for line in manager.log().lines() {
            in_hand += i32::from(line.starts_with("job received")) - i32::from(line.starts_with("job ended"));
            most = most.max(in_hand);
        }
        assert_eq!(most, 2, "{new}\n{}", manager.log());
    }
}

/// Without an agent that waits, GitLab keeps the job for other runners.
#[test]
fn a_relay_asks_for_jobs_only_while_an_agent_waits() {
    let gitlab = GitLab::start();
    let fleet = Fleet::new(&gitlab, "", RELAY);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo relayed"]).build());
    fleet.wait_until("idle instances must start", || fleet.engine_calls().contains("\"set_target\""));
    assert_eq!((gitlab.count("POST jobs/request"), gitlab.job_state(id).as_str()), (0, "pending"));
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
}

#[test]
fn an_instance_runs_as_many_jobs_at_once_as_the_pool_says() {
    let gitlab = GitLab::start();
    let fleet = fleet_with(&gitlab, RELAY, "capacity_per_instance = 1\n", "capacity_per_instance = 2\n");
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let (home, agent) = fleet.agent(&manager, "i-1");
    let go = home.path("go");
    let script = ["echo begun", &until_there(go.display())];
    let ids = [gitlab.queue(job(&script).build()), gitlab.queue(job(&script).build())];
    ids.iter().for_each(|id| gitlab.wait_for_log(*id, "begun"));
    let third = gitlab.queue(job(&["echo third"]).build());
    fs::write(&go, "").expect("write a file");
    for id in ids.into_iter().chain([third]) {
        assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
    }
}

/// Both slots poll at the same time; the instance still gets only its maximum number of jobs.
#[test]
fn an_instance_gets_no_more_jobs_than_max_use_count() {
    let gitlab = GitLab::start();
    let used = "capacity_per_instance = 2\nmax_use_count = 3\n";
    let fleet = fleet_with(&gitlab, RELAY, "capacity_per_instance = 1\n", used);
    fleet.set_members(&["i-1", "i-2"]);
    let manager = fleet.start();
    let (_home, mut first) = fleet.agent(&manager, "i-1");
    let ids: Vec<i64> = (0..5).map(|_| gitlab.queue(job(&["true"]).build())).collect();
    assert!(first.wait().success(), "{}", first.log());
    let (_home, second) = fleet.agent(&manager, "i-2");
    for id in ids {
        assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", second.log(), manager.log());
    }
    let accepted = |instance: &str| {
        let by = |line: &&str| line.starts_with("job accepted") && line.ends_with(&format!("instance={instance}"));
        manager.log().lines().filter(by).count()
    };
    assert_eq!((accepted("i-1"), accepted("i-2")), (3, 2), "{}", manager.log());
}
