//! The limits of the jobs that a manager holds, and of the jobs of an instance.

use std::fs;

use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::pool::Pool;

/// `concurrent`, `limit` and `max_instances` bound held and running jobs together.
#[test]
fn no_more_jobs_are_in_hand_than_the_limits_allow() {
    for (limit, pool) in [
        ("concurrent", Pool::hold().config("concurrent = 2")),
        ("limit", Pool::hold().runner("limit = 2")),
        ("max_instances", Pool::hold().autoscaler("max_instances = 2")),
    ] {
        let gitlab = GitLab::start();
        let fleet = pool.fleet(&gitlab);
        let manager = fleet.start();
        let ids: Vec<i64> = (0..4).map(|_| gitlab.queue(job(&["true"]).build())).collect();
        ids[..2].iter().for_each(|id| gitlab.wait_for_log(*id, "waiting for an instance"));
        fleet.set_members(&["i-1"]);
        let (_home, agent) = fleet.agent(&manager, "i-1");
        for id in &ids {
            assert_eq!(gitlab.finished(*id).state, "success", "{limit}\n{}\n{}", agent.log(), manager.log());
        }
        // The manager has a job at least from GitLab's response until GitLab accepts the final state.
        let jobs: Vec<_> = ids.iter().map(|id| gitlab.job(*id)).collect();
        let in_hand = |at| jobs.iter().filter(|job| job.taken <= at && job.ended > at).count();
        let most = jobs.iter().map(|job| in_hand(job.taken)).max().unwrap_or_default();
        assert_eq!(most, 2, "{limit}\n{}", manager.log());
    }
}

/// Without an agent that waits, GitLab keeps the job for other runners.
#[test]
fn a_relay_asks_for_jobs_only_while_an_agent_waits() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
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
    let fleet = Pool::relay().autoscaler("capacity_per_instance = 2").fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
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
    let fleet = Pool::relay().autoscaler("capacity_per_instance = 2\nmax_use_count = 3").fleet(&gitlab);
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
