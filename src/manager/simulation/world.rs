//! The simulated fleet: a queue, a group and its instances, advanced from event to event.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::SignedDuration;

use super::Scenario;
use crate::instance::CapacityChange;
use crate::manager::engine::{Group, Member, MemberState};
use crate::manager::scaling::observation::{Activity, Now, Observation, ObservedAgent};
use crate::manager::scaling::plan::Action;
use crate::manager::scaling::planner::Planner;
use crate::manager::scaling::wanted::JobCounts;

const MINUTE: Duration = Duration::from_secs(60);
/// The maximum number of consecutive decisions at one time. Each one is based on the steps of the previous one.
const MAX_DECISIONS: usize = 20;

/// The result of a day.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Day {
    /// The samples, one for each minute.
    pub samples: Vec<Sample>,
    /// The waiting time of each job, in the order of creation; `None` for a job that had not started at the end.
    pub waits: Vec<Option<Duration>>,
    /// The number of started instances.
    pub started: u32,
    /// The total running time of all instances.
    pub instance_time: Duration,
    /// The part of `instance_time` during which an instance had a job.
    pub busy_time: Duration,
    /// The changes of the policy, with their times.
    pub policies: Vec<(Duration, String)>,
}

/// The state at one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Jobs that wait at GitLab.
    pub queued: u32,
    /// Jobs that the manager holds.
    pub held: u32,
    /// Jobs that run.
    pub running: u32,
    /// The wanted number of instances.
    pub wanted: u32,
    /// Instances that start.
    pub starting: u32,
    /// Instances without a job.
    pub idle: u32,
    /// Instances with a job.
    pub busy: u32,
}

struct World<'a> {
    scenario: &'a Scenario,
    planner: Planner,
    now: Duration,
    group: Group,
    instances: Vec<Instance>,
    next_job: usize,
    queued: VecDeque<usize>,
    held: VecDeque<usize>,
    hold_budget: u32,
    next_decision_at: Option<Duration>,
    wanted: u32,
    policy: String,
    day: Day,
}

struct Instance {
    name: String,
    /// The time at which its agent registers.
    ready: Duration,
    started: Duration,
    idle_since: Duration,
    builds: u32,
    /// The times at which the jobs of the instance end.
    jobs: Vec<Duration>,
    /// Whether the agent of the instance has left.
    has_left: bool,
}

/// Simulates a day.
pub fn simulate(scenario: &Scenario) -> Day {
    let group = Group {
        name: "simulated".to_owned(),
        max_size: scenario.group_maximum,
        protects_new: true,
        ..Group::default()
    };
    let mut world = World {
        scenario,
        planner: Planner::new(scenario.sizing.clone()),
        now: Duration::ZERO,
        group,
        instances: Vec::new(),
        next_job: 0,
        queued: VecDeque::new(),
        held: VecDeque::new(),
        hold_budget: 0,
        next_decision_at: None,
        wanted: 0,
        policy: String::new(),
        day: Day { waits: vec![None; scenario.jobs.len()], ..Day::default() },
    };
    let mut sampled = Duration::ZERO;
    while world.now < scenario.length {
        world.process_events();
        while sampled <= world.now {
            let sample = world.sample();
            world.day.samples.push(sample);
            sampled += MINUTE;
        }
        let next = world.next_event(sampled);
        world.advance_to(next.min(scenario.length));
    }
    world.day
}

impl World<'_> {
    /// Processes all events that are due.
    fn process_events(&mut self) {
        let now = self.now;
        for instance in &mut self.instances {
            let before = instance.jobs.len();
            instance.jobs.retain(|end| *end > now);
            if before > 0 && instance.jobs.is_empty() {
                instance.idle_since = now;
            }
        }
        while self.scenario.jobs.get(self.next_job).is_some_and(|job| job.start <= now) {
            self.queued.push_back(self.next_job);
            self.next_job += 1;
        }
        for _ in 0..MAX_DECISIONS {
            self.remove_used_up_agents();
            self.take_jobs();
            if !self.decide() {
                break;
            }
        }
    }

    /// Removes agents that have run the maximum number of jobs.
    fn remove_used_up_agents(&mut self) {
        let Some(most) = self.scenario.sizing.max_use_count else { return };
        for instance in &mut self.instances {
            instance.has_left |= instance.builds >= most && instance.jobs.is_empty();
        }
    }

    /// Hands held jobs to agents, then queued ones. Holds further jobs as far as the budget allows.
    fn take_jobs(&mut self) {
        loop {
            let running: usize = self.instances.iter().map(|instance| instance.jobs.len()).sum();
            let active = u32::try_from(running + self.held.len()).unwrap_or(u32::MAX);
            let may_take = active < self.scenario.sizing.max_jobs;
            let from_held = !self.held.is_empty();
            match self.free_agent() {
                Some(agent) if from_held || may_take && !self.queued.is_empty() => {
                    let job = if from_held { self.held.pop_front() } else { self.queued.pop_front() };
                    if let Some(job) = job {
                        self.start(agent, job);
                    }
                }
                None if may_take
                    && !self.queued.is_empty()
                    && u32::try_from(self.held.len()).is_ok_and(|held| held < self.hold_budget) =>
                {
                    self.held.extend(self.queued.pop_front());
                }
                _ => return,
            }
        }
    }

    /// The instance that gets the next job: the one with the most jobs that has room, so that the others become idle.
    fn free_agent(&self) -> Option<usize> {
        let sizing = &self.scenario.sizing;
        let has_room = |instance: &Instance| {
            let jobs = u32::try_from(instance.jobs.len()).unwrap_or(u32::MAX);
            let builds_left = sizing.max_use_count.is_none_or(|most| instance.builds < most);
            instance.ready <= self.now && !instance.has_left && jobs < sizing.capacity && builds_left
        };
        let candidates = self.instances.iter().enumerate().filter(|(_, instance)| has_room(instance));
        candidates.max_by_key(|(at, instance)| (instance.jobs.len(), std::cmp::Reverse(*at))).map(|(at, _)| at)
    }

    fn start(&mut self, instance: usize, job: usize) {
        let simulated = self.scenario.jobs[job];
        self.day.waits[job] = Some(self.now - simulated.start);
        let instance = &mut self.instances[instance];
        instance.builds += 1;
        instance.jobs.push(self.now + simulated.length);
    }

    /// Makes one decision. Returns true if it changed anything.
    fn decide(&mut self) -> bool {
        let elapsed = self.now;
        let time = SignedDuration::try_from(elapsed)
            .ok()
            .and_then(|elapsed| self.scenario.begins.checked_add(elapsed).ok())
            .unwrap_or(self.scenario.begins);
        self.group.members = self.instances.iter().map(|instance| member(instance, elapsed)).collect();
        let agents = self.instances.iter().filter(|instance| instance.ready <= elapsed && !instance.has_left);
        let running: usize = self.instances.iter().map(|instance| instance.jobs.len()).sum();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let observation = Observation {
            now: Now { elapsed, time },
            jobs: JobCounts { held: number(self.held.len()), running: number(running) },
            agents: agents.map(|instance| agent(instance, elapsed)).collect::<Vec<ObservedAgent>>().into(),
            group: Some(self.group.clone()),
        };
        let plan = self.planner.plan(&observation);
        for step in &plan.steps {
            self.execute(&step.action);
            self.planner.step_done(&step.action, elapsed);
        }
        if self.policy != plan.policy {
            self.day.policies.push((elapsed, plan.policy.clone()));
            self.policy.clone_from(&plan.policy);
        }
        let changed = !plan.steps.is_empty() || self.hold_budget != plan.hold_budget;
        self.hold_budget = plan.hold_budget;
        self.wanted = plan.wanted.instances;
        self.next_decision_at = plan.next_decision_in.map(|wait| elapsed + wait.max(Duration::from_secs(1)));
        changed
    }

    fn execute(&mut self, action: &Action) {
        match action {
            Action::SetDesiredCapacity { to, .. } => self.group.desired = *to,
            Action::Dismiss(name) => {
                if let Some(instance) = self.instances.iter_mut().find(|instance| instance.name == *name) {
                    instance.has_left = true;
                }
            }
            Action::Terminate(name, change) => {
                self.instances.retain(|instance| instance.name != *name);
                if *change == CapacityChange::Decrement {
                    self.group.desired = self.group.desired.saturating_sub(1);
                }
            }
        }
        while usize::try_from(self.group.desired).is_ok_and(|desired| self.instances.len() < desired) {
            self.day.started += 1;
            self.instances.push(Instance {
                name: format!("instance-{:05}", self.day.started),
                started: self.now,
                ready: self.now + self.scenario.boot,
                idle_since: self.now + self.scenario.boot,
                builds: 0,
                jobs: Vec::new(),
                has_left: false,
            });
        }
    }

    fn next_event(&self, sample: Duration) -> Duration {
        let jobs = self.scenario.jobs.get(self.next_job).map(|job| job.start);
        let ends = self.instances.iter().flat_map(|instance| instance.jobs.iter().copied());
        let ready = self.instances.iter().map(|instance| instance.ready).filter(|ready| *ready > self.now);
        let later = |time: &Duration| *time > self.now;
        jobs.into_iter()
            .chain(ends)
            .chain(ready)
            .chain(self.next_decision_at)
            .chain([sample])
            .filter(later)
            .min()
            .unwrap_or(sample)
    }

    fn advance_to(&mut self, until: Duration) {
        let passed = until.saturating_sub(self.now);
        let busy = self.instances.iter().filter(|instance| !instance.jobs.is_empty()).count();
        let times = |count: usize| passed.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        self.day.instance_time += times(self.instances.len());
        self.day.busy_time += times(busy);
        self.now = until;
    }

    fn sample(&self) -> Sample {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let starting = self.instances.iter().filter(|instance| instance.ready > self.now).count();
        let busy = self.instances.iter().filter(|instance| !instance.jobs.is_empty()).count();
        Sample {
            queued: number(self.queued.len()),
            held: number(self.held.len()),
            running: number(self.instances.iter().map(|instance| instance.jobs.len()).sum()),
            wanted: self.wanted,
            starting: number(starting),
            idle: number(self.instances.len() - starting - busy),
            busy: number(busy),
        }
    }
}

fn member(instance: &Instance, now: Duration) -> Member {
    Member {
        instance: instance.name.clone(),
        // A slow boot is not a failure here: only the registration of a running instance can be overdue.
        state: if instance.ready <= now { MemberState::Running } else { MemberState::Creating },
        healthy: true,
        protected: true,
        detail: String::new(),
    }
}

fn agent(instance: &Instance, now: Duration) -> ObservedAgent {
    let idle = now.saturating_sub(instance.idle_since.max(instance.started));
    ObservedAgent {
        instance: instance.name.clone(),
        activity: if instance.jobs.is_empty() { Activity::Idle(idle) } else { Activity::Busy },
        builds: instance.builds,
        silent_for: Duration::ZERO,
    }
}
