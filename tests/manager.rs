//! `mayfly manager` with real agents: each job is handed to one agent, even if the manager or an agent dies.

use std::fs;

use serde_json::json;

use crate::support::fleet::{FLEET_TOKEN, wait_until};
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::{kill_shims, read};
use crate::support::pki::Pki;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

#[test]
fn a_job_is_handed_to_an_agent_which_reports_to_gitlab() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().runner("environment = [\"FROM_POOL=yes\"]").fleet(&gitlab);
    let (manager, _home, agent) = fleet.start_with_agent("i-1");
    let id = gitlab.queue(job(&["echo \"pool $FROM_POOL\"", "echo \"runner $CI_RUNNER_SHORT_TOKEN\""]).build());
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}\n{}", done.log(), agent.log(), manager.log());
    assert!(done.has("pool yes") && done.has("runner tokenOfTh"), "{}", done.log());
    manager.wait_for_log(&format!("job ended pool=pool job={id} instance=i-1"));
    assert_eq!(gitlab.managers().len(), 1, "agents do not ask GitLab for jobs");
    assert!(!read(&fleet.home.path("manager/state")).contains("glcbt"), "secrets are encrypted");
    for text in [agent.log(), manager.log()] {
        assert!(!text.contains(FLEET_TOKEN) && !text.contains("tokenOfTheRunner"), "{text}");
    }
}

#[test]
fn a_running_job_does_not_notice_that_the_manager_is_replaced() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo ended"]).build());
    gitlab.wait_for_log(id, "begun");
    manager.kill();
    let manager = fleet.start();
    manager.wait_for_log("state restored pool=pool agents=1 jobs=1 held=0");
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "the idle agent reconnects");
}

#[test]
fn a_job_is_held_until_an_instance_takes_it() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo started"]).build());
    gitlab.wait_for_log(id, "waiting for an instance of pool pool");
    fleet.wait_until("the group must grow", || fleet.engine_calls().contains("\"set_target\""));
    manager.kill();
    let manager = fleet.start();
    manager.wait_for_log("held=1");
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(done.has("waiting for an instance") && done.has("started"), "{}", done.log());
    assert!(done.has("Running with mayfly"), "{}", done.log());
}

#[test]
fn a_held_job_that_no_instance_takes_fails_with_a_reason_for_retry() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().autoscaler("instance_acquire_timeout = \"2s\"").fleet(&gitlab);
    let _manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    let done = gitlab.finished(id);
    assert_eq!((done.state.as_str(), done.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
    assert!(done.has("no instance of pool pool took the job within 2 s"), "{}", done.log());
}

#[test]
fn a_held_job_that_is_cancelled_is_dropped() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    gitlab.cancel(id);
    manager.wait_for_log(&format!("job={id}"));
    wait_until("the job must be dropped", || {
        let log = manager.log();
        log.contains(&format!("held job dropped: GitLab no longer expects it pool=pool job={id}"))
            || log.contains(&format!("job failed by the manager pool=pool job={id}"))
    });
}

#[test]
fn a_job_that_cannot_be_decoded_is_failed_by_the_manager() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let broken =
        gitlab.queue_text(|id| format!("{{\"id\":{id},\"token\":\"glcbt-job-{id}\",\"variables\":[{{\"key\":"));
    let done = gitlab.finished(broken);
    assert_eq!(done.state, "failed", "{}", manager.log());
    assert!(done.has("cannot be read"), "{}", done.log());
}

#[test]
fn only_members_with_the_fleets_token_register_and_each_once_a_boot() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1", "i-2"]);
    let manager = fleet.start();
    wait_until("the members must be known", || fleet.register(FLEET_TOKEN, "i-1", "boot-1").0 == 200);
    for (token, instance, boot, expected) in [
        ("another-token-0123456789", "i-2", "boot-1", 403),
        (FLEET_TOKEN, "i-9", "boot-1", 404),
        (FLEET_TOKEN, "i-1", "boot-1", 409),
        (FLEET_TOKEN, "", "boot-1", 400),
    ] {
        let (status, head, body) = fleet.register(token, instance, boot);
        assert_eq!(status, expected, "{instance} {body}");
        assert!(head.contains("X-Mayfly-Manager: "), "{head}");
    }
    let (status, _, welcome) = fleet.register(FLEET_TOKEN, "i-1", "boot-2");
    assert_eq!(status, 200, "the instance was started again");
    let token = welcome["mayfly"]["token"].as_str().expect("a token").to_owned();
    assert_eq!(fleet.call("POST", "runners/heartbeat", &token, &json!({"jobs": []})).0, 200);
    for token in ["", FLEET_TOKEN, "mfa-0123"] {
        assert_eq!(fleet.call("POST", "runners/heartbeat", token, &json!({"jobs": []})).0, 401);
        assert_eq!(fleet.call("POST", "jobs/request", token, &json!({})).0, 401);
    }
    assert_eq!(fleet.call("PUT", "jobs/7", &token, &json!({"offer": "x", "state": "running"})).0, 409);
    assert_eq!(fleet.call("PUT", "jobs/7", &token, &json!({"state": "running"})).0, 400);
    let old = json!({"token": FLEET_TOKEN, "mayfly": {"protocol": 0, "instance": "i-2", "boot": "b", "version": "0"}});
    let (status, _, body) = fleet.call("POST", "runners/verify", FLEET_TOKEN, &old);
    assert!(status == 426 && body["message"].as_str().is_some_and(|why| why.contains("protocol 0")), "{body}");
    assert!(!manager.log().contains("another-token"), "{}", manager.log());
}

#[test]
fn an_agent_that_dies_resumes_its_job_and_runs_its_script_once() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, agent) = fleet.start_with_agent("i-1");
    let (go, count) = (home.path("go"), home.path("count"));
    let line = format!("echo x >> {}", count.display());
    let id = gitlab.queue(job(&[&line, "echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    let agent = home.start(&[]);
    agent.wait_for_log("job resumed from journal");
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    assert_eq!(read(&count), "x\n");
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
    assert_eq!(manager.log().matches("agent registered").count(), 1, "the agent kept its token");
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success");
}

#[test]
fn a_job_of_an_instance_that_is_lost_fails() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (_manager, home, agent) = fleet.start_with_agent("i-1");
    let id = gitlab.queue(job(&["echo begun", &until_there(home.path("never").display())]).build());
    gitlab.wait_for_log(id, "begun");
    kill_shims(id);
    agent.kill();
    fleet.set_members(&[]);
    let done = gitlab.finished(id);
    assert_eq!((done.state.as_str(), done.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
    assert!(done.has("instance i-1 was terminated"), "{}", done.log());
}

#[test]
fn a_partition_between_agent_and_manager_does_not_stop_the_job() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo ended"]).build());
    gitlab.wait_for_log(id, "begun");
    manager.signal("STOP");
    fs::write(&go, "").expect("write a file");
    let done = gitlab.finished(id);
    assert!(done.state == "success" && done.has("ended"), "{}", done.log());
    manager.signal("CONT");
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
}

#[test]
fn keys_in_the_agents_own_file_win_and_changes_in_the_pool_need_no_new_image() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().runner("environment = [\"VALUE=pool\"]\npre_build_script = \"echo pre\"").fleet(&gitlab);
    fleet.set_members(&["i-1", "i-2"]);
    let manager = fleet.start();
    let own = Scenario::managed("i-1").runner("environment = [\"VALUE=own\"]").home_at(&fleet.url());
    let agent = own.start(&[]);
    manager.wait_for_log("instance=i-1");
    let id = gitlab.queue(job(&["echo value $VALUE"]).build());
    let done = gitlab.finished(id);
    assert!(done.has("value own") && done.has("pre"), "{}\n{}", done.log(), agent.log());
    manager.wait_for_log("job ended");
    drop(agent);
    let (_home, _agent) = fleet.agent(&manager, "i-2");
    Pool::relay().runner("environment = [\"VALUE=changed\"]").write(&fleet, &gitlab.url);
    manager.signal("HUP");
    manager.wait_for_log("configuration loaded");
    let id = gitlab.queue(job(&["echo value $VALUE"]).build());
    assert!(gitlab.finished(id).has("value changed"), "{}", gitlab.job(id).log());
}

#[test]
fn agents_connect_over_tls_and_refuse_another_certificate() {
    let gitlab = GitLab::start();
    let pki = Pki::new();
    let fleet = Pool::relay().fleet(&gitlab);
    let identity = pki.server();
    let [certificate, key, authority] = ["cert.pem", "key.pem", "root.pem"].map(|name| fleet.home.path(name));
    for (path, pem) in [(&certificate, &identity.chain), (&key, &identity.key), (&authority, &pki.root)] {
        fs::write(path, pem).expect("write a file");
    }
    let tls = format!("certificate_file = \"{}\"\nkey_file = \"{}\"", certificate.display(), key.display());
    Pool::relay().tls(&tls).write(&fleet, &gitlab.url);
    fleet.set_members(&["i-1", "i-2"]);
    let manager = fleet.start();
    let url = format!("https://localhost:{}", fleet.port);
    let home = Scenario::managed("i-1").home_at(&url);
    let stranger = home.start(&[]);
    stranger.wait_for_log("certificate");
    assert!(!manager.log().contains("agent registered"), "{}", manager.log());
    drop(stranger);
    let trust = format!("tls-ca-file = \"{}\"", authority.display());
    Scenario::managed("i-1").runner(&trust).write(&home, &url);
    let agent = home.start(&[]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = gitlab.queue(job(&["echo over tls"]).build());
    assert!(gitlab.finished(id).has("over tls"), "{}", agent.log());
}

#[test]
fn an_agent_that_reached_max_use_count_is_ordered_to_shut_down() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().autoscaler("max_use_count = 1").fleet(&gitlab);
    let (manager, _home, mut agent) = fleet.start_with_agent("i-1");
    let id = gitlab.queue(job(&["echo once"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success(), "{}", agent.log());
    assert!(
        agent.log().contains("the manager requested the shutdown of this agent reason=max_use_count"),
        "{}",
        agent.log()
    );
    manager.wait_for_log("agent removed pool=pool instance=i-1");
}

#[test]
fn an_agent_without_a_manager_leaves_once_its_job_has_ended() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let home = Scenario::managed("i-1").mayfly("orphan_timeout = \"3s\"").home_at(&fleet.url());
    let mut agent = home.start(&[]);
    manager.wait_for_log("agent registered");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(id, "begun");
    manager.kill();
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success(), "{}", agent.log());
}

/// The manager's machine hangs: the agent does not wait for its request in flight.
#[test]
fn an_agent_leaves_a_manager_that_hangs() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let home = Scenario::managed("i-1").mayfly("orphan_timeout = \"5s\"").home_at(&fleet.url());
    let agent = home.start(&[]);
    // An agent that has run a job has stored its registration.
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
    agent.kill();
    manager.signal("STOP");
    // The first heartbeat shows that the manager is silent while the request for a job still waits.
    let mut agent = home.start(&[]);
    assert!(agent.wait().success(), "{}", agent.log());
    let log = agent.log();
    let (before, _) = log.split_once("shutting down strategy").expect("a shutdown");
    assert!(!before.contains("poll failed"), "{log}");
}

#[test]
fn the_manager_keeps_running_if_a_new_program_could_not_start() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo was held"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    let refused = |count: usize, why: &str| {
        manager.signal("USR2");
        wait_until("the hand-over must be refused", || manager.log().matches("hand-over refused").count() == count);
        assert!(manager.log().contains(why), "{}", manager.log());
    };
    fs::write(fleet.home.config(), "nonsense [").expect("write a file");
    refused(1, "line 1");
    Pool::hold().state_dir("elsewhere").write(&fleet, &gitlab.url);
    refused(2, "but the held jobs are in");
    Pool::hold().write(&fleet, &gitlab.url);
    fleet.set_members(&["i-1"]);
    let (_home, agent) = fleet.agent(&manager, "i-1");
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}", agent.log(), manager.log());
    assert_eq!(manager.log().matches("mayfly manager is up").count(), 1, "{}", manager.log());
}

#[test]
fn the_manager_hands_over_to_a_new_program_without_losing_anything() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(id, "begun");
    manager.signal("USR2");
    wait_until("a new program must start", || manager.log().matches("mayfly manager is up").count() == 2);
    assert!(manager.log().contains("state restored pool=pool agents=1 jobs=1"), "{}", manager.log());
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    let next = gitlab.queue(job(&["echo next"]).build());
    assert_eq!(gitlab.finished(next).state, "success", "{}", manager.log());
}

#[test]
fn a_drain_takes_no_more_jobs_and_fails_those_that_no_instance_took() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let mut manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    manager.signal("TERM");
    assert!(manager.wait().success(), "{}", manager.log());
    let done = gitlab.job(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    assert!(done.has("the manager was stopped"), "{}", done.log());
}

#[test]
fn a_manager_that_lost_its_state_takes_up_the_jobs_that_agents_run() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let (manager, home, _agent) = fleet.start_with_agent("i-1");
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(id, "begun");
    manager.kill();
    fs::remove_dir_all(fleet.home.path("manager")).expect("remove the directory");
    let manager = fleet.start();
    manager.wait_for_log(&format!("job adopted from its agent pool=pool job={id} instance=i-1"));
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
}

#[test]
fn a_bad_pool_does_not_keep_the_others_from_working() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    let more = "\n[[runners]]\nname = \"bad\"\nurl = \"http://127.0.0.1:1\"\ntoken = \"t\"\nexecutor = \"instance\"\n\
                [runners.autoscaler]\nplugin = \"azure\"\n";
    fs::write(fleet.home.config(), read(&fleet.home.config()) + more).expect("write a file");
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let log = manager.log();
    assert!(log.contains("pool `bad`") && log.contains("`plugin = \"azure\"`: mayfly has"), "{log}");
    let (_home, _agent) = fleet.agent(&manager, "i-1");
    let id = gitlab.queue(job(&["echo fine"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
    Pool::relay().write(&fleet, &gitlab.url);
    let twice = read(&fleet.home.config()) + &Pool::relay().name("twin").table(&fleet, &gitlab.url);
    fs::write(fleet.home.config(), twice).expect("write a file");
    drop(manager);
    let output = fleet.home.call(&["manager", "--config", &fleet.home.config().display().to_string()]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("`pool` and `twin` use one group"), "{told}");
}

/// Kills manager and agents at random moments of many hand-overs.
#[test]
fn no_script_runs_twice_and_no_job_is_lost_whatever_dies() {
    const JOBS: usize = 24;
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    fleet.set_members(&["i-1", "i-2"]);
    let counts = fleet.home.path("counts");
    fs::create_dir(&counts).expect("a directory");
    let mut manager = Some(fleet.start());
    let homes = ["i-1", "i-2"].map(|instance| Scenario::managed(instance).home_at(&fleet.url()));
    let mut agents = homes.each_ref().map(|home| Some(home.start(&[])));
    let mut random = 12345_u32;
    let mut next = move |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    let (mut ids, mut stored) = (Vec::new(), String::new());
    for number in 0..JOBS {
        let line = format!("echo x >> {}/{number}", counts.display());
        ids.push(gitlab.queue(job(&[&line]).build()));
        // The step of the hand-over at which the process dies is random; the assertions hold for every step.
        std::thread::sleep(std::time::Duration::from_millis(u64::from(next(120))));
        match next(3) {
            0 => {
                if let Some(manager) = manager.take() {
                    manager.kill();
                }
                stored += &read(&fleet.home.path("manager/state"));
                manager = Some(fleet.start());
            }
            victim => {
                let at = victim as usize - 1;
                if let Some(agent) = agents[at].take() {
                    agent.kill();
                }
                agents[at] = Some(homes[at].start(&[]));
            }
        }
    }
    // GitLab hands out jobs in order, so all others have been taken when this one has ended.
    let last = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(last).state, "success");
    stored += &read(&fleet.home.path("manager/state"));
    for (number, id) in ids.iter().enumerate() {
        let runs = || read(&counts.join(number.to_string())).lines().count();
        // A manager that dies before it has stored GitLab's 201 loses the job: GitLab fails it after its timeout.
        if !stored.contains(&format!("\"id\":\"{id}\"")) {
            assert_eq!((gitlab.job_state(*id).as_str(), runs()), ("running", 0), "job {id}");
            continue;
        }
        let done = gitlab.finished(*id);
        let runs = runs();
        let is_retried = done.failure_reason.as_deref() == Some("runner_system_failure");
        assert!(runs == 1 && done.state == "success" || runs <= 1 && is_retried, "job {id}: {runs} runs, {done:?}");
    }
}

#[test]
fn an_agent_that_cannot_use_the_settings_continues_the_log_of_a_held_job() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().runner("executor = \"docker-autoscaler\"").fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    fleet.set_members(&["i-1"]);
    let home = Scenario::managed("i-1")
        .runner("[runners.docker]\nimage = \"busybox\"\nhost = \"nonsense://\"\n")
        .home_at(&fleet.url());
    let agent = home.start(&[]);
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}\n{}", agent.log(), manager.log());
    for part in ["waiting for an instance", "the pool's settings cannot be used on this instance"] {
        assert!(done.has(part), "{part}\n{}\n{}", done.log(), agent.log());
    }
    manager.wait_for_log(&format!("job ended pool=pool job={id}"));
}

#[test]
fn an_agent_registers_again_after_a_lost_response() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let register = |agent_token: &str| {
        let introduction =
            json!({"protocol": 1, "instance": "i-1", "boot": "b", "version": "0", "agent_token": agent_token});
        fleet.call("POST", "runners/verify", FLEET_TOKEN, &json!({"token": FLEET_TOKEN, "mayfly": introduction}))
    };
    let [own, other] = ["1", "2"].map(|digit| format!("mfa-{}", digit.repeat(48)));
    fleet.wait_until("the manager knows its members", || register(&own).0 != 404);
    let (status, _, body) = register(&own);
    assert_eq!((status, body["mayfly"]["token"].as_str()), (200, Some(own.as_str())), "{}", manager.log());
    assert_eq!(register(&other).0, 409, "another agent on the same instance");
    assert_eq!(register("mfa-1").0, 400, "a token that is easy to guess");
    assert_eq!(manager.log().matches("agent registered").count(), 1, "{}", manager.log());
}

#[test]
fn held_jobs_fail_when_the_state_directory_is_lost() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    let manager = fleet.start();
    let id = gitlab.queue(job(&["echo never"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    manager.kill();
    fs::remove_dir_all(fleet.home.path("manager")).expect("remove the directory");
    let manager = fleet.start();
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    assert!(done.has("the manager lost its state"), "{}", done.log());
}
