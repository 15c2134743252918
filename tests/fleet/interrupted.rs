//! An agent that is killed or stopped, or whose machine reboots, in each phase of a shutdown through the group.

use std::fs;
use std::time::Duration;

use super::{Fleet, TERMINATE};
use crate::support::cloud::autoscaling::Hook;
use crate::support::gitlab::Fault;
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Agent, is_running, kill_shims, read};
use crate::support::wait_until;

/// How the agent is interrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Interruption {
    /// The agent alone is killed.
    Kill,
    /// The machine reboots.
    Reboot,
    /// The agent gets SIGTERM.
    Stop,
}
use Interruption::{Kill, Reboot, Stop};

/// The phases of a shutdown; the last two occur if the group does not terminate the instance.
const PHASES: [&str; 7] = ["draining", "unregistering", "terminating", "hooks", "waiting", "powering_off", "shut_down"];

#[test]
fn an_agent_killed_in_any_phase_terminates_its_instance_once() {
    interrupt_in_each_phase(Kill);
}

#[test]
fn a_machine_rebooted_in_any_phase_is_terminated_once() {
    interrupt_in_each_phase(Reboot);
}

#[test]
fn an_agent_stopped_in_any_phase_terminates_its_instance_once() {
    interrupt_in_each_phase(Stop);
}

fn interrupt_in_each_phase(interruption: Interruption) {
    std::thread::scope(|scope| {
        for phase in PHASES {
            scope.spawn(move || interrupt_in(phase, interruption));
        }
    });
}

/// Interrupts an agent in a phase. The next agent must finish the shutdown, must not poll, and must not lose a job.
fn interrupt_in(phase: &str, interruption: Interruption) {
    let fleet = fleet_that_pauses_in(phase);
    let script = if phase == "draining" { until_go(&fleet) } else { "true".to_owned() };
    let id = fleet.queue(job(&["echo begun", &script]));
    let mut agent = fleet.start();
    fleet.gitlab.wait_for_log(id, "begun");
    wait_for_phase(&fleet, &agent, phase);
    let polls = fleet.polls();
    match interruption {
        _ if phase == "shut_down" => assert!(agent.wait().success()),
        Stop => {
            agent.signal("TERM");
            assert!(agent.wait().success(), "{phase}: {}", agent.log());
        }
        Kill | Reboot => agent.kill(),
    }
    if interruption == Reboot {
        kill_shims(id);
        fleet.home.reboot();
    }
    if phase == "waiting" {
        fleet.cloud.allow(TERMINATE);
    }
    fs::write(fleet.home.path("go"), "").expect("write a file");
    let waiting = fleet.queue(job(&["true"]));
    let mut next = fleet.start();
    assert!(next.wait().success(), "{phase}: {}", next.log());
    let outcome = fleet.gitlab.job(id).failure_reason.unwrap_or_else(|| fleet.gitlab.job_state(id));
    let expected = match (phase, interruption) {
        ("draining", Reboot) => "runner_system_failure",
        ("draining", Stop) => "runner_interrupted",
        _ => "success",
    };
    assert_eq!(outcome, expected, "{phase}: {}", next.log());
    assert_eq!((fleet.gitlab.job_state(waiting).as_str(), fleet.polls()), ("pending", polls), "{phase}");
    assert_ended_once(&fleet, &next, phase);
}

/// A script that waits for the file `go` in the agent's home.
fn until_go(fleet: &Fleet) -> String {
    until_there(fleet.home.path("go").display())
}

/// A fleet whose shutdown takes long enough in a phase to interrupt it there.
fn fleet_that_pauses_in(phase: &str) -> Fleet {
    if phase == "powering_off" {
        let keys = "leave = \"aws-asg\"\nmax_builds = 1\nleave_fallback_after = \"1s\"";
        let fleet = Fleet::with_poweroff(keys, &format!("{}; echo off >>$HOME/off", until_there("$HOME/go")));
        fleet.cloud.refuse(TERMINATE, 403, "AccessDenied");
        return fleet;
    }
    let fleet = Fleet::new("max_builds = 1");
    fleet.cloud.change(|group| group.hooks = vec![Hook::new("drain", 300)]);
    match phase {
        "unregistering" => fleet.gitlab.fail("DELETE runners/managers", [Fault::Slow(Duration::from_secs(8))]),
        // The call takes effect, and the agent dies before it gets the response.
        "terminating" => fleet.cloud.set_lag(Duration::from_secs(2)),
        "hooks" => fleet.cloud.fail("DescribeLifecycleHooks", [Fault::Slow(Duration::from_secs(8))]),
        "waiting" => {
            fleet.cloud.refuse(TERMINATE, 403, "AccessDenied");
            // A stopped agent does not use this time, because it only waits.
            let text = read(&fleet.home.config()).replace("shutdown_timeout = 5", "shutdown_timeout = 3600");
            fs::write(fleet.home.config(), text).expect("write the file");
        }
        _ => {}
    }
    fleet
}

fn wait_for_phase(fleet: &Fleet, agent: &Agent, phase: &str) {
    let record = fleet.home.path("state/leaving.json");
    let is_reached = || match phase {
        "terminating" => fleet.ends().0 == 1,
        "hooks" => !fleet.cloud.calls(TERMINATE).is_empty(),
        "waiting" => agent.log().contains("powering off unless"),
        phase => read(&record).contains(&format!("\"{phase}\"")),
    };
    agent.wait_until(phase, is_reached);
}

/// Asserts that either the group terminated the instance once, or the instance powered off.
fn assert_ended_once(fleet: &Fleet, agent: &Agent, phase: &str) {
    let by_poweroff = phase == "powering_off";
    assert_eq!(fleet.ends(), if by_poweroff { (0, 0) } else { (1, 0) }, "{phase}: {}", agent.log());
    assert_eq!(fleet.completed(), if by_poweroff { Vec::new() } else { vec!["drain".to_owned()] }, "{phase}");
    assert_eq!(fleet.times_off() > 0, by_poweroff, "{phase}: {}", agent.log());
    if by_poweroff {
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
        fleet.cloud.wait_until("the call that terminates the instance", |group| group.terminations == 1);
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
