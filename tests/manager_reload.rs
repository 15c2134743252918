//! `mayfly manager` reloads its configuration.

use std::fs;
use std::net::TcpListener;

use crate::support::fleet::{Manager, wait_until};
use crate::support::gitlab::{GitLab, RUNNER_TOKEN};
use crate::support::job::{job, until_there};
use crate::support::mayfly::read;
use crate::support::moto::Moto;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

const TOKEN_AFTER_RESET: &str = "glrt-tokenAfterReset";

/// The threads of the manager that poll GitLab.
fn takers(manager: &Manager) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", manager.pid())).expect("a process");
    let is_taker = |task: &fs::DirEntry| read(&task.path().join("comm")).trim() == "take";
    tasks.filter_map(Result::ok).filter(is_taker).count()
}

#[test]
fn the_number_of_polls_at_once_follows_the_file() {
    let gitlab = GitLab::start();
    let pool = |polls: usize| Pool::relay().runner(&format!("request_concurrency = {polls}"));
    let fleet = pool(1).fleet(&gitlab);
    let manager = fleet.start();
    wait_until("one thread polls", || takers(&manager) == 1);
    for polls in [4, 2] {
        pool(polls).write(&fleet, &gitlab.url);
        manager.signal("HUP");
        wait_until("as many threads poll as configured", || takers(&manager) == polls);
    }
}

/// Agents that are registered follow, those that wait as well as those that restart.
#[test]
fn agents_run_as_many_jobs_at_once_as_the_file_says() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
    Pool::relay().autoscaler("capacity_per_instance = 2").write(&fleet, &gitlab.url);
    manager.signal("HUP");
    let url = fleet.url();
    agent.wait_for_log(&format!("the manager changed the number of concurrent jobs url={url} capacity=2"));
    let two_at_once = |name: &str| {
        let go = home.path(name);
        let script = ["echo begun", &until_there(go.display())];
        let ids = [gitlab.queue(job(&script).build()), gitlab.queue(job(&script).build())];
        ids.iter().for_each(|id| gitlab.wait_for_log(*id, "begun"));
        fs::write(&go, "").expect("write a file");
        ids.iter().for_each(|id| assert_eq!(gitlab.finished(*id).state, "success", "{}", manager.log()));
    };
    two_at_once("first");
    agent.kill();
    let _agent = home.start(&[]);
    two_at_once("second");
}

#[test]
fn agents_are_accepted_on_another_address_after_a_reload() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    // Another loopback address, on which no other test listens.
    let other = format!("127.0.0.2:{}", fleet.port);
    let taken = TcpListener::bind(&other).expect("a free address");
    Pool::relay().listen(&other).write(&fleet, &gitlab.url);
    manager.signal("HUP");
    manager.wait_for_log("cannot apply the configuration; the old one stays in use error=`listen");
    drop(taken);
    manager.signal("HUP");
    manager.wait_for_log("listening for agents on another address");
    let home = Scenario::managed("i-1").home_at(&format!("http://{other}"));
    let _agent = home.start(&[]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
}

#[test]
fn a_new_token_in_the_file_ends_the_pause_after_rejections() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().token("glrt-wrong-at-first").fleet(&gitlab);
    let (manager, _home, _agent) = fleet.start_with_agent("i-1");
    manager.wait_for_log("rejected too often; polling paused");
    Pool::relay().write(&fleet, &gitlab.url);
    manager.signal("HUP");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
}

#[test]
fn a_stored_token_is_fetched_again_when_gitlab_rejects_it() {
    let moto = Moto::start();
    let put = |value: &str| moto.put_parameter("/ci/token", value);
    put(RUNNER_TOKEN);
    moto.ignore_permissions();
    let user = moto.user("manager", &["ssm:GetParameter"]);
    moto.enforce_permissions();
    let gitlab = GitLab::start();
    let mut fleet = Pool::relay().token("aws-ssm:/ci/token").fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    fleet.home.set_environment(user.environment(&moto));
    let manager = fleet.start();
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    put(TOKEN_AFTER_RESET);
    let rotator = Scenario::shell().home(&gitlab);
    let config = rotator.config().display().to_string();
    assert!(rotator.call(&["reset-token", "--config", &config, "--name", "test"]).status.success());
    manager.wait_for_log("stored tokens have changed; the pools use the new ones");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    let log = manager.log();
    assert!(!log.contains(TOKEN_AFTER_RESET) && !log.contains(RUNNER_TOKEN), "{log}");
}

#[test]
fn a_removed_pool_ends_its_jobs_then_its_instances_and_threads() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let running = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(running, "begun");
    let held = gitlab.queue(job(&["true"]).build());
    gitlab.wait_for_log(held, "waiting for an instance of pool pool");
    fs::create_dir(fleet.home.path("other")).expect("a directory");
    fs::write(fleet.home.path("other/members"), "{\"members\": []}\n").expect("write a file");
    Pool::hold().name("other").engine("command", &fleet.engine("other")).write(&fleet, &gitlab.url);
    manager.signal("HUP");
    let failed = gitlab.finished(held);
    assert_eq!((failed.state.as_str(), failed.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
    assert!(failed.has("the pool of this job was removed"), "{}", failed.log());
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(running).state, "success", "a running job ends as usual");
    agent.wait_for_log("the pool was removed");
    wait_until("the instance is terminated", || fleet.engine_calls().contains("\"terminate\""));
    fleet.set_members(&[]);
    manager.wait_for_log("the pool has ended pool=pool");
    wait_until("its threads end", || takers(&manager) == 1);
}

#[test]
fn a_renamed_pool_keeps_its_instances_and_running_jobs() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let script = format!("echo >> {}", home.path("runs").display());
    let running = gitlab.queue(job(&[&script, "echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(running, "begun");
    Pool::hold().name("other").write(&fleet, &gitlab.url);
    manager.signal("HUP");
    manager.wait_for_log("agent registered pool=other instance=i-1");
    manager.wait_for_log(&format!("job adopted from its agent pool=other job={running} instance=i-1"));
    manager.wait_for_log("the pool has ended pool=pool");
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(running).state, "success");
    let next = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(next).state, "success");
    manager.wait_for_log(&format!("job ended pool=other job={next}"));
    assert_eq!(read(&home.path("runs")).lines().count(), 1, "the script ran once");
    assert!(!fleet.engine_calls().contains("\"terminate\""), "{}", fleet.engine_calls());
}

#[test]
fn a_pool_whose_new_settings_cannot_be_used_keeps_the_old_ones() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, _home, _agent) = fleet.start_with_agent("i-1");
    Pool::relay().runner("tls-ca-file = \"/missing.pem\"").write(&fleet, &gitlab.url);
    manager.signal("HUP");
    manager.wait_for_log("pool `pool`: /missing.pem");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(!manager.log().contains("no longer configured"), "{}", manager.log());
}
