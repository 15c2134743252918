//! `mayfly manager` reloads its configuration.

use std::fs;
use std::net::TcpListener;

use crate::support::fleet::{Fleet, Manager, wait_until};
use crate::support::gitlab::{GitLab, RUNNER_TOKEN};
use crate::support::job::{job, until_there};
use crate::support::mayfly::read;
use crate::support::moto::Moto;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

const TOKEN_AFTER_RESET: &str = "glrt-tokenAfterReset";

/// Replaces a part of the manager's file.
fn replace(fleet: &Fleet, old: &str, new: &str) {
    let text = read(&fleet.home.config());
    assert!(text.contains(old), "`{old}` is not in:\n{text}");
    fs::write(fleet.home.config(), text.replace(old, new)).expect("write a file");
}

/// Changes the name of the pool and the arguments of its engine in one write, because the manager watches the file.
fn rename(fleet: &Fleet, arguments: &str) {
    let directory = fleet.home.path("").display().to_string();
    let text = read(&fleet.home.config()).replace("name = \"pool\"", "name = \"other\"");
    let text = text.replace(&format!(", \"{directory}\"]"), &format!(", \"{directory}{arguments}\"]"));
    let draft = fleet.home.path("draft");
    fs::write(&draft, text).expect("write a file");
    fs::set_permissions(&draft, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set the permissions");
    fs::rename(&draft, fleet.home.config()).expect("rename the file");
}

/// The threads of the manager that poll GitLab.
fn takers(manager: &Manager) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", manager.pid())).expect("a process");
    let is_taker = |task: &fs::DirEntry| read(&task.path().join("comm")).trim() == "take";
    tasks.filter_map(Result::ok).filter(is_taker).count()
}

#[test]
fn the_number_of_polls_at_once_follows_the_file() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().runner("request_concurrency = 1").fleet(&gitlab);
    let manager = fleet.start();
    wait_until("one thread polls", || takers(&manager) == 1);
    for (before, after) in [(1, 4), (4, 2)] {
        replace(&fleet, &format!("request_concurrency = {before}"), &format!("request_concurrency = {after}"));
        manager.signal("HUP");
        wait_until("as many threads poll as configured", || takers(&manager) == after);
    }
}

/// Agents that are registered follow, those that wait as well as those that restart.
#[test]
fn agents_run_as_many_jobs_at_once_as_the_file_says() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let (home, agent) = fleet.agent(&manager, "i-1");
    replace(&fleet, "capacity_per_instance = 1\n", "capacity_per_instance = 2\n");
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
    let (old, new) = (format!("127.0.0.1:{}", fleet.port), format!("127.0.0.2:{}", fleet.port));
    let taken = TcpListener::bind(&new).expect("a free address");
    replace(&fleet, &format!("listen = \"{old}\""), &format!("listen = \"{new}\""));
    manager.signal("HUP");
    manager.wait_for_log("cannot apply the configuration; the old one stays in use error=`listen");
    drop(taken);
    manager.signal("HUP");
    manager.wait_for_log("agents are accepted on another address");
    let home = fleet.agent_home("i-1", "", "");
    let text = read(&home.config()).replace(&old, &new);
    fs::write(home.config(), text).expect("write a file");
    let _agent = home.start(&[]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
}

#[test]
fn a_new_token_in_the_file_ends_the_pause_after_rejections() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    replace(&fleet, RUNNER_TOKEN, "glrt-wrong-at-first");
    let manager = fleet.start();
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    manager.wait_for_log("rejected too often; polling paused");
    replace(&fleet, "glrt-wrong-at-first", RUNNER_TOKEN);
    manager.signal("HUP");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
}

#[test]
fn a_stored_token_is_fetched_again_when_gitlab_rejects_it() {
    let moto = Moto::start();
    let put = |value: &str| {
        moto.check_rights(false);
        moto.python(&format!(
            "client('ssm').put_parameter(Name='/ci/token', Type='SecureString', Value='{value}', Overwrite=True)"
        ));
        moto.check_rights(true);
    };
    put(RUNNER_TOKEN);
    moto.check_rights(false);
    let user = moto.user("manager", &["ssm:GetParameter"]);
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let mut fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    replace(&fleet, RUNNER_TOKEN, "aws-ssm:/ci/token");
    fleet.home.set_environment(user.environment(&moto));
    let manager = fleet.start();
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    put(TOKEN_AFTER_RESET);
    let rotator = Scenario::shell().home(&gitlab);
    let config = rotator.config().display().to_string();
    assert!(rotator.call(&["reset-token", "--config", &config, "--name", "test"]).status.success());
    manager.wait_for_log("new runner tokens are in use");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    let log = manager.log();
    assert!(!log.contains(TOKEN_AFTER_RESET) && !log.contains(RUNNER_TOKEN), "{log}");
}

#[test]
fn a_removed_pool_ends_its_jobs_then_its_instances_and_threads() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let (home, agent) = fleet.agent(&manager, "i-1");
    let go = home.path("go");
    let running = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(running, "begun");
    let held = gitlab.queue(job(&["true"]).build());
    gitlab.wait_for_log(held, "waiting for an instance of pool pool");
    fs::create_dir(fleet.home.path("other")).expect("a directory");
    fs::write(fleet.home.path("other/members"), "{\"members\": []}\n").expect("write a file");
    rename(&fleet, "/other");
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
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let (home, _agent) = fleet.agent(&manager, "i-1");
    let go = home.path("go");
    let script = format!("echo >> {}", home.path("runs").display());
    let running = gitlab.queue(job(&[&script, "echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(running, "begun");
    rename(&fleet, "");
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
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    replace(&fleet, "executor = \"instance\"", "executor = \"instance\"\ntls-ca-file = \"/missing.pem\"");
    manager.signal("HUP");
    manager.wait_for_log("pool `pool`: /missing.pem");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(!manager.log().contains("no longer configured"), "{}", manager.log());
}
