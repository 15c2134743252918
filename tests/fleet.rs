//! An instance in an Auto Scaling group: how it terminates itself through its group, and how it reacts to the cloud's
//! notices.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::cloud::Cloud;
use crate::support::cloud::autoscaling::Hook;
use crate::support::git::GitServer;
use crate::support::gitlab::{Fault, GitLab};
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::mayfly::{Agent, Home, is_running, kill_shims, nap, read};
use crate::support::scenario::Scenario;
use crate::support::wait_until;

const TERMINATE: &str = "TerminateInstanceInAutoScalingGroup";

/// An instance in a group whose agent terminates it through the group; with further keys for `[mayfly]`.
struct Fleet {
    gitlab: GitLab,
    cloud: Cloud,
    home: Home,
}

impl Fleet {
    fn new(keys: &str) -> Self {
        Self::without_leave(&format!("leave = \"aws-asg\"\n{keys}"))
    }

    /// An instance whose configuration does not set `leave`, unless `keys` do.
    fn without_leave(keys: &str) -> Self {
        Self::given(keys, "echo off >>$HOME/off")
    }

    fn given(keys: &str, poweroff_command: &str) -> Self {
        let (gitlab, cloud) = (GitLab::start(), Cloud::start());
        let poweroff = format!("poweroff_command = \"{poweroff_command}\"");
        let mut home = Scenario::shell().mayfly(&poweroff).mayfly(keys).home(&gitlab);
        home.set_environment(cloud.environment());
        Self { gitlab, cloud, home }
    }

    /// Waits until the agent has polled the metadata service this number of times; it does so every 4 seconds.
    fn wait_for_metadata_polls(&self, times: usize) {
        let polls = || self.cloud.metadata.count("GET meta-data/autoscaling/target-lifecycle-state");
        let before = polls();
        wait_until("a poll of the metadata service", || polls() >= before + times);
    }

    fn start(&self) -> Agent {
        self.home.start(&[])
    }

    fn queue(&self, job: JobBuilder) -> i64 {
        self.gitlab.queue(job.build())
    }

    /// How often the instance was terminated by a call, and how often that decremented the desired capacity.
    fn ends(&self) -> (u32, u32) {
        self.cloud.look(|group| (group.terminations, group.decrements))
    }

    fn completed(&self) -> Vec<String> {
        let mut names = self.cloud.look(|group| group.completed.clone());
        names.sort();
        names
    }

    fn polls(&self) -> usize {
        self.gitlab.count("POST jobs/request")
    }

    /// How often the machine was powered off.
    fn times_off(&self) -> usize {
        read(&self.home.path("off")).lines().count()
    }

    /// Starts another agent, which must exit successfully without polling or terminating anything.
    fn assert_that_it_is_over(&self) {
        let (polls, ends, off) = (self.polls(), self.ends(), self.times_off());
        let mut next = self.start();
        assert!(next.wait().success(), "{}", next.log());
        assert_eq!((self.polls(), self.ends(), self.times_off()), (polls, ends, off), "{}", next.log());
    }
}

/// The number of log lines that contain all these parts.
fn lines_with(log: &str, parts: &[&str]) -> usize {
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

#[test]
fn an_idle_instance_decrements_the_desired_capacity_and_completes_the_hooks() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300), Hook::new("logs", 300)]);
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.completed()), ((1, 1), vec!["drain".to_owned(), "logs".to_owned()]));
    assert!(fleet.gitlab.managers().is_empty());
    assert_eq!(fleet.times_off(), 0);
    fleet.assert_that_it_is_over();
    fleet.gitlab.assert_strict();
}

#[test]
fn the_agent_unregisters_before_it_terminates_the_instance() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    fleet.gitlab.fail("DELETE runners/managers", [Fault::Slow(Duration::from_secs(2))]);
    let mut agent = fleet.start();
    fleet.cloud.wait_until("the call that ends it", |group| group.terminations == 1);
    assert!(fleet.gitlab.managers().is_empty());
    assert!(agent.wait().success());
}

#[test]
fn an_instance_that_reached_max_builds_is_replaced() {
    let fleet = Fleet::new("max_builds = 1");
    // The minimum size does not prevent a replacement.
    fleet.cloud.change(|group| group.minimum = group.desired);
    let id = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.gitlab.job_state(id).as_str()), ((1, 0), "success"));
    fleet.queue(job(&["true"]));
    fleet.assert_that_it_is_over();
}

#[test]
fn at_the_minimum_size_an_idle_instance_resumes_work_until_the_minimum_is_lowered() {
    let fleet = Fleet::new("idle_timeout = \"1s\"\nleave_fallback_after = \"1s\"");
    fleet.cloud.change(|group| group.minimum = group.desired);
    let mut agent = fleet.start();
    agent.wait_for_log("at its minimum size; polling resumed");
    let id = fleet.queue(job(&["echo needed"]));
    assert_eq!(fleet.gitlab.finished(id).state, "success");
    let refused = lines_with(&agent.log(), &["at its minimum size; polling resumed"]);
    agent.wait_until("the next attempt", || {
        lines_with(&agent.log(), &["at its minimum size; polling resumed"]) > refused
    });
    assert!(!fleet.home.path("state/leaving.json").exists() || fleet.ends() == (0, 0));
    fleet.cloud.change(|group| group.minimum = 0);
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.times_off()), ((1, 1), 0));
    fleet.assert_that_it_is_over();
    fleet.gitlab.assert_strict();
}

#[test]
fn a_refusal_by_the_group_is_logged_once_and_the_machine_powers_off_once() {
    for (status, code) in [(403, "AccessDenied"), (400, "Throttling")] {
        let fleet = Fleet::new("max_builds = 1\nleave_fallback_after = \"3s\"");
        fleet.cloud.refuse(TERMINATE, status, code);
        let id = fleet.queue(job(&["true"]));
        let mut agent = fleet.start();
        assert!(agent.wait().success());
        let message = ["autoscaling:TerminateInstanceInAutoScalingGroup", code];
        assert_eq!(lines_with(&agent.log(), &message), 1, "{}", agent.log());
        assert_eq!((fleet.times_off(), fleet.ends()), (1, (0, 0)), "{code}");
        assert_eq!(fleet.gitlab.job_state(id), "success");
        fleet.queue(job(&["true"]));
        fleet.assert_that_it_is_over();
    }
}

#[test]
fn a_busy_group_terminates_the_instance_later() {
    let fleet = Fleet::new("max_builds = 1");
    fleet.cloud.refuse(TERMINATE, 400, "Throttling");
    fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    agent.wait_for_log("shutting down strategy");
    agent.wait_until("a retry", || fleet.cloud.refusals(TERMINATE) > 1);
    fleet.cloud.allow(TERMINATE);
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.times_off()), ((1, 0), 0), "{}", agent.log());
}

#[test]
fn an_instance_that_the_group_already_terminates_is_not_powered_off() {
    let fleet = Fleet::new("max_builds = 1");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    fleet.cloud.refuse(TERMINATE, 403, "AccessDenied");
    fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    agent.wait_for_log("powering off unless");
    fleet.cloud.scale_in();
    assert!(agent.wait().success());
    assert_eq!((fleet.completed(), fleet.times_off()), (vec!["drain".to_owned()], 0));
    fleet.assert_that_it_is_over();
}

#[test]
fn an_unreachable_group_does_not_prevent_power_off() {
    let mut fleet = Fleet::new("idle_timeout = \"1s\"\nleave_fallback_after = \"3s\"");
    let mut environment = fleet.cloud.environment();
    environment.push(("AWS_ENDPOINT_URL_AUTO_SCALING".to_owned(), "http://127.0.0.1:1".to_owned()));
    fleet.home.set_environment(environment);
    let mut agent = fleet.start();
    agent.wait_for_log("polling stopped");
    // GitLab is unreachable as well.
    fleet.gitlab.set_away(true);
    assert!(agent.wait().success());
    assert_eq!((fleet.times_off(), fleet.ends()), (1, (0, 0)), "{}", agent.log());
}

#[test]
fn a_lost_response_terminates_the_instance_once() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    fleet.cloud.fail(TERMINATE, [Fault::TakeAndCut]);
    fleet.cloud.set_lag(Duration::from_secs(3));
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.times_off()), ((1, 1), 0), "{}", agent.log());
}

/// How the agent is interrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// The agent alone is killed.
    Killed,
    /// The machine reboots.
    Rebooted,
    /// The agent gets SIGTERM.
    Stopped,
}

/// The phases of a shutdown; the last two occur if the group does not terminate the instance.
const PHASES: [&str; 7] = ["draining", "unregistering", "terminating", "hooks", "waiting", "powering_off", "shut_down"];

#[test]
fn an_agent_killed_in_any_phase_terminates_its_instance_once() {
    std::thread::scope(|scope| PHASES.iter().for_each(|phase| drop(scope.spawn(|| cut_off(phase, Cut::Killed)))));
}

#[test]
fn a_machine_rebooted_in_any_phase_is_terminated_once() {
    std::thread::scope(|scope| PHASES.iter().for_each(|phase| drop(scope.spawn(|| cut_off(phase, Cut::Rebooted)))));
}

#[test]
fn an_agent_stopped_in_any_phase_terminates_its_instance_once() {
    std::thread::scope(|scope| PHASES.iter().for_each(|phase| drop(scope.spawn(|| cut_off(phase, Cut::Stopped)))));
}

/// Interrupts an agent in a phase. The next agent must finish the shutdown, must not poll, and must not lose a job.
fn cut_off(phase: &str, cut: Cut) {
    let wait = |fleet: &Fleet| until_there(fleet.home.path("go").display());
    let mut fleet = Fleet::new("max_builds = 1");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    match phase {
        "unregistering" => fleet.gitlab.fail("DELETE runners/managers", [Fault::Slow(Duration::from_secs(8))]),
        // The call takes effect, and the agent dies before it gets the response.
        "terminating" => fleet.cloud.set_lag(Duration::from_secs(2)),
        "hooks" => fleet.cloud.fail("DescribeLifecycleHooks", [Fault::Slow(Duration::from_secs(8))]),
        "waiting" => fleet.cloud.refuse(TERMINATE, 403, "AccessDenied"),
        "powering_off" => {
            let keys = "leave = \"aws-asg\"\nmax_builds = 1\nleave_fallback_after = \"1s\"";
            fleet = Fleet::given(keys, &format!("{}; echo off >>$HOME/off", until_there("$HOME/go")));
            fleet.cloud.refuse(TERMINATE, 403, "AccessDenied");
        }
        _ => {}
    }
    let script = if phase == "draining" { wait(&fleet) } else { "true".to_owned() };
    let id = fleet.queue(job(&["echo begun", &script]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    let mark = fleet.home.path("state/leaving.json");
    let is_there = || match phase {
        "terminating" => fleet.ends().0 == 1,
        "hooks" => !fleet.cloud.calls(TERMINATE).is_empty(),
        "waiting" => agent.log().contains("powering off unless"),
        phase => read(&mark).contains(&format!("\"{phase}\"")),
    };
    agent.wait_until(phase, is_there);
    let polls = fleet.polls();
    match (phase, cut) {
        ("shut_down", _) => assert!(agent.wait().success()),
        (_, Cut::Stopped) => {
            agent.signal("TERM");
            assert!(agent.wait().success(), "{phase}: {}", agent.log());
        }
        _ => agent.kill(),
    }
    if cut == Cut::Rebooted {
        kill_shims(id);
        fleet.home.reboot();
    }
    fleet.cloud.allow(if phase == "waiting" { TERMINATE } else { "" });
    fs::write(fleet.home.path("go"), "").expect("write a file");
    let waiting = fleet.queue(job(&["true"]));
    let mut next = fleet.start();
    assert!(next.wait().success(), "{phase}: {}", next.log());
    let outcome = fleet.gitlab.job(id).failure_reason.unwrap_or_else(|| fleet.gitlab.job_state(id));
    let expected = match (phase, cut) {
        ("draining", Cut::Rebooted) => "runner_system_failure",
        ("draining", Cut::Stopped) => "runner_interrupted",
        _ => "success",
    };
    assert_eq!(outcome, expected, "{phase}: {}", next.log());
    assert_eq!((fleet.gitlab.job_state(waiting).as_str(), fleet.polls()), ("pending", polls), "{phase}");
    let by_power = phase == "powering_off";
    assert_eq!(fleet.ends(), if by_power { (0, 0) } else { (1, 0) }, "{phase}: {}", next.log());
    assert_eq!(fleet.completed(), if by_power { Vec::new() } else { vec!["drain".to_owned()] }, "{phase}");
    assert_eq!(fleet.times_off() > 0, by_power, "{phase}: {}", next.log());
    if by_power {
        let go = fleet.home.path("go").display().to_string();
        wait_until("the end of the killed agent's poweroff_command", || !is_running(&go));
    }
    fleet.assert_that_it_is_over();
}

#[test]
fn a_stopped_agent_completes_the_hooks_of_its_terminating_instance() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    fleet.cloud.fail("CompleteLifecycleAction", [Fault::Slow(Duration::from_secs(2))]);
    let mut agent = fleet.start();
    agent.wait_for_log("the Auto Scaling group terminates the instance");
    agent.signal("TERM");
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.completed()), ((1, 1), vec!["drain".to_owned()]), "{}", agent.log());
    fleet.assert_that_it_is_over();
}

#[test]
fn a_stopped_agent_does_not_wait_for_ever_for_hooks() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    fleet.cloud.refuse("CompleteLifecycleAction", 400, "Throttling");
    for signals in [1, 2] {
        let mut agent = fleet.start();
        fleet.cloud.wait_until("the call that ends it", |group| group.terminations == 1);
        agent.wait_for_log(if signals == 1 { "group terminates the instance" } else { "shutting down strategy" });
        (0..signals).for_each(|_| agent.signal("TERM"));
        assert!(agent.wait().success(), "{}", agent.log());
        assert!(agent.log().contains("the next start resumes it"), "{}", agent.log());
    }
    fleet.cloud.allow("CompleteLifecycleAction");
    let mut next = fleet.start();
    assert!(next.wait().success());
    assert_eq!((fleet.ends(), fleet.completed()), ((1, 1), vec!["drain".to_owned()]), "{}", next.log());
    fleet.assert_that_it_is_over();
}

#[test]
fn a_notice_during_the_terminate_call_takes_effect() {
    std::thread::scope(|scope| {
        // The group refuses, or is busy, while the cloud announces the interruption of the instance.
        for at_minimum in [true, false] {
            scope.spawn(move || {
                let fleet = Fleet::new("idle_timeout = \"1s\"");
                match at_minimum {
                    true => {
                        fleet.cloud.change(|group| group.minimum = group.desired);
                        fleet.cloud.fail(TERMINATE, [Fault::Slow(Duration::from_secs(8))]);
                    }
                    false => fleet.cloud.refuse(TERMINATE, 400, "Throttling"),
                }
                let mut agent = fleet.start();
                agent.wait_for_log("shutting down strategy");
                fleet.cloud.recommend_rebalance();
                agent.wait_for_log(
                    "rebalance recommendation: the cloud is likely to interrupt this instance soon; draining",
                );
                fleet.cloud.allow(TERMINATE);
                assert!(agent.wait().success());
                assert_eq!(fleet.ends(), (1, 0), "its place is kept: {}", agent.log());
                assert!(!agent.log().contains("at its minimum size; polling resumed"), "{}", agent.log());
            });
        }
    });
}

#[test]
fn an_instance_returned_to_the_warm_pool_works_again() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    assert!(fleet.start().wait().success());
    assert_eq!(fleet.ends(), (1, 1));
    // The instance still exists; then it is stopped and started instead of terminated.
    fleet.assert_that_it_is_over();
    fleet.home.reboot();
    fleet.cloud.change(|group| group.state = "InService".to_owned());
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "InService");
    let id = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    assert_eq!(fleet.gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(agent.wait().success());
    assert_eq!(fleet.ends(), (2, 2), "{}", agent.log());
}

#[test]
fn instances_from_an_image_of_a_terminated_instance_work() {
    let mut fleet = Fleet::new("max_builds = 1");
    fleet.queue(job(&["true"]));
    assert!(fleet.start().wait().success());
    let first = read(&fleet.home.path(".runner_system_id"));
    fleet.cloud = Cloud::start();
    fleet.home.set_environment(fleet.cloud.environment());
    let id = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert_eq!((fleet.gitlab.job_state(id).as_str(), fleet.ends()), ("success", (1, 0)), "{}", agent.log());
    assert_ne!(read(&fleet.home.path(".runner_system_id")), first);
}

#[test]
fn an_instance_in_a_warm_pool_sends_no_requests_and_has_no_idle_time() {
    let fleet = Fleet::new("idle_timeout = \"2s\"");
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "Warmed:Running");
    let mut agent = fleet.start();
    agent.wait_for_log("the instance is in standby or in the warm pool");
    fleet.wait_for_metadata_polls(2);
    assert_eq!(fleet.polls() + fleet.gitlab.count("POST runners/verify"), 0);
    assert!(!agent.log().contains("polling stopped"), "{}", agent.log());
    let id = fleet.queue(job(&["true"]));
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "InService");
    assert_eq!(fleet.gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
    assert_eq!(fleet.ends(), (1, 1));
}

#[test]
fn an_instance_terminated_in_a_warm_pool_never_registers() {
    let fleet = Fleet::new("idle_timeout = \"2s\"");
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "Warmed:Stopped");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    let mut agent = fleet.start();
    agent.wait_for_log("the instance is in standby or in the warm pool");
    fleet.cloud.change(|group| group.end());
    fleet.cloud.metadata.set("autoscaling/target-lifecycle-state", "Warmed:Terminated");
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.completed()), ((0, 0), vec!["drain".to_owned()]));
    assert_eq!(fleet.polls() + fleet.gitlab.count("DELETE runners/managers"), 0);
}

#[test]
fn scale_in_waits_for_the_job() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    // The agent extends the hook after half of its timeout. With four heartbeats the job outlasts the timeout.
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 6)]);
    let go = fleet.home.path("go");
    let id = fleet.queue(job(&["echo begun", &until_there(go.display())]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    fleet.cloud.scale_in();
    let waiting = fleet.queue(job(&["true"]));
    let heartbeats = || fleet.cloud.calls("RecordLifecycleActionHeartbeat").len();
    agent.wait_until("heartbeats", || heartbeats() >= 4);
    std::fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    assert_eq!(fleet.gitlab.job_state(id), "success", "{}", agent.log());
    assert_eq!(fleet.gitlab.job_state(waiting), "pending");
    assert_eq!((fleet.ends(), fleet.completed()), ((0, 0), vec!["drain".to_owned()]), "{}", agent.log());
    assert!(fleet.cloud.look(|group| group.expired.is_empty()));
    assert!(fleet.gitlab.managers().is_empty());
    fleet.assert_that_it_is_over();
}

#[test]
fn a_stopped_agent_does_not_delay_scale_in() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    let id = fleet.queue(job(&["echo begun", &nap()]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    fleet.cloud.scale_in();
    agent.wait_for_log("polling stopped reason=terminated");
    agent.signal("TERM");
    assert!(agent.wait().success());
    assert_eq!(fleet.gitlab.job(id).failure_reason.as_deref(), Some("runner_interrupted"));
    assert_eq!((fleet.ends(), fleet.completed()), ((0, 0), vec!["drain".to_owned()]), "{}", agent.log());
}

#[test]
fn an_instance_has_scale_in_protection_while_it_runs_a_job() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let go = fleet.home.path("go");
    let id = fleet.queue(job(&["echo begun", &until_there(go.display())]));
    let mut agent = fleet.start();
    fleet.cloud.wait_until("protection", |group| group.is_protected);
    fs::write(&go, "").expect("write a file");
    let done = fleet.gitlab.finished(id);
    assert_eq!(done.state, "success");
    fleet.cloud.wait_until("the end of protection", |group| !group.is_protected);
    let calls = fleet.cloud.calls("SetInstanceProtection");
    assert!(
        calls.len() == 2 && calls[1].at >= done.ended.expect("the job must have ended"),
        "while it was reported: {calls:#?}"
    );
    agent.drain();
    assert_eq!(fleet.ends(), (0, 0), "the agent was only stopped");
}

#[test]
fn a_missing_permission_for_protection_is_logged_once_and_jobs_run() {
    let fleet = Fleet::new("max_builds = 2");
    fleet.cloud.refuse("SetInstanceProtection", 403, "AccessDenied");
    let ids = [fleet.queue(job(&["true"])), fleet.queue(job(&["true"]))];
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert!(ids.iter().all(|id| fleet.gitlab.job_state(*id) == "success"));
    assert_eq!(lines_with(&agent.log(), &["autoscaling:SetInstanceProtection", "AccessDenied"]), 1, "{}", agent.log());
    assert_eq!(fleet.ends(), (1, 0));
}

/// Another instance in service, with or without a job.
fn sibling(id: &str, has_job: bool) -> (String, String, bool) {
    (id.to_owned(), "InService".to_owned(), has_job)
}

#[test]
fn queued_jobs_raise_the_desired_capacity() {
    let fleet = Fleet::new("aws = { raise_on_job = { idle_count = 2 } }");
    fleet.cloud.change(|group| group.siblings = vec![sibling("i-1", true), sibling("i-2", false)]);
    let mut agent = fleet.start();
    fleet.gitlab.wait_until("a request", |server| server.count("POST jobs/request") > 0);
    assert!(fleet.cloud.calls("DescribeAutoScalingGroups").is_empty(), "there is no job");
    let id = fleet.queue(job(&["true"]));
    fleet.cloud.wait_until("four: two with a job, two without", |group| group.desired == 4);
    assert_eq!(fleet.gitlab.finished(id).state, "success");

    // The job had to wait, and the group is one below its maximum size.
    fleet.cloud.change(|group| group.siblings.extend((3..7).map(|number| sibling(&format!("i-{number}"), true))));
    let mut waited = job(&["true"]).build();
    waited["job_info"]["time_in_queue_seconds"] = serde_json::json!(75.5);
    let id = fleet.gitlab.queue(waited);
    fleet.cloud.wait_until("as many as there may be", |group| group.desired == 10);
    assert_eq!(fleet.gitlab.finished(id).state, "success");
    agent.drain();
    assert_eq!(lines_with(&agent.log(), &["desired capacity of the group raised"]), 2, "{}", agent.log());
    fleet.gitlab.assert_strict();
}

#[test]
fn a_group_that_cannot_grow_is_logged_once_and_jobs_run() {
    for (refused, message) in [
        (true, ["autoscaling:SetDesiredCapacity", "AccessDenied"]),
        (false, ["protects new", "disable that protection"]),
    ] {
        let fleet = Fleet::new("max_builds = 3\naws = { raise_on_job = { idle_count = 5 } }");
        match refused {
            true => fleet.cloud.refuse("SetDesiredCapacity", 403, "AccessDenied"),
            false => fleet.cloud.change(|group| group.protects_new = true),
        }
        let ids = [(); 3].map(|()| fleet.queue(job(&["sleep 1"])));
        let mut agent = fleet.start();
        assert!(agent.wait().success());
        assert!(ids.iter().all(|id| fleet.gitlab.job_state(*id) == "success"), "{}", agent.log());
        assert_eq!(
            lines_with(&agent.log(), &[&["cannot raise the desired capacity"], &message[..]].concat()),
            1,
            "{}",
            agent.log()
        );
        assert_eq!((fleet.cloud.look(|group| group.desired), fleet.ends()), (3, (1, 0)));
    }
}

#[test]
fn the_desired_capacity_is_raised_only_if_configured() {
    let fleet = Fleet::new("max_builds = 1");
    fleet.queue(job(&["true"]));
    assert!(fleet.start().wait().success());
    for action in ["DescribeAutoScalingGroups", "SetDesiredCapacity"] {
        assert!(fleet.cloud.calls(action).is_empty(), "{action}");
    }
}

/// Adds artifacts that are uploaded on success and on failure.
fn with_artifacts(job: JobBuilder) -> JobBuilder {
    job.set(
        "artifacts",
        serde_json::json!([{
            "name": "left", "paths": ["left.txt"], "when": "on_failure", "artifact_type": "archive",
            "artifact_format": "zip",
        }]),
    )
}

#[test]
fn a_job_is_interrupted_before_its_instance_with_log_and_artifacts() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let nap = nap();
    let script = ["echo first line", "echo some >left.txt", &nap];
    let id = fleet.queue(with_artifacts(job(&script)).after_script(&["echo never"]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_until("the script", |_| is_running(&nap));
    let deadline = Instant::now() + Duration::from_secs(30);
    fleet.cloud.interrupt(Duration::from_secs(30));
    assert!(agent.wait().success());
    let job = fleet.gitlab.job(id);
    assert_eq!(job.failure_reason.as_deref(), Some("runner_interrupted"), "{}", job.log());
    assert!(job.ended.expect("the job must have ended") < deadline, "too late");
    let lines = job.lines();
    assert!(lines.contains(&"first line".to_owned()) && !lines.contains(&"never".to_owned()), "{lines:#?}");
    assert_eq!(job.artifacts.len(), 1, "{lines:#?}");
    assert!(lines.last().is_some_and(|line| line.contains("the cloud interrupts this instance")), "{lines:#?}");
    assert_eq!((fleet.ends().1, fleet.times_off()), (0, 0), "its place is kept");
    assert!(fleet.gitlab.managers().is_empty());
    fleet.assert_that_it_is_over();
    fleet.gitlab.assert_strict();
}

#[test]
fn a_job_that_ends_before_the_interruption_keeps_its_result() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let go = fleet.home.path("go");
    let lines = ["echo begun", &until_there(go.display()), "echo end"];
    let id = fleet.queue(job(&lines).after_script(&["echo after"]));
    let waiting = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    fleet.cloud.interrupt(Duration::from_secs(60));
    agent.wait_for_log("polling stopped");
    fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    let job = fleet.gitlab.job(id);
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.lines().contains(&"after".to_owned()));
    assert_eq!((fleet.gitlab.job_state(waiting).as_str(), fleet.ends()), ("pending", (1, 0)));
}

#[test]
fn an_interruption_in_each_stage_of_a_job() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let (url, sha) = git.repository("team/demo", &[("file.txt", "from git\n")]);
    let (url, sha) = (&url, &sha);
    std::thread::scope(|scope| {
        for (stage, expected) in [("sources", "runner_interrupted"), ("after", "success"), ("upload", "success")] {
            scope.spawn(move || {
                let fleet = Fleet::new("idle_timeout = \"1h\"");
                let nap = nap();
                let job = match stage {
                    "sources" => job(&["true"]).sources(url, sha).hook("pre_get_sources_script", &["echo here", &nap]),
                    "after" => job(&["true"]).after_script(&["echo here", &nap]),
                    _ => {
                        fleet.gitlab.fail("POST artifacts", [Fault::Slow(Duration::from_secs(8))]);
                        job(&["echo here >left.txt; echo here"]).set(
                            "artifacts",
                            serde_json::json!([{"name": "left", "paths": ["left.txt"], "when": "always",
                                "artifact_type": "archive", "artifact_format": "zip"}]),
                        )
                    }
                };
                let id = fleet.queue(job);
                let mut agent = fleet.start();
                fleet.gitlab.wait_for_log(id, "here");
                if stage == "upload" {
                    fleet.gitlab.wait_until("the upload", |server| server.count("POST artifacts") > 0);
                }
                let deadline = Instant::now() + Duration::from_secs(24);
                fleet.cloud.interrupt(Duration::from_secs(24));
                assert!(agent.wait().success(), "{stage}");
                let job = fleet.gitlab.job(id);
                let outcome = job.failure_reason.clone().unwrap_or(job.state.clone());
                assert_eq!(outcome, expected, "{stage}: {}", job.log());
                assert!(job.ended.expect("the job must have ended") < deadline, "{stage}: too late");
                assert_eq!(job.artifacts.len(), usize::from(stage == "upload"), "{stage}: {}", job.log());
            });
        }
    });
}

#[test]
fn a_hibernating_instance_ends_its_job_and_does_not_terminate() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    let id = fleet.queue(job(&["echo begun", &nap()]));
    let agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    let notice = format!("{{\"action\": \"hibernate\", \"time\": \"{}\"}}", jiff::Timestamp::now());
    fleet.cloud.metadata.set("spot/instance-action", notice);
    assert_eq!(fleet.gitlab.finished(id).failure_reason.as_deref(), Some("runner_interrupted"));
    let waiting = fleet.queue(job(&["true"]));
    fleet.wait_for_metadata_polls(1);
    assert_eq!((fleet.gitlab.job_state(waiting).as_str(), fleet.ends()), ("pending", (0, 0)));
    assert!(!agent.log().contains("polling stopped"), "{}", agent.log());
    agent.kill();
}

#[test]
fn a_rebalance_recommendation_stops_polling_and_keeps_the_desired_capacity() {
    let fleet = Fleet::new("idle_timeout = \"1h\"");
    let go = fleet.home.path("go");
    let id = fleet.queue(job(&["echo begun", &until_there(go.display())]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    // The service does not answer for a while, and its tokens expire early.
    fleet.cloud.metadata.shorten_tokens(Duration::from_secs(1));
    fleet.cloud.metadata.set_silent(true);
    let before = fleet.cloud.metadata.requests().len();
    agent.wait_until("a request without a response", || fleet.cloud.metadata.requests().len() > before);
    fleet.cloud.metadata.set_silent(false);
    fleet.cloud.recommend_rebalance();
    agent.wait_for_log("polling stopped reason=rebalance_recommendation");
    let waiting = fleet.queue(job(&["true"]));
    fs::write(&go, "").expect("write a file");
    assert!(agent.wait().success());
    let states = [fleet.gitlab.job_state(id), fleet.gitlab.job_state(waiting)];
    assert_eq!((states, fleet.ends()), (["success".to_owned(), "pending".to_owned()], (1, 0)));
}

#[test]
fn a_notice_during_the_shutdown_of_an_idle_instance_keeps_the_desired_capacity() {
    let fleet = Fleet::new("idle_timeout = \"1s\"");
    fleet.gitlab.fail("DELETE runners/managers", [Fault::Slow(Duration::from_secs(8))]);
    let mut agent = fleet.start();
    agent.wait_for_log("shutting down strategy");
    fleet.cloud.recommend_rebalance();
    assert!(agent.wait().success());
    assert_eq!(fleet.ends(), (1, 0), "{}", agent.log());
}

#[test]
fn inside_a_group_the_agent_terminates_its_instance_unless_configured_otherwise() {
    let fleet = Fleet::without_leave("max_builds = 1");
    let id = fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert!(!fleet.cloud.calls("SetInstanceProtection").is_empty(), "protected while busy: {}", agent.log());
    assert_eq!((fleet.ends(), fleet.gitlab.job_state(id).as_str()), ((1, 0), "success"), "{}", agent.log());
    fleet.assert_that_it_is_over();
}

#[test]
fn outside_a_group_the_agent_only_exits_and_warns_that_the_instance_keeps_running() {
    let fleet = Fleet::without_leave("max_builds = 1");
    fleet.cloud.metadata.remove("autoscaling/target-lifecycle-state");
    fleet.queue(job(&["true"]));
    let mut agent = fleet.start();
    assert!(agent.wait().success());
    assert_eq!((fleet.ends(), fleet.times_off()), ((0, 0), 0), "{}", agent.log());
    let warning = "`leave = \"exit\"` with `max_builds`: the agent exits, but the EC2 instance keeps running";
    assert_eq!(lines_with(&agent.log(), &[warning]), 1, "{}", agent.log());
}

#[test]
fn what_is_likely_a_mistake_in_a_shutdown_is_a_warning_of_every_command() {
    for (keys, is_in_group, warning) in [
        ("leave = \"exit\"\nidle_timeout = \"1h\"", true, "keeps running without taking jobs"),
        ("leave = \"exit\"\nidle_timeout = \"1h\"", false, "set `leave = \"poweroff\"`"),
        ("leave = \"poweroff\"", true, "the group replaces each instance that powers off"),
    ] {
        let fleet = Fleet::without_leave(keys);
        if !is_in_group {
            fleet.cloud.metadata.remove("autoscaling/target-lifecycle-state");
        }
        let config = fleet.home.config().display().to_string();
        let lint = fleet.home.call(&["lint", "--config", &config]);
        assert!(lint.status.success(), "a warning is no error: {lint:?}");
        for output in [lint, fleet.home.call(&["check", "--config", &config])] {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.lines().any(|line| line.contains("warning") && line.contains(warning)), "{keys}: {text}");
        }
        let mut agent = fleet.start();
        agent.wait_for_log(warning);
        agent.drain();
    }
    let fleet = Fleet::without_leave("leave = \"exit\"");
    let lint = fleet.home.call(&["lint", "--config", &fleet.home.config().display().to_string()]);
    assert!(!String::from_utf8_lossy(&lint.stdout).contains("keeps running"), "nothing ends this agent");
}
