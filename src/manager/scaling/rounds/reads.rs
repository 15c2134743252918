//! Reads the group and its failed starts, and passes what the engine reports to the workload.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Rounds;
use crate::manager::engine::{FailedStart, Group, MemberState};
use crate::manager::scaling::plan::Note;
use crate::manager::scaling::removal::DRAINING_SILENCE_TIMEOUT;
use crate::manager::workload::{AgentState, AgentView, RemainingJobs, Snapshot};

/// The interval of reads of failed starts while instances are expected.
const FAILED_STARTS_INTERVAL: Duration = Duration::from_secs(20);
/// Agents reconnect within this time after a restart of the manager.
const MANAGER_RESTART_TIMEOUT: Duration = Duration::from_secs(120);
/// The reason for agents to leave whose instance is terminated by the group.
const DELAYED_TERMINATION: &str = "the group terminates the instance";

impl Rounds {
    /// Reads the group and the failed starts if they are due. Returns true if it called the engine.
    pub(super) fn read_what_is_due(&mut self, snapshot: &Snapshot) -> bool {
        let reads_group = self.group_read_at.is_none_or(|read_at| read_at.elapsed() >= self.interval(snapshot));
        if reads_group {
            self.read_group();
        }
        self.read_failed_starts(snapshot) || reads_group
    }

    /// The interval of reads of the group.
    pub(super) fn interval(&self, snapshot: &Snapshot) -> Duration {
        match self.is_change_expected(snapshot) {
            true => self.pool.update_interval_when_expecting,
            false => self.pool.update_interval,
        }
    }

    /// Whether instances start or terminate.
    pub(super) fn is_change_expected(&self, snapshot: &Snapshot) -> bool {
        let Some((group, _)) = &self.group else { return false };
        let agents: HashSet<&str> = snapshot.agents.iter().map(|agent| agent.instance.as_str()).collect();
        let registered = |instance: &str| agents.contains(instance);
        let listed = group.members.iter().filter(|member| member.state.counts()).count();
        usize::try_from(group.desired).is_ok_and(|desired| desired != listed)
            || group.members.iter().any(|member| match member.state {
                MemberState::Running => !registered(&member.instance),
                MemberState::Creating | MemberState::Terminating | MemberState::TerminationDelayed => true,
                MemberState::Aside => false,
            })
            || snapshot.agents.iter().any(|agent| matches!(agent.state, AgentState::Leaving(_)))
    }

    /// Reads the group, and passes to the workload which instances may register and which have ended.
    fn read_group(&mut self) {
        self.group_read_at = Some(Instant::now());
        let group = match self.engine.group() {
            Ok(group) => group,
            Err(error) => return self.record_failure("list", &error),
        };
        self.record_success("list");
        self.board.engine_answered(&self.pool.name);
        let may_register = |state: MemberState| {
            matches!(state, MemberState::Creating | MemberState::Running | MemberState::TerminationDelayed)
        };
        let members: Vec<String> = group
            .members
            .iter()
            .filter(|member| may_register(member.state) && !self.planner.is_terminated(&member.instance))
            .map(|member| member.instance.clone())
            .collect();
        self.workload.set_members(&members);
        let snapshot_at = Instant::now();
        let snapshot = self.workload.snapshot();
        self.report_lost(&group, &snapshot);
        self.process_delayed_terminations(&group, &snapshot, snapshot_at);
        let listed: HashSet<&str> = group.members.iter().map(|member| member.instance.as_str()).collect();
        self.had_agent.retain(|instance| listed.contains(instance.as_str()));
        self.group = Some((group, Instant::now()));
    }

    /// Asks the engine whether instances that left the group, but have an agent, are terminated.
    fn report_lost(&mut self, group: &Group, snapshot: &Snapshot) {
        let listed: HashSet<&str> = group.members.iter().map(|member| member.instance.as_str()).collect();
        let missing: Vec<String> = snapshot
            .agents
            .iter()
            .map(|agent| agent.instance.clone())
            .filter(|instance| !listed.contains(instance.as_str()))
            .collect();
        if missing.is_empty() {
            return;
        }
        match self.engine.terminated_among(&missing) {
            Ok(ended) => {
                self.record_success("ended");
                for instance in ended {
                    self.log_note(&match self.planner.is_terminated(&instance) {
                        true => Note::Info(format!("instance gone after its termination instance={instance}")),
                        false => {
                            let text = "instance lost: terminated outside of the manager";
                            Note::Warning(format!("{text} instance={instance}"))
                        }
                    });
                    self.workload.lost(&instance);
                }
            }
            Err(error) => self.record_failure("ended", &error),
        }
    }

    /// Handles instances whose termination a lifecycle hook delays: extends the hook while a job runs, and completes it
    /// when the agent has left.
    fn process_delayed_terminations(&mut self, group: &Group, snapshot: &Snapshot, snapshot_at: Instant) {
        for member in group.members.iter().filter(|member| member.state == MemberState::TerminationDelayed) {
            let instance = member.instance.as_str();
            let agent = snapshot.agents.iter().find(|agent| agent.instance == instance);
            let result = match agent.map(|agent| agent.state) {
                Some(AgentState::Idle { .. }) => {
                    self.workload.dismiss(instance, DELAYED_TERMINATION);
                    Ok(())
                }
                _ if self.has_left(instance, agent) => {
                    // False if the agent has registered again.
                    match self.workload.close_instance(instance, DELAYED_TERMINATION, snapshot_at) {
                        true => self.engine.end_termination_delay(instance),
                        false => Ok(()),
                    }
                }
                Some(_) => self.engine.extend_termination_delay(instance),
                None => Ok(()),
            };
            match result {
                Ok(()) => self.record_success("hook"),
                Err(error) => self.record_failure("hook", &error),
            }
        }
    }

    /// Whether the agent of an instance that the group terminates has left. If so, the instance has no job of this
    /// manager.
    fn has_left(&self, instance: &str, agent: Option<&AgentView>) -> bool {
        match agent {
            // After a restart of the manager, the agent of the instance may not have reconnected yet.
            None => self.had_agent.contains(instance) || self.began.elapsed() >= MANAGER_RESTART_TIMEOUT,
            Some(agent) => {
                let is_silent = agent.last_heard.elapsed() >= DRAINING_SILENCE_TIMEOUT;
                match agent.state {
                    AgentState::Busy | AgentState::Leaving(RemainingJobs::Known) => false,
                    AgentState::Leaving(RemainingJobs::Possible) => is_silent,
                    AgentState::Idle { .. } | AgentState::Leaving(RemainingJobs::None) => {
                        is_silent || self.planner.is_terminated(instance)
                    }
                }
            }
        }
    }

    /// While instances are expected, reads which instances the engine could not start. Returns true if it called the
    /// engine.
    fn read_failed_starts(&mut self, snapshot: &Snapshot) -> bool {
        let due = self.failed_starts_read_at.is_none_or(|read_at| read_at.elapsed() >= FAILED_STARTS_INTERVAL);
        if !due || !self.is_change_expected(snapshot) {
            return false;
        }
        self.failed_starts_read_at = Some(Instant::now());
        let failed = self.failed_starts();
        let notes = self.planner.record_failed_starts(&failed, self.began.elapsed());
        for start in &failed {
            self.board.start_failed(&self.pool.name, start);
        }
        notes.iter().for_each(|note| self.log_note(note));
        true
    }

    pub(super) fn failed_starts(&mut self) -> Vec<FailedStart> {
        match self.engine.failed_starts(self.began_at) {
            Ok(failed) => {
                self.record_success("failures");
                failed
            }
            Err(error) => {
                self.record_failure("failures", &error);
                Vec::new()
            }
        }
    }
}
