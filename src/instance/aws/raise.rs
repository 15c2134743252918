//! A group that grows with its jobs: whoever takes one looks how many members of the group have one, and raises what the
//! group is to have to those and some without.
//!
//! No member knows the queue, and none leads. Two that look at the same time may ask for one instance too few, which a
//! look after a while makes good; nobody ever lowers anything, since instances that are one too many leave by themselves.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::autoscaling::Fleet;
use super::group::Group;
use crate::config::aws::Raise;
use crate::instance::{Demand, Work};

const STACK: usize = 256 * 1024;
/// From a job to the next look: by chance up to twice as long.
const SECOND_LOOK: Duration = Duration::from_secs(20);
/// Between the looks after that, while there is a job.
const REST: Duration = Duration::from_secs(60);

/// Raises one group.
pub struct Raising {
    raise: Raise,
    instance: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// A job was taken, which nobody has looked at.
    taken: Option<Demand>,
    is_busy: bool,
    /// When the group is looked at again.
    next: Option<Instant>,
}

/// Why the group is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// A job was taken.
    Taken(Demand),
    /// Jobs run on.
    Again,
}

impl Raising {
    pub fn new(instance: &str, raise: Raise) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { raise, instance: instance.to_owned(), state, changed })
    }

    /// Starts the thread.
    pub fn start(self: &Arc<Self>, group: &Arc<Group>) {
        let (raising, group) = (Arc::clone(self), Arc::clone(group));
        let thread = thread::Builder::new().name("raise".to_owned()).stack_size(STACK);
        if let Err(error) = thread.spawn(move || raising.watch(&group)) {
            log::error!("cannot start the thread that raises the desired capacity error={error}");
        }
    }

    /// A job was taken.
    pub fn taken(&self, demand: Demand) {
        self.change(|state| state.taken = Some(state.taken.map_or(demand, |before| before.max(demand))));
    }

    /// Whether there is a job.
    pub fn work(&self, work: Work) {
        self.change(|state| match work {
            Work::Busy => {
                state.is_busy = true;
                state.next.get_or_insert_with(|| Instant::now() + spread(SECOND_LOOK));
            }
            Work::Idle => *state = State { taken: state.taken, ..State::default() },
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn watch(&self, group: &Group) {
        let mut has_complained = false;
        loop {
            let look = self.next();
            match self.look(group, look) {
                Ok(()) => has_complained = false,
                Err(why) if !std::mem::replace(&mut has_complained, true) => {
                    log::warn!("cannot raise the desired capacity of the group {why}");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits until the group is to be looked at.
    fn next(&self) -> Look {
        let mut state = self.lock();
        loop {
            if let Some(demand) = state.taken.take() {
                state.next = state.is_busy.then(|| Instant::now() + spread(SECOND_LOOK));
                return Look::Taken(demand);
            }
            let left = state.next.map(|next| next.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => {
                    state.next = Some(Instant::now() + REST);
                    return Look::Again;
                }
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Looks at the group, and raises it. Errors: why it cannot be.
    fn look(&self, group: &Group, look: Look) -> Result<(), String> {
        let fleet = described(group)?;
        let Some(target) = self.target(&fleet, look) else { return Ok(()) };
        group.raise(target).map_err(|refusal| refusal.to_string())?;
        log::info!("desired capacity of the group raised from={} to={target}", fleet.desired);
        Ok(())
    }

    /// How many instances the group is to have, when that is more than it is to have now.
    fn target(&self, fleet: &Fleet, look: Look) -> Option<u32> {
        let mut busy: Vec<&str> = fleet.busy.iter().map(String::as_str).collect();
        // It has a job, whether or not the group knows by now.
        if !busy.contains(&self.instance.as_str()) {
            busy.push(&self.instance);
        }
        // One is enough to look again; should two think that they are it, they ask for the same.
        if look == Look::Again && busy.iter().min() != Some(&self.instance.as_str()) {
            return None;
        }
        let count = u32::try_from(busy.len()).unwrap_or(u32::MAX);
        let idle = self.raise.idle(count);
        let idle = if look == Look::Taken(Demand::More) { idle.saturating_mul(2) } else { idle };
        let target = count.saturating_add(idle).min(fleet.most);
        (target > fleet.desired).then_some(target)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A group whose protection tells who has a job. Errors: it does not, or it cannot be looked at.
fn described(group: &Group) -> Result<Fleet, String> {
    let fleet = group.fleet().map_err(|refusal| refusal.to_string())?;
    match fleet.protects_new {
        true => {
            Err("the group protects new instances from scale-in, as if all of them had a job; switch that off"
                .to_owned())
        }
        false => Ok(fleet),
    }
}

/// How the group stands, for people. Errors: as for looking at it.
pub fn examine(group: &Group) -> Result<String, String> {
    described(group).map(|fleet| format!("{} instances wanted, {} at most", fleet.desired, fleet.most))
}

/// From once to twice as long, by chance.
fn spread(rest: Duration) -> Duration {
    rest.mul_f64(1.0 + crate::random::fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Look = Look::Taken(Demand::One);
    const MORE: Look = Look::Taken(Demand::More);

    fn target(raise: &str, busy: &[&str], desired: u32, look: Look) -> Option<u32> {
        let raising = Raising::new("i-5", toml::from_str(raise).expect("a table"));
        let busy = busy.iter().map(|id| (*id).to_owned()).collect();
        raising.target(&Fleet { desired, most: 10, protects_new: false, busy }, look)
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
        assert_eq!(target("", &["i-5", "i-9"], 2, Look::Again), Some(3));
        assert_eq!(target("", &["i-2", "i-5"], 2, Look::Again), None);
        assert_eq!(target("", &["i-2"], 2, Look::Again), None);
    }

    #[test]
    fn it_is_looked_at_with_each_job_and_while_there_is_one() {
        let raising = Raising::new("i-5", toml::from_str("").expect("a table"));
        raising.taken(Demand::More);
        raising.taken(Demand::One);
        raising.work(Work::Busy);
        assert_eq!(raising.next(), MORE, "both at once");
        let next = raising.lock().next.expect("another look");
        let left = next.saturating_duration_since(Instant::now());
        assert!(left > SECOND_LOOK / 2 && left <= SECOND_LOOK * 2, "{left:?}");
        raising.lock().next = Some(Instant::now());
        assert_eq!(raising.next(), Look::Again);
        assert!(raising.lock().next.is_some());
        raising.work(Work::Idle);
        assert_eq!(raising.lock().next, None);
    }
}
