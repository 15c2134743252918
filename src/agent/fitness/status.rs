//! The runners that must not poll, for the main loop and the metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::Unfit;
use crate::monitor::metrics::RunnerLabels;
use crate::sync;
use crate::sys::BootTime;

/// The runners that must not poll, and why. The pollers write it; the main loop and the metrics read it.
#[derive(Default)]
pub struct FitnessStatus {
    state: Mutex<UnfitRunners>,
}

#[derive(Default)]
struct UnfitRunners {
    /// The runners that are configured.
    configured: Vec<RunnerLabels>,
    /// The unfit runners: the reason, and since when.
    unfit: BTreeMap<RunnerLabels, (Unfit, BootTime)>,
    /// Set after the timeout of the readiness commands, until they succeed; it applies to the whole machine.
    not_ready: Option<(Unfit, BootTime)>,
}

impl FitnessStatus {
    /// Records the result of a check. If the result has changed, logs the change and returns true. The check of a runner
    /// that a reload has removed meanwhile changes nothing.
    pub fn set(&self, runner_labels: &RunnerLabels, fitness: &Result<(), Unfit>) -> bool {
        let mut state = self.lock();
        if !state.configured.contains(runner_labels) {
            return false;
        }
        let before = state.unfit.remove(runner_labels);
        match fitness {
            Ok(()) if before.is_some() => {
                log::info!("the machine is fit again; polling resumed runner={}", runner_labels.name);
                true
            }
            Ok(()) => false,
            Err(unfit) => {
                let is_new = before.as_ref().is_none_or(|(before, _)| before.reason() != unfit.reason());
                if is_new {
                    log::error!(
                        "unfit for jobs; polling paused runner={} reason={} cause={unfit}",
                        runner_labels.name,
                        unfit.reason()
                    );
                } else {
                    log::debug!("still unfit runner={} cause={unfit}", runner_labels.name);
                }
                let since = before.map_or_else(BootTime::now, |(_, since)| since);
                state.unfit.insert(runner_labels.clone(), (unfit.clone(), since));
                is_new
            }
        }
    }

    /// Records that the readiness commands have timed out, or that they have succeeded. Further failures do not change
    /// the time since which the machine has been unfit.
    pub fn set_ready(&self, ready: Result<(), String>) {
        let mut state = self.lock();
        let since = state.not_ready.take().map_or_else(BootTime::now, |(_, since)| since);
        state.not_ready = ready.err().map(|why| (Unfit::NotReady(why), since));
    }

    /// Whether the runner waits for the user of its jobs.
    pub fn awaits_user(&self, runner_labels: &RunnerLabels) -> bool {
        self.lock().unfit.get(runner_labels).is_some_and(|(unfit, _)| matches!(unfit, Unfit::User(_)))
    }

    /// Sets the configured runners. Removes the others.
    pub fn set_configured(&self, runners: Vec<RunnerLabels>) {
        let mut state = self.lock();
        state.unfit.retain(|runner_labels, _| runners.contains(runner_labels));
        state.configured = runners;
    }

    /// All reasons, each with the name of the runner; `None` for the whole machine.
    pub fn reasons(&self) -> Vec<(Option<String>, Unfit)> {
        let state = self.lock();
        let machine = state.not_ready.iter().map(|(unfit, _)| (None, unfit.clone()));
        machine
            .chain(
                state.unfit.iter().map(|(runner_labels, (unfit, _))| (Some(runner_labels.name.clone()), unfit.clone())),
            )
            .collect()
    }

    /// How long the machine has been unfit, by the oldest reason.
    pub fn unfit_for(&self) -> Option<Duration> {
        let state = self.lock();
        let since = state.unfit.values().chain(&state.not_ready).map(|(_, since)| *since).min()?;
        Some(since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, UnfitRunners> {
        sync::lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_keeps_the_first_time_and_reports_changes() {
        let runner_labels = RunnerLabels { token: "t".to_owned(), name: "r".to_owned() };
        let status = FitnessStatus::default();
        status.set_configured(vec![runner_labels.clone()]);
        assert!(status.unfit_for().is_none());
        assert!(status.set(&runner_labels, &Err(Unfit::User("gone".to_owned()))));
        assert!(!status.set(&runner_labels, &Err(Unfit::User("gone".to_owned()))));
        assert!(status.set(&runner_labels, &Err(Unfit::Shell("gone".to_owned()))));
        assert!(status.unfit_for().is_some());
        assert_eq!(status.reasons()[0].0.as_deref(), Some("r"));
        assert!(status.set(&runner_labels, &Ok(())) && !status.set(&runner_labels, &Ok(())));
        assert!(status.unfit_for().is_none() && status.reasons().is_empty());
        status.set_ready(Err("a command fails".to_owned()));
        assert_eq!(status.reasons()[0].1.reason(), "not_ready");
        let unfit_for = status.unfit_for();
        status.set_ready(Err("another command fails".to_owned()));
        assert!(status.unfit_for() >= unfit_for, "the machine has been unfit since the first failure");
    }

    #[test]
    fn a_check_that_ends_after_its_runner_was_removed_changes_nothing() {
        let [removed, kept] =
            ["removed", "kept"].map(|name| RunnerLabels { token: "t".to_owned(), name: name.to_owned() });
        let status = FitnessStatus::default();
        status.set_configured(vec![removed.clone(), kept.clone()]);
        let unfit = Err(Unfit::Engine("it does not answer".to_owned()));
        status.set(&removed, &unfit);
        status.set_configured(vec![kept]);
        assert!(!status.set(&removed, &unfit));
        assert!(status.unfit_for().is_none() && status.reasons().is_empty());
    }
}
