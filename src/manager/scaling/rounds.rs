//! The rounds of the scaler: read the group, call the planner, execute its steps.
//!
//! A refused or throttled call does not stop the rounds: the next one makes a new decision.

mod reads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Sizing;
use super::observation::{Now, Observation};
use super::plan::{Action, Note, ScalingPlan, ScalingStep};
use super::planner::Planner;
use super::wanted::WantedInstances;
use crate::instance::CapacityChange;
use crate::manager::engine::{Engine, EngineError, ErrorKind, Group, MemberState};
use crate::manager::pool::PoolSettings;
use crate::manager::status::StatusBoard;
use crate::manager::workload::{Snapshot, Workload};
use crate::sync::StopSignal;

/// The maximum interval of decisions, because the periods of policies begin with a minute.
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// While calls of the engine fail, the last known state of the group is used for this long.
const MAX_GROUP_AGE: Duration = Duration::from_secs(150);
/// The minimum interval of decisions.
const MIN_INTERVAL: Duration = Duration::from_millis(200);

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
        // The steps after an obsolete one are obsolete as well, because the plan counts on all its steps.
        let is_obsolete = plan.steps.iter().take_while(|_| !stop.is_set()).any(|step| !self.execute(step, at));
        self.workload.set_hold_budget(plan.hold_budget);
        self.board.decided(&self.pool.name, &plan, &snapshot, self.group.as_ref().map(|(group, _)| group));
        if is_obsolete { MIN_INTERVAL } else { self.next_round_in(&plan, &snapshot) }
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

    /// Executes one step, which was decided at `decided_at`, and reports the result to the planner. Returns
    /// false if the step is obsolete.
    fn execute(&mut self, step: &ScalingStep, decided_at: Instant) -> bool {
        let Some(result) = self.call_for_step(step, decided_at) else { return false };
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
        true
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
