//! The rounds of the scaler: read the group, call the planner, execute its steps.
//!
//! A refused or throttled call does not stop the rounds: the next one makes a new decision.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Sizing;
use super::observation::{Now, Observation};
use super::plan::{Action, Note, ScalingPlan, ScalingStep};
use super::planner::Planner;
use super::removal::LEAVING_SILENCE_TIMEOUT;
use super::wanted::WantedInstances;
use crate::instance::CapacityChange;
use crate::manager::engine::{Engine, EngineError, ErrorKind, FailedStart, Group, MemberState};
use crate::manager::pool::PoolSettings;
use crate::manager::status::StatusBoard;
use crate::manager::workload::{AgentState, AgentView, Snapshot, Workload};
use crate::sync::StopSignal;

/// The maximum interval of decisions, because the periods of policies begin with a minute.
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// While calls of the engine fail, the last known state of the group is used for this long.
const MAX_GROUP_AGE: Duration = Duration::from_secs(150);
/// The minimum interval of decisions.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// The interval of reads of failed starts while instances are expected.
const FAILED_STARTS_INTERVAL: Duration = Duration::from_secs(20);
/// Agents reconnect within this time after a restart of the manager.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// The reason for agents to leave whose instance is terminated by the group.
const DELAYED_TERMINATION: &str = "the group terminates the instance";

/// The state of one pool between rounds.
pub struct Rounds {
    pool: PoolSettings,
    workload: Arc<dyn Workload>,
    engine: Arc<dyn Engine>,
    board: Arc<StatusBoard>,
    planner: Planner,
    began: Instant,
    began_at: Timestamp,
    /// The last known state of the group, including the manager's steps since.
    group: Option<(Group, Instant)>,
    group_read_at: Option<Instant>,
    failed_starts_read_at: Option<Instant>,
    /// The failing calls, with the kind of error that was logged.
    failing: BTreeMap<&'static str, ErrorKind>,
    /// Instances that have had an agent while this process runs.
    had_agent: BTreeSet<String>,
    /// The wanted number of instances that was logged last.
    logged_wanted: Option<u32>,
}

impl Rounds {
    pub fn new(
        pool: PoolSettings,
        workload: Arc<dyn Workload>,
        engine: Arc<dyn Engine>,
        board: Arc<StatusBoard>,
    ) -> Self {
        let planner = Planner::new(Sizing::from_pool(&pool));
        Self {
            pool,
            workload,
            engine,
            board,
            planner,
            began: Instant::now(),
            began_at: Timestamp::now(),
            group: None,
            group_read_at: None,
            failed_starts_read_at: None,
            failing: BTreeMap::new(),
            had_agent: BTreeSet::new(),
            logged_wanted: None,
        }
    }

    /// Replaces the settings.
    pub fn replace_settings(&mut self, pool: PoolSettings) {
        self.planner.change(Sizing::from_pool(&pool));
        self.pool = pool;
    }

    /// Makes one decision and executes its steps, until `stop` is set. Returns the time until the next decision.
    pub fn run_once(&mut self, stop: &StopSignal) -> Duration {
        let mut at = Instant::now();
        let mut snapshot = self.workload.snapshot();
        if self.read_what_is_due(&snapshot) {
            // The calls may have taken long.
            at = Instant::now();
            snapshot = self.workload.snapshot();
        }
        self.had_agent.extend(snapshot.agents.iter().map(|agent| agent.instance.clone()));
        let now = Now { elapsed: at.saturating_duration_since(self.began), time: Timestamp::now() };
        let group = self
            .group
            .as_ref()
            .filter(|(_, read_at)| read_at.elapsed() < MAX_GROUP_AGE)
            .map(|(group, _)| group.clone());
        let plan = self.planner.plan(&Observation::new(now, at, &snapshot, group.clone()));
        self.log_plan(&plan);
        for step in plan.steps.iter().take_while(|_| !stop.is_set()) {
            self.execute(step, at);
        }
        self.workload.set_hold_budget(plan.hold_budget);
        self.board.decided(&self.pool.name, &plan, &snapshot, self.group.as_ref().map(|(group, _)| group));
        self.next_round_in(&plan, &snapshot)
    }

    /// Reads the group and the failed starts if they are due. Returns true if it called the engine.
    fn read_what_is_due(&mut self, snapshot: &Snapshot) -> bool {
        let reads_group = self.group_read_at.is_none_or(|read_at| read_at.elapsed() >= self.interval(snapshot));
        if reads_group {
            self.read_group();
        }
        self.read_failed_starts(snapshot) || reads_group
    }

    /// The time until the next read or decision.
    fn next_round_in(&self, plan: &ScalingPlan, snapshot: &Snapshot) -> Duration {
        let interval = self.interval(snapshot);
        let until_read =
            self.group_read_at.map_or(Duration::ZERO, |read_at| interval.saturating_sub(read_at.elapsed()));
        let seconds = Timestamp::now().as_second().rem_euclid(60);
        let until_minute = MAX_INTERVAL.saturating_sub(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        plan.next_decision_in
            .into_iter()
            .chain([until_read, until_minute])
            .min()
            .unwrap_or(MAX_INTERVAL)
            .max(MIN_INTERVAL)
    }

    /// The interval of reads of the group.
    fn interval(&self, snapshot: &Snapshot) -> Duration {
        match self.is_change_expected(snapshot) {
            true => self.pool.update_interval_when_expecting,
            false => self.pool.update_interval,
        }
    }

    /// Whether instances start or terminate.
    fn is_change_expected(&self, snapshot: &Snapshot) -> bool {
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
                    let text = format!("instance lost: terminated outside of the manager instance={instance}");
                    log::warn!("{text} pool={}", self.pool.name);
                    self.board.happened(&self.pool.name, &text);
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

    /// Whether the agent of an instance that the group terminates has left. If so, the instance has no job.
    fn has_left(&self, instance: &str, agent: Option<&AgentView>) -> bool {
        match agent {
            // After a restart of the manager, the agent of the instance may not have reconnected yet.
            None => self.had_agent.contains(instance) || self.began.elapsed() >= RECONNECT_TIMEOUT,
            Some(agent) if agent.state.may_have_job() => false,
            Some(agent) => {
                self.planner.is_terminated(instance) || agent.last_heard.elapsed() >= LEAVING_SILENCE_TIMEOUT
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

    fn failed_starts(&mut self) -> Vec<FailedStart> {
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

    /// Logs the changes that the plan contains, and shows them on the status page.
    fn log_plan(&mut self, plan: &ScalingPlan) {
        if self.logged_wanted.replace(plan.wanted.instances) != Some(plan.wanted.instances) {
            let WantedInstances { instances, reason, .. } = &plan.wanted;
            log::info!("wanted instances changed wanted={instances} pool={} reason={reason}", self.pool.name);
        }
        let has_stopped = plan.notes.iter().any(|note| matches!(note, Note::GrowthStopped(_)));
        plan.notes.iter().for_each(|note| self.log_note(note));
        if has_stopped {
            let failed = self.failed_starts();
            let cause = failed.last().map_or_else(
                || "no start failed in the group's scaling activities".to_owned(),
                |start| format!("{}; {}", start.cause, start.kind.remedy()),
            );
            self.log_note(&Note::Warning(format!("scaling activities: {cause}")));
        }
        for boot in &plan.boots {
            self.board.booted(&self.pool.name, *boot);
        }
    }

    fn log_note(&self, note: &Note) {
        let (level, text) = match note {
            Note::Info(text) => (log::Level::Info, text.clone()),
            Note::Warning(text) => (log::Level::Warn, text.clone()),
            Note::GrowthStopped(cause) => (log::Level::Warn, format!("growth stopped: {cause}")),
        };
        log::log!(level, "{text} pool={}", self.pool.name);
        self.board.happened(&self.pool.name, &text);
    }

    /// Executes one step, which was decided at `decided_at`, and reports the result to the planner.
    fn execute(&mut self, step: &ScalingStep, decided_at: Instant) {
        let Some(result) = self.call_for_step(step, decided_at) else { return };
        let call = metric_label(&step.action);
        // A call may take long.
        let now = self.began.elapsed();
        match result {
            Ok(executed) => {
                let text = log_text(&executed);
                self.record_success(call);
                log::info!("{text} pool={} reason={}", self.pool.name, step.reason);
                self.board.happened(&self.pool.name, &format!("{text}: {}", step.reason));
                self.planner.step_done(&executed, now);
                self.apply_to_group(&executed);
            }
            Err(error) => {
                self.planner.step_failed(&step.action, now);
                self.record_failure(call, &error);
            }
        }
    }

    /// Calls the engine or the agent. Returns the action that was executed; `None` if the step is obsolete, because the
    /// agent has got a job or has come back since the decision.
    fn call_for_step(&self, step: &ScalingStep, decided_at: Instant) -> Option<Result<Action, EngineError>> {
        let done = |()| step.action.clone();
        Some(match &step.action {
            Action::SetDesiredCapacity { to, .. } => self.engine.set_desired_capacity(*to).map(done),
            Action::Dismiss(instance) => Ok(self.workload.dismiss(instance, &step.reason).then(|| done(()))?),
            Action::Terminate(instance, change) => {
                if !self.workload.close_instance(instance, &step.reason, decided_at) {
                    return None;
                }
                let change = self.terminate(instance, *change);
                change.map(|change| Action::Terminate(instance.clone(), change))
            }
        })
    }

    /// Terminates an instance. Returns the effect on the desired capacity.
    fn terminate(&self, instance: &str, change: CapacityChange) -> Result<CapacityChange, EngineError> {
        match self.engine.terminate(instance, change) {
            Ok(()) => Ok(change),
            // The instance is terminated already.
            Err(error) if error.kind == ErrorKind::NoInstance => Ok(CapacityChange::Keep),
            Err(error) if error.kind == ErrorKind::AtMinimum => {
                self.engine.terminate(instance, CapacityChange::Keep).map(|()| CapacityChange::Keep)
            }
            Err(error) => Err(error),
        }
    }

    /// Applies the effect of a step to the known state of the group, until the next read.
    fn apply_to_group(&mut self, action: &Action) {
        let Some((group, _)) = &mut self.group else { return };
        match action {
            Action::SetDesiredCapacity { to, .. } => group.desired = *to,
            Action::Dismiss(_) => {}
            Action::Terminate(instance, change) => {
                if let Some(member) = group.members.iter_mut().find(|member| member.instance == *instance) {
                    member.state = MemberState::Terminating;
                }
                if *change == CapacityChange::Decrement {
                    group.desired = group.desired.saturating_sub(1);
                }
            }
        }
    }

    /// Logs a failed call once, and again if it fails for another kind of reason, until it succeeds.
    fn record_failure(&mut self, call: &'static str, error: &EngineError) {
        self.board.engine_failed(&self.pool.name, call, error);
        if self.failing.insert(call, error.kind) != Some(error.kind) {
            log::warn!("engine call failed; retrying in the next round pool={} error={error}", self.pool.name);
        }
    }

    fn record_success(&mut self, call: &'static str) {
        if self.failing.remove(call).is_some() {
            log::info!("engine call succeeded again pool={} call={call}", self.pool.name);
        }
    }
}

/// The label `call` of `mayfly_manager_api_errors_total`.
fn metric_label(action: &Action) -> &'static str {
    match action {
        Action::SetDesiredCapacity { .. } => "set_target",
        Action::Dismiss(_) => "dismiss",
        Action::Terminate(..) => "terminate",
    }
}

fn log_text(action: &Action) -> String {
    match action {
        Action::SetDesiredCapacity { from, to } => format!("desired capacity set from={from} to={to}"),
        Action::Dismiss(instance) => format!("shutdown of an agent requested instance={instance}"),
        Action::Terminate(instance, change) => {
            let decrement = *change == CapacityChange::Decrement;
            format!("instance terminated instance={instance} decrement={decrement}")
        }
    }
}
