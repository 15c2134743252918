//! The planner over a group whose state each step changes, by topic.

mod desired_capacity;
mod leaving;
mod terminations;

use super::*;
use crate::manager::engine::{FailureKind, Member};
use crate::manager::scaling::observation::{Now, ObservedAgent};
use crate::manager::scaling::testing::pool;
use crate::manager::scaling::wanted::JobCounts;
use crate::manager::workload::RemainingJobs;

const MINUTE: Duration = Duration::from_secs(60);
/// An agent without a job that leaves.
const LEAVING: Activity = Activity::Leaving(RemainingJobs::None);

/// A pool and its group: the effect of each step shows in the next observation.
struct World {
    planner: Planner,
    now: Duration,
    jobs: JobCounts,
    agents: Vec<ObservedAgent>,
    group: Group,
    /// Whether the engine lists the group.
    is_group_known: bool,
}

impl World {
    fn new(executor: &str, keys: &str) -> Self {
        let group = Group { name: "group".to_owned(), max_size: Some(20), protects_new: true, ..Group::default() };
        let planner = Planner::new(Sizing::from_pool(&pool(executor, "", keys)));
        Self {
            planner,
            now: Duration::ZERO,
            jobs: JobCounts::default(),
            agents: Vec::new(),
            group,
            is_group_known: true,
        }
    }

    fn plan(&mut self) -> ScalingPlan {
        let observation = Observation {
            now: Now { elapsed: self.now, time: "2026-07-06T12:00:00Z".parse().expect("a time") },
            jobs: self.jobs,
            agents: self.agents.clone().into(),
            group: self.is_group_known.then(|| self.group.clone()),
        };
        self.planner.plan(&observation)
    }

    /// Makes a plan, and executes its steps.
    fn step(&mut self) -> ScalingPlan {
        let plan = self.plan();
        for step in &plan.steps {
            self.planner.step_done(&step.action, self.now);
            match &step.action {
                Action::SetDesiredCapacity { to, .. } => self.group.desired = *to,
                Action::Dismiss(instance) => self.agent(instance).activity = LEAVING,
                Action::Terminate(instance, change) => {
                    let member = self.group.members.iter_mut().find(|member| member.instance == *instance);
                    member.expect("a member").state = MemberState::Terminating;
                    if *change == CapacityChange::Decrement {
                        self.group.desired -= 1;
                    }
                }
            }
        }
        plan
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for agent in &mut self.agents {
            if let Activity::Idle(idle) = &mut agent.activity {
                *idle += time;
            }
        }
    }

    fn agent(&mut self, instance: &str) -> &mut ObservedAgent {
        self.agents.iter_mut().find(|agent| agent.instance == instance).expect("an agent")
    }

    fn member(&mut self, instance: &str, state: MemberState) {
        self.group.members.retain(|member| member.instance != instance);
        let instance = instance.to_owned();
        self.group.members.push(Member { instance, state, healthy: true, protected: true, detail: String::new() });
    }

    /// An instance that runs and has registered, with no job for this long.
    fn idle(&mut self, instance: &str, idle: Duration) {
        self.member(instance, MemberState::Running);
        let activity = Activity::Idle(idle);
        self.agents.push(ObservedAgent {
            instance: instance.to_owned(),
            activity,
            builds: 0,
            silent_for: Duration::ZERO,
        });
    }

    fn busy(&mut self, instance: &str) {
        self.idle(instance, Duration::ZERO);
        self.agent(instance).activity = Activity::Busy;
        self.jobs.running += 1;
    }

    fn remove_agent(&mut self, instance: &str) {
        self.agents.retain(|agent| agent.instance != instance);
    }
}

fn actions(plan: &ScalingPlan) -> Vec<Action> {
    plan.steps.iter().map(|step| step.action.clone()).collect()
}

fn set(from: u32, to: u32) -> Action {
    Action::SetDesiredCapacity { from, to }
}

fn dismiss(instance: &str) -> Action {
    Action::Dismiss(instance.to_owned())
}

fn terminate(instance: &str, change: CapacityChange) -> Action {
    Action::Terminate(instance.to_owned(), change)
}

/// Holds jobs without idle instances.
const HOLD: &str = "max_instances = 10\n[[runners.autoscaler.policy]]\nidle_time = \"5m\"\n";
