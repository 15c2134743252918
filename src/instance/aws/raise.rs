//! A group that grows with its jobs: whoever takes one looks how many members of the group have one, and raises what the
//! group is to have to those and some without.
//!
//! No member knows the queue, and none leads. Two that look at the same time may ask for one instance too few, which a
//! look after a while makes good; nobody ever lowers anything, since instances that are one too many leave by themselves.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::autoscaling::GroupState;
use super::group::Group;
use crate::config::aws::Raise;
use crate::instance::{Activity, JobDemand};

const STACK: usize = 256 * 1024;
/// From a job to the next look: by chance up to twice as long.
const FIRST_RECHECK: Duration = Duration::from_secs(20);
/// Between the looks after that, while there is a job.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Raises one group.
pub struct CapacityRaiser {
    raise: Raise,
    instance: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// A job was taken, which nobody has looked at.
    taken: Option<JobDemand>,
    is_busy: bool,
    /// When the group is looked at again.
    next: Option<Instant>,
}

/// Why the group is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckTrigger {
    /// A job was taken.
    JobTaken(JobDemand),
    /// Jobs run on.
    Periodic,
}

impl CapacityRaiser {
    pub fn new(instance: &str, raise: Raise) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { raise, instance: instance.to_owned(), state, changed })
    }

    /// Starts the thread.
    pub fn start(self: &Arc<Self>, group: &Arc<Group>) {
        let (raiser, group) = (Arc::clone(self), Arc::clone(group));
        let thread = thread::Builder::new().name("raise".to_owned()).stack_size(STACK);
        if let Err(error) = thread.spawn(move || raiser.run(&group)) {
            log::error!("cannot start the thread that raises the desired capacity error={error}");
        }
    }

    /// A job was taken.
    pub fn job_taken(&self, demand: JobDemand) {
        self.change(|state| state.taken = Some(state.taken.map_or(demand, |before| before.max(demand))));
    }

    /// Whether there is a job.
    pub fn set_activity(&self, activity: Activity) {
        self.change(|state| match activity {
            Activity::Busy => {
                state.is_busy = true;
                state.next.get_or_insert_with(|| Instant::now() + jittered(FIRST_RECHECK));
            }
            Activity::Idle => *state = State { taken: state.taken, ..State::default() },
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn run(&self, group: &Group) {
        let mut has_complained = false;
        loop {
            let trigger = self.next_check();
            match self.check(group, trigger) {
                Ok(()) => has_complained = false,
                Err(why) if !std::mem::replace(&mut has_complained, true) => {
                    log::warn!("cannot raise the desired capacity of the group {why}");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits until the group is to be looked at.
    fn next_check(&self) -> CheckTrigger {
        let mut state = self.lock();
        loop {
            if let Some(demand) = state.taken.take() {
                state.next = state.is_busy.then(|| Instant::now() + jittered(FIRST_RECHECK));
                return CheckTrigger::JobTaken(demand);
            }
            let left = state.next.map(|next| next.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => {
                    state.next = Some(Instant::now() + RECHECK_INTERVAL);
                    return CheckTrigger::Periodic;
                }
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Looks at the group, and raises it. Errors: why it cannot be.
    fn check(&self, group: &Group, trigger: CheckTrigger) -> Result<(), String> {
        let group_state = describe_group(group)?;
        let Some(target) = self.desired_capacity(&group_state, trigger) else { return Ok(()) };
        group.raise(target).map_err(|refusal| refusal.to_string())?;
        log::info!("desired capacity of the group raised from={} to={target}", group_state.desired);
        Ok(())
    }

    /// How many instances the group is to have, when that is more than it is to have now.
    fn desired_capacity(&self, group_state: &GroupState, trigger: CheckTrigger) -> Option<u32> {
        let mut busy: Vec<&str> = group_state.busy.iter().map(String::as_str).collect();
        // It has a job, whether or not the group knows by now.
        if !busy.contains(&self.instance.as_str()) {
            busy.push(&self.instance);
        }
        // One is enough to look again; should two think that they are it, they ask for the same.
        if trigger == CheckTrigger::Periodic && busy.iter().min() != Some(&self.instance.as_str()) {
            return None;
        }
        let count = u32::try_from(busy.len()).unwrap_or(u32::MAX);
        let idle = self.raise.idle(count);
        let idle = if trigger == CheckTrigger::JobTaken(JobDemand::More) { idle.saturating_mul(2) } else { idle };
        let target = count.saturating_add(idle).min(group_state.most);
        (target > group_state.desired).then_some(target)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A group whose protection tells who has a job. Errors: it does not, or it cannot be looked at.
fn describe_group(group: &Group) -> Result<GroupState, String> {
    let group_state = group.group_state().map_err(|refusal| refusal.to_string())?;
    match group_state.protects_new {
        true => {
            Err("the group protects new instances from scale-in, as if all of them had a job; switch that off"
                .to_owned())
        }
        false => Ok(group_state),
    }
}

/// How the group stands, for people. Errors: as for looking at it.
pub fn inspect(group: &Group) -> Result<String, String> {
    describe_group(group)
        .map(|group_state| format!("{} instances wanted, {} at most", group_state.desired, group_state.most))
}

/// From once to twice as long, by chance.
fn jittered(rest: Duration) -> Duration {
    rest.mul_f64(1.0 + crate::random::fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: CheckTrigger = CheckTrigger::JobTaken(JobDemand::One);
    const MORE: CheckTrigger = CheckTrigger::JobTaken(JobDemand::More);

    fn target(raise: &str, busy: &[&str], desired: u32, trigger: CheckTrigger) -> Option<u32> {
        let raiser = CapacityRaiser::new("i-5", toml::from_str(raise).expect("a table"));
        let busy = busy.iter().map(|id| (*id).to_owned()).collect();
        raiser.desired_capacity(&GroupState { desired, most: 10, protects_new: false, busy }, trigger)
    }

    #[test]
    fn the_group_is_to_have_those_with_a_job_and_some_without() {
        assert_eq!(target("", &[], 1, ONE), Some(2), "this one has a job, whatever the group knows");
        assert_eq!(target("", &["i-5"], 2, ONE), None, "enough");
        assert_eq!(target("", &["i-5", "i-9"], 2, ONE), Some(3));
        assert_eq!(target("", &["i-5"], 7, ONE), None, "never lower");
        assert_eq!(target("", &["i-5"], 2, MORE), Some(3), "others wait");
        assert_eq!(target("scale_factor = 2.0", &["i-5", "i-9"], 2, ONE), Some(6));
        assert_eq!(target("idle_count = 50", &["i-5"], 2, ONE), Some(10), "as many as it may have");
    }

    #[test]
    fn the_first_of_those_with_a_job_looks_again() {
        assert_eq!(target("", &["i-5", "i-9"], 2, CheckTrigger::Periodic), Some(3));
        assert_eq!(target("", &["i-2", "i-5"], 2, CheckTrigger::Periodic), None);
        assert_eq!(target("", &["i-2"], 2, CheckTrigger::Periodic), None);
    }

    #[test]
    fn it_is_looked_at_with_each_job_and_while_there_is_one() {
        let raiser = CapacityRaiser::new("i-5", toml::from_str("").expect("a table"));
        raiser.job_taken(JobDemand::More);
        raiser.job_taken(JobDemand::One);
        raiser.set_activity(Activity::Busy);
        assert_eq!(raiser.next_check(), MORE, "both at once");
        let next = raiser.lock().next.expect("another look");
        let left = next.saturating_duration_since(Instant::now());
        assert!(left > FIRST_RECHECK / 2 && left <= FIRST_RECHECK * 2, "{left:?}");
        raiser.lock().next = Some(Instant::now());
        assert_eq!(raiser.next_check(), CheckTrigger::Periodic);
        assert!(raiser.lock().next.is_some());
        raiser.set_activity(Activity::Idle);
        assert_eq!(raiser.lock().next, None);
    }
}
