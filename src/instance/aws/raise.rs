//! `raise_on_job`: an instance that takes a job counts the busy members of its group, and raises the desired capacity
//! to that number plus some idle instances.
//!
//! There is no coordination between the members and no knowledge of the queue. Two members that check at the same time
//! may set a capacity that is one too low; a later check corrects that. No member lowers the capacity, because idle
//! instances shut down by themselves.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::autoscaling::GroupState;
use super::group::OwnGroup;
use crate::config::aws::RaiseSettings;
use crate::instance::{Activity, JobDemand};
use crate::sync;

const STACK: usize = 256 * 1024;
/// Time from a job to the next check; a random part of it is added.
const FIRST_RECHECK: Duration = Duration::from_secs(20);
/// Interval of the later checks while a job runs.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Raises the desired capacity of one group.
pub struct CapacityRaiser {
    raise: RaiseSettings,
    instance: String,
    state: Mutex<RaiseState>,
    changed: Condvar,
}

#[derive(Default)]
struct RaiseState {
    /// The demand of the jobs that were taken since the last check.
    taken: Option<JobDemand>,
    is_busy: bool,
    /// When the next check is due.
    next: Option<Instant>,
}

/// Why a check runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckTrigger {
    /// The agent took a job.
    JobTaken(JobDemand),
    /// A job is still running.
    Periodic,
}

impl CapacityRaiser {
    pub fn new(instance: &str, raise: RaiseSettings) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { raise, instance: instance.to_owned(), state, changed })
    }

    pub fn start(self: &Arc<Self>, group: &Arc<OwnGroup>) {
        let (raiser, group) = (Arc::clone(self), Arc::clone(group));
        if let Err(error) = sync::spawn("raise", STACK, move || raiser.run(&group)) {
            log::error!("cannot start the thread that raises the desired capacity error={error}");
        }
    }

    /// The agent took a job.
    pub fn job_taken(&self, demand: JobDemand) {
        self.change(|state| state.taken = Some(state.taken.map_or(demand, |before| before.max(demand))));
    }

    /// Whether a job is running.
    pub fn set_activity(&self, activity: Activity) {
        self.change(|state| match activity {
            Activity::Busy => {
                state.is_busy = true;
                state.next.get_or_insert_with(|| Instant::now() + jittered(FIRST_RECHECK));
            }
            Activity::Idle => *state = RaiseState { taken: state.taken, ..RaiseState::default() },
        });
    }

    fn change(&self, change: impl FnOnce(&mut RaiseState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn run(&self, group: &OwnGroup) {
        let mut has_warned = false;
        loop {
            let trigger = self.next_check();
            match self.check(group, trigger) {
                Ok(()) => has_warned = false,
                Err(why) if !std::mem::replace(&mut has_warned, true) => {
                    log::warn!("cannot raise the desired capacity of the group error={why}");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for the next check.
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
                Some(left) => sync::wait_timeout(&self.changed, state, left),
                None => sync::wait(&self.changed, state),
            };
        }
    }

    /// Reads the group, and raises its desired capacity if necessary. Errors: why it cannot.
    fn check(&self, group: &OwnGroup, trigger: CheckTrigger) -> Result<(), String> {
        let group_state = describe_group(group)?;
        let Some(target) = self.desired_capacity(&group_state, trigger) else { return Ok(()) };
        group.set_desired_capacity(target).map_err(|refusal| refusal.to_string())?;
        log::info!("desired capacity of the group raised from={} to={target}", group_state.desired);
        Ok(())
    }

    /// The new desired capacity, if it is higher than the current one.
    fn desired_capacity(&self, group_state: &GroupState, trigger: CheckTrigger) -> Option<u32> {
        let mut busy: Vec<&str> = group_state.busy.iter().map(String::as_str).collect();
        // Auto Scaling may not report the protection yet.
        if !busy.contains(&self.instance.as_str()) {
            busy.push(&self.instance);
        }
        // The first member checks for all; if two of them do, they set the same capacity.
        if trigger == CheckTrigger::Periodic && busy.iter().min() != Some(&self.instance.as_str()) {
            return None;
        }
        let count = u32::try_from(busy.len()).unwrap_or(u32::MAX);
        let idle = self.raise.idle(count);
        let idle = if trigger == CheckTrigger::JobTaken(JobDemand::More) { idle.saturating_mul(2) } else { idle };
        let target = count.saturating_add(idle).min(group_state.max_size);
        (target > group_state.desired).then_some(target)
    }

    fn lock(&self) -> MutexGuard<'_, RaiseState> {
        sync::lock(&self.state)
    }
}

/// The group, if its protection shows which members are busy. Errors: it does not, or the call failed.
fn describe_group(group: &OwnGroup) -> Result<GroupState, String> {
    let group_state = group.group_state().map_err(|refusal| refusal.to_string())?;
    match group_state.protects_new {
        true => {
            Err("the group protects new instances from scale-in, so busy ones cannot be distinguished; disable that protection"
                .to_owned())
        }
        false => Ok(group_state),
    }
}

/// The group, for `mayfly check`. Errors: as for a check.
pub fn inspect(group: &OwnGroup) -> Result<String, String> {
    describe_group(group)
        .map(|group_state| format!("{} instances wanted, {} at most", group_state.desired, group_state.max_size))
}

/// Adds a random part, up to the same time again.
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
        raiser.desired_capacity(&GroupState { desired, max_size: 10, protects_new: false, busy }, trigger)
    }

    #[test]
    fn the_desired_capacity_covers_busy_and_idle_members() {
        assert_eq!(target("", &[], 1, ONE), Some(2), "this one has a job, whatever the group knows");
        assert_eq!(target("", &["i-5"], 2, ONE), None, "enough");
        assert_eq!(target("", &["i-5", "i-9"], 2, ONE), Some(3));
        assert_eq!(target("", &["i-5"], 7, ONE), None, "never lower");
        assert_eq!(target("", &["i-5"], 2, MORE), Some(3), "others wait");
        assert_eq!(target("scale_factor = 2.0", &["i-5", "i-9"], 2, ONE), Some(6));
        assert_eq!(target("idle_count = 50", &["i-5"], 2, ONE), Some(10), "as many as it may have");
    }

    #[test]
    fn only_the_first_busy_member_rechecks() {
        assert_eq!(target("", &["i-5", "i-9"], 2, CheckTrigger::Periodic), Some(3));
        assert_eq!(target("", &["i-2", "i-5"], 2, CheckTrigger::Periodic), None);
        assert_eq!(target("", &["i-2"], 2, CheckTrigger::Periodic), None);
    }

    #[test]
    fn checks_after_each_job_and_while_one_runs() {
        let raiser = CapacityRaiser::new("i-5", toml::from_str("").expect("a table"));
        raiser.job_taken(JobDemand::More);
        raiser.job_taken(JobDemand::One);
        raiser.set_activity(Activity::Busy);
        assert_eq!(raiser.next_check(), MORE, "both at once");
        let next = raiser.lock().next.expect("a time of the next request");
        let left = next.saturating_duration_since(Instant::now());
        assert!(left > FIRST_RECHECK / 2 && left <= FIRST_RECHECK * 2, "{left:?}");
        raiser.lock().next = Some(Instant::now());
        assert_eq!(raiser.next_check(), CheckTrigger::Periodic);
        assert!(raiser.lock().next.is_some());
        raiser.set_activity(Activity::Idle);
        assert_eq!(raiser.lock().next, None);
    }
}
