//! Lifecycle hooks: extended with heartbeats while a job runs, and completed at the end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::autoscaling::LifecycleHook;
use super::group::OwnGroup;
use crate::instance::Refusal;
use crate::sync;

const STACK: usize = 256 * 1024;
/// Interval of retries while a hook does not hold the instance yet, or Auto Scaling does not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The heartbeats of one instance.
pub struct HookHeartbeats {
    heartbeat: Mutex<HookHeartbeat>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HookHeartbeat {
    NotStarted,
    Running,
    /// The hooks are being completed: no more heartbeats.
    Stopped,
}

impl HookHeartbeats {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { heartbeat: Mutex::new(HookHeartbeat::NotStarted), changed: Condvar::new() })
    }

    /// Starts the heartbeats, once.
    pub fn start_heartbeats(self: &Arc<Self>, group: &Arc<OwnGroup>) {
        let mut heartbeat = self.lock();
        if *heartbeat != HookHeartbeat::NotStarted {
            return;
        }
        let (hooks, group) = (Arc::clone(self), Arc::clone(group));
        match sync::spawn("heartbeats", STACK, move || hooks.run_heartbeats(&group)) {
            Ok(_) => *heartbeat = HookHeartbeat::Running,
            Err(error) => log::error!("cannot start the thread for lifecycle hook heartbeats error={error}"),
        }
    }

    fn run_heartbeats(&self, group: &OwnGroup) {
        let mut has_warned = false;
        let mut warn_once = |refusal: &Refusal| {
            if !std::mem::replace(&mut has_warned, true) {
                log::warn!("cannot extend a lifecycle hook; it may time out during a job {refusal}");
            }
        };
        let mut due: Vec<(LifecycleHook, Instant)> = loop {
            match group.hooks() {
                Ok(hooks) => break hooks.into_iter().map(|hook| (hook, Instant::now())).collect(),
                Err(refusal) => warn_once(&refusal),
            }
            if self.is_stopped_within(RETRY_INTERVAL) {
                return;
            }
        };
        while let Some(next) = due.iter().map(|(_, at)| *at).min() {
            if self.is_stopped_within(next.saturating_duration_since(Instant::now())) {
                return;
            }
            for (hook, at) in due.iter_mut().filter(|(_, at)| *at <= Instant::now()) {
                let half = hook.timeout / 2;
                let delay = match group.heartbeat(hook) {
                    Ok(()) => {
                        log::debug!("lifecycle hook extended hook={}", hook.name);
                        half
                    }
                    Err(refusal) if is_not_active(&refusal) => RETRY_INTERVAL,
                    Err(refusal) => {
                        warn_once(&refusal);
                        RETRY_INTERVAL.max(half / 4)
                    }
                };
                *at = Instant::now() + delay;
            }
        }
    }

    /// Completes each hook. Waits for a hook that does not hold the instance yet, unless Auto Scaling reports that no
    /// hook holds it any more.
    pub fn complete(&self, group: &OwnGroup, timeout: Duration) -> Result<(), Refusal> {
        *self.lock() = HookHeartbeat::Stopped;
        self.changed.notify_all();
        let until = Instant::now() + timeout;
        let mut left = None;
        loop {
            let outcome = match &mut left {
                None => group.hooks().map(|hooks| left = Some(hooks)),
                Some(hooks) => complete_each(group, hooks),
            };
            if left.as_ref().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            let is_late = Instant::now() + RETRY_INTERVAL >= until;
            match outcome {
                Ok(()) => continue,
                Err(refusal) if is_not_active(&refusal) => {
                    let state = group.state();
                    if is_late || state.is_some_and(|state| !may_still_be_held(&state)) {
                        log::info!("no lifecycle hook holds this instance");
                        return Ok(());
                    }
                }
                Err(refusal) if is_late || !refusal.is_temporary() => return Err(refusal),
                Err(_) => {}
            }
            // No event announces that a hook holds the instance. After a stop signal, the agent exits at its deadline
            // without this thread.
            thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Waits. Returns true if the heartbeats must stop.
    fn is_stopped_within(&self, wait: Duration) -> bool {
        let is_running = |heartbeat: &mut HookHeartbeat| *heartbeat == HookHeartbeat::Running;
        let heartbeat = sync::wait_while(&self.changed, self.lock(), wait, is_running);
        *heartbeat == HookHeartbeat::Stopped
    }

    fn lock(&self) -> MutexGuard<'_, HookHeartbeat> {
        sync::lock(&self.heartbeat)
    }
}

/// Tries to complete each hook, and removes the completed ones. Errors: the last failure.
fn complete_each(group: &OwnGroup, hooks: &mut Vec<LifecycleHook>) -> Result<(), Refusal> {
    let mut outcome = Ok(());
    hooks.retain(|hook| match group.complete(hook) {
        Ok(()) => {
            log::info!("lifecycle hook completed hook={}", hook.name);
            false
        }
        Err(refusal) => {
            outcome = Err(refusal);
            true
        }
    });
    outcome
}

/// The hook does not hold the instance: not yet, or not any more.
fn is_not_active(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Denied { code, message, .. }
        if code == "ValidationError" && message.contains("No active Lifecycle Action"))
}

/// Whether a hook holds, or may later hold, an instance in this lifecycle state.
fn may_still_be_held(state: &str) -> bool {
    let is_in_warm_pool = state.starts_with("Warmed:") && !state.starts_with("Warmed:Terminat");
    state != "Terminated" && !state.ends_with(":Proceed") && !is_in_warm_pool
}
