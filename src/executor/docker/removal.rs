//! Removes the objects of jobs: in the background after each job, and when an agent starts, those that an earlier agent
//! left.
//!
//! The agent finds objects by their labels. It never removes an object without mayfly's labels.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::engine::containers::AnonymousVolumes;
use super::engine::{DockerEngine, DockerError};
use super::names::{AGENT_RUN, ContainerOwner, INSTANCE, JOB, STATE, TEMPORARY, VOLUME_KEEP};
use crate::backoff::Backoff;
use crate::http::Address;
use crate::sync;

/// The delays between two attempts of a removal.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// After this time, the agent gives up. The next agent removes the objects when it starts.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(600);
/// Enough stack for requests to the engine.
const STACK: usize = 512 * 1024;

/// The running removals.
#[derive(Clone, Default)]
pub struct ContainerRemovals(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<RemovalState>,
    changed: Condvar,
}

#[derive(Default)]
struct RemovalState {
    /// The number of running removals.
    running: usize,
    /// Whether the agent waits for the removals before it exits.
    is_exiting: bool,
    /// Whether a removal ended because the agent exits.
    is_incomplete: bool,
}

/// A running removal. It is counted until this value is dropped.
struct RemovalGuard(ContainerRemovals);

impl Drop for RemovalGuard {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.0.changed.notify_all();
    }
}

/// What a removal that waits for its retry does when the agent exits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnExit {
    /// It retries at once, and ends if the engine is unreachable.
    Retry,
    /// It ends.
    End,
}

/// The end of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RemovalEnd {
    /// The objects are removed, or the next agent must remove them.
    Settled,
    /// The agent exits; the next agent removes the objects.
    Exiting,
}

impl ContainerRemovals {
    fn begin(&self) -> RemovalGuard {
        self.lock().running += 1;
        RemovalGuard(self.clone())
    }

    /// Waits until no removal runs, at most for `timeout`, before the agent exits. The removal of a job that waits for
    /// its retry retries at once; a sweep that waits for its retry ends.
    pub fn wait_before_exit(&self, timeout: Duration) {
        self.lock().is_exiting = true;
        self.0.changed.notify_all();
        if !self.are_done_within(timeout) || self.lock().is_incomplete {
            log::warn!("not all containers of jobs are removed; exiting, the next start removes them");
        }
    }

    /// Waits for all removals. Returns false if some still run after `timeout`.
    pub fn are_done_within(&self, timeout: Duration) -> bool {
        sync::wait_while(&self.0.changed, self.lock(), timeout, |state| state.running > 0).running == 0
    }

    fn lock(&self) -> MutexGuard<'_, RemovalState> {
        sync::lock(&self.0.state)
    }

    /// Removes all objects of a job and then calls `then`, in a separate thread.
    pub fn start(&self, address: &Address, owner: &ContainerOwner, job: &str, then: impl FnOnce() + Send + 'static) {
        let (guard, removals) = (self.begin(), self.clone());
        let (address, owner, name) = (address.clone(), owner.clone(), job.to_owned());
        let spawned = sync::spawn("removal", STACK, move || {
            let _running = guard;
            let labels = [(INSTANCE, owner.instance.as_str()), (STATE, &owner.state), (JOB, &name)];
            let remove = || remove_all(&DockerEngine::connect(&address)?, &labels, &|_| true);
            match removals.retry(&format!("job={name}"), OnExit::Retry, remove) {
                RemovalEnd::Settled => then(),
                RemovalEnd::Exiting => removals.lock().is_incomplete = true,
            }
        });
        if let Err(error) = spawned {
            log::error!(
                "cannot start the thread that removes the containers of a job; the next start removes them job={job} \
                 error={error}"
            );
        }
    }

    /// Removes all objects that earlier agents created for jobs that are not in `kept`, and then calls `then`, in a
    /// separate thread.
    pub fn sweep(
        &self,
        address: &Address,
        owner: &ContainerOwner,
        kept: Vec<String>,
        then: impl FnOnce() + Send + 'static,
    ) {
        // This removal counts as running only during an attempt. So an agent that exits does not wait while the engine
        // is unreachable; the next agent repeats the removal.
        let (mut first_attempt, removals) = (Some(self.begin()), self.clone());
        let (address, owner) = (address.clone(), owner.clone());
        let spawned = sync::spawn("sweep", STACK, move || {
            // An engine that is not running yet may start with containers of the previous boot.
            let labels = [(INSTANCE, owner.instance.as_str()), (STATE, &owner.state)];
            let is_left = |labels: &Labels| {
                labels.get(AGENT_RUN).is_none_or(|run| *run != owner.agent_run)
                    && labels.get(JOB).is_none_or(|job| !kept.contains(job))
            };
            // This removal counts as running until `then` has returned: a caller that waits for removals relies on the
            // effects of `then`.
            let mut counted = None;
            let end = removals.retry("left_by=earlier_agents", OnExit::End, || {
                let running = first_attempt.take().unwrap_or_else(|| removals.begin());
                remove_all(&DockerEngine::connect(&address)?, &labels, &is_left)?;
                counted = Some(running);
                Ok(())
            });
            if end == RemovalEnd::Settled {
                then();
            }
            drop(counted);
        });
        if let Err(error) = spawned {
            log::error!("cannot start the thread that removes containers of earlier agents error={error}");
        }
    }

    /// Retries until the work succeeds, at most for [`REMOVAL_TIMEOUT`]. Logs the same error only once.
    fn retry(&self, what: &str, on_exit: OnExit, mut work: impl FnMut() -> Result<(), DockerError>) -> RemovalEnd {
        let until = Instant::now() + REMOVAL_TIMEOUT;
        let (mut attempts, mut last_logged, mut is_exiting) = (0, String::new(), false);
        while let Err(error) = work() {
            if is_exiting && error.is_unreachable() {
                return RemovalEnd::Exiting;
            }
            let (text, delay) = (error.to_string(), RETRY.delay(attempts));
            // A configuration error persists until the configuration changes.
            if Instant::now() + delay > until || matches!(error, DockerError::Configuration(_)) {
                log::error!(
                    "cannot remove containers, networks or volumes of jobs; the next start retries {what} error={text}"
                );
                return RemovalEnd::Settled;
            }
            if text != last_logged {
                log::warn!("cannot remove containers, networks or volumes of jobs yet; retrying {what} error={text}");
                last_logged = text;
            }
            let exits = self.pause(delay, is_exiting);
            attempts = if exits == is_exiting { attempts + 1 } else { 0 };
            is_exiting = exits;
            if is_exiting && on_exit == OnExit::End {
                return RemovalEnd::Exiting;
            }
        }
        RemovalEnd::Settled
    }

    /// Waits for `delay`, or until the agent begins to exit. Returns whether the agent exits.
    fn pause(&self, delay: Duration, was_exiting: bool) -> bool {
        sync::wait_while(&self.0.changed, self.lock(), delay, |state| state.is_exiting == was_exiting).is_exiting
    }
}

type Labels = std::collections::BTreeMap<String, String>;

/// Removes containers first, because they use networks and volumes.
fn remove_all(
    engine: &DockerEngine,
    labels: &[(&str, &str)],
    is_selected: &dyn Fn(&Labels) -> bool,
) -> Result<(), DockerError> {
    let mut outcome = Ok(());
    let mut keep_first_error = |result: Result<(), DockerError>| {
        if result.is_err() && outcome.is_ok() {
            outcome = result;
        }
    };
    for container in engine.containers(labels)?.iter().filter(|container| is_selected(&container.labels)) {
        let volumes = match container.labels.contains_key(VOLUME_KEEP) {
            true => AnonymousVolumes::Keep,
            false => AnonymousVolumes::Remove,
        };
        keep_first_error(engine.remove_container(&container.id, volumes));
    }
    for network in engine.networks(labels)?.iter().filter(|network| is_selected(&network.labels)) {
        keep_first_error(engine.remove_network(&network.id));
    }
    let temporary: Vec<(&str, &str)> = labels.iter().copied().chain([(TEMPORARY, "true")]).collect();
    for volume in engine.volumes(&temporary)?.iter().filter(|volume| is_selected(&volume.labels)) {
        keep_first_error(engine.remove_volume(&volume.name));
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn owner() -> ContainerOwner {
        ContainerOwner { instance: "i-1".to_owned(), state: "/state".to_owned(), agent_run: "1".to_owned() }
    }

    #[test]
    fn an_agent_that_exits_does_not_wait_for_an_unreachable_engine() {
        let directory = tempfile::tempdir().expect("a directory");
        let address = Address::Unix(directory.path().join("no-engine.sock"));
        let (removals, has_ended) = (ContainerRemovals::default(), Arc::new(AtomicBool::new(false)));
        let [of_job, of_sweep] = [Arc::clone(&has_ended), Arc::clone(&has_ended)];
        removals.start(&address, &owner(), "job-1", move || of_job.store(true, Ordering::Release));
        removals.sweep(&address, &owner(), Vec::new(), move || of_sweep.store(true, Ordering::Release));
        removals.wait_before_exit(10 * REMOVAL_TIMEOUT);
        assert!(removals.are_done_within(Duration::ZERO), "no removal runs");
        assert!(removals.lock().is_incomplete, "the containers of the job are not removed");
        assert!(!has_ended.load(Ordering::Acquire), "the directories of the job stay until its containers are removed");
    }
}
