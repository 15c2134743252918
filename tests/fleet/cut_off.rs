//! An agent that is killed or stopped, or whose machine reboots, in each phase of a shutdown through the group.

use std::fs;
use std::time::Duration;

use super::{Fleet, TERMINATE};
use crate::support::cloud::autoscaling::Hook;
use crate::support::gitlab::Fault;
use crate::support::job::{job, until_there};
use crate::support::mayfly::{is_running, kill_shims, read};
use crate::support::wait_until;

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
            fleet = Fleet::with_poweroff(keys, &format!("{}; echo off >>$HOME/off", until_there("$HOME/go")));
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
