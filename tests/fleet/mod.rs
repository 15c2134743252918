//! An instance in an Auto Scaling group, which terminates itself through its group.

mod capacity;
mod interrupted;
mod lifecycle;
mod notices;

use std::time::Duration;

use crate::support::cloud::Cloud;
use crate::support::cloud::autoscaling::Hook;
use crate::support::gitlab::{Fault, GitLab};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::{Agent, Home, read};
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
        Self::with_poweroff(keys, "echo off >>$HOME/off")
    }

    /// `poweroff_command` powers the machine off.
    fn with_poweroff(keys: &str, poweroff_command: &str) -> Self {
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
        self.cloud.read(|group| (group.terminations, group.decrements))
    }

    fn completed(&self) -> Vec<String> {
        let mut names = self.cloud.read(|group| group.completed.clone());
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
        let refusal = ["autoscaling:TerminateInstanceInAutoScalingGroup", code];
        assert_eq!(lines_with(&agent.log(), &refusal), 1, "{}", agent.log());
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
    fleet.gitlab.stop_responding();
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
