//! Removes the objects of jobs: in the background after each job, and when an agent starts, those that an earlier agent
//! left.
//!
//! The agent finds objects by their labels. It never removes an object without mayfly's labels.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
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

/// Counts the running removals.
#[derive(Clone, Default)]
pub struct ContainerRemovals(Arc<(Mutex<usize>, Condvar)>);

/// A running removal. It is counted until this value is dropped.
struct RemovalGuard(ContainerRemovals);

impl Drop for RemovalGuard {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.0;
        *sync::lock(count) -= 1;
        changed.notify_all();
    }
}

impl ContainerRemovals {
    fn begin(&self) -> RemovalGuard {
        *sync::lock(&self.0.0) += 1;
        RemovalGuard(self.clone())
    }

    /// Waits until no removal runs, at most for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        if !self.are_done_within(timeout) {
            log::warn!("not all containers of jobs are removed; exiting, the next start removes them");
        }
    }

    /// Waits for all removals. Returns false if some still run after `timeout`.
    pub fn are_done_within(&self, timeout: Duration) -> bool {
        let (count, changed) = &*self.0;
        let guard = sync::lock(count);
        let outcome = changed.wait_timeout_while(guard, timeout, |count| *count > 0);
        outcome.is_ok_and(|(count, _)| *count == 0)
    }

    /// Removes all objects of a job and then calls `then`, in a separate thread.
    pub fn start(&self, address: &Address, owner: &ContainerOwner, job: &str, then: impl FnOnce() + Send + 'static) {
        let guard = self.begin();
        let (address, owner, name) = (address.clone(), owner.clone(), job.to_owned());
        let spawned = sync::spawn("removal", STACK, move || {
            let _running = guard;
            let labels = [(INSTANCE, owner.instance.as_str()), (STATE, &owner.state), (JOB, &name)];
            retry_removal(&format!("job={name}"), || remove_all(&DockerEngine::connect(&address)?, &labels, &|_| true));
            then();
        });
        if let Err(error) = spawned {
            log::error!(
                "cannot start the thread that removes the containers of a job; the next start removes them job={job} error={error}"
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
            retry_removal("left_by=earlier_agents", || {
                let running = first_attempt.take().unwrap_or_else(|| removals.begin());
                remove_all(&DockerEngine::connect(&address)?, &labels, &is_left)?;
                counted = Some(running);
                Ok(())
            });
            then();
            drop(counted);
        });
        if let Err(error) = spawned {
            log::error!("cannot start the thread that removes containers of earlier agents error={error}");
        }
    }
}

type Labels = std::collections::BTreeMap<String, String>;

/// Retries until the work succeeds, at most for [`REMOVAL_TIMEOUT`]. Logs the same error only once.
fn retry_removal(what: &str, mut work: impl FnMut() -> Result<(), DockerError>) {
    let until = Instant::now() + REMOVAL_TIMEOUT;
    let (mut attempts, mut last_logged) = (0, String::new());
    while let Err(error) = work() {
        let (text, delay) = (error.to_string(), RETRY.delay(attempts));
        // A configuration error persists until the configuration changes.
        if Instant::now() + delay > until || matches!(error, DockerError::Configuration(_)) {
            log::error!(
                "cannot remove containers, networks or volumes of jobs; the next start retries {what} error={text}"
            );
            return;
        }
        if text != last_logged {
            log::warn!("cannot remove containers, networks or volumes of jobs yet; retrying {what} error={text}");
            last_logged = text;
        }
        // The agent exits while this thread sleeps: it waits for removals only for a limited time.
        thread::sleep(delay);
        attempts += 1;
    }
}

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
