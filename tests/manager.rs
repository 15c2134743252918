//! `mayfly manager` with real agents: each job is handed to one agent, even if the manager or an agent dies.

use std::fs;

use crate::support::fleet::FLEET_TOKEN;
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::{kill_shims, read};
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
