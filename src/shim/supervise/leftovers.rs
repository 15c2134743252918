//! Finds and kills the processes that a step left.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Supervisor;
use crate::shim::descendants;
use crate::shim::spec::StepProgram;
use crate::sys;
use crate::trace::colours::{RESET, YELLOW};
use crate::trace::{Filter, Masks, Output, TextKind};

/// How long processes that outlive the main process have to end by themselves.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// How long killed processes may take to disappear. Only a process that hangs in the kernel takes longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval of the attempts to kill them.
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// The number of processes that the log names.
const MAX_NAMES: usize = 3;

impl Supervisor<'_> {
    pub(super) fn all_processes(&self) -> Vec<i32> {
        let mut all = descendants::below(Pid::this().as_raw());
        for group in &self.spec.cgroups {
            all.extend(descendants::in_group(group));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(super) fn kill_all_processes(&self) {
        for group in &self.spec.cgroups {
            descendants::kill_group(group);
        }
        descendants::signal_all(&descendants::below(Pid::this().as_raw()), Signal::SIGKILL);
    }

    pub(super) fn kill_relay(&mut self) {
        if let Some(relay) = self.started.relay.take() {
            let _ = kill(relay, Signal::SIGKILL);
            let _ = waitpid(relay, None);
        }
    }

    /// Kills the processes that the step left. Returns their number.
    pub(super) fn kill_leftovers(&mut self) -> u32 {
        if !self.reap() {
            return 0;
        }
        let left = self.all_processes();
        if left.is_empty() {
            return 0;
        }
        let names: Vec<String> = left.iter().take(MAX_NAMES).map(|pid| descendants::name_of(*pid)).collect();
        descendants::signal_all(&left, Signal::SIGTERM);
        let grace = if self.stopped.is_some() { Duration::ZERO } else { LEFTOVER_GRACE };
        if !self.wait_for_children(grace) {
            // New processes may be forked meanwhile, so repeat until none is left or the timeout has passed.
            let until = Instant::now() + KILL_TIMEOUT;
            while Instant::now() < until {
                self.kill_all_processes();
                if self.wait_for_children(KILL_INTERVAL) {
                    break;
                }
            }
        }
        // Only the leftovers of a script are logged. In file tasks the agent runs git, whose helpers can outlive git
        // when a server fails.
        if matches!(self.spec.task, StepProgram::Process { .. }) {
            self.log_leftovers(left.len(), &names);
        }
        u32::try_from(left.len()).unwrap_or(u32::MAX)
    }

    fn log_leftovers(&self, count: usize, names: &[String]) {
        let more = if count > names.len() { ", …" } else { "" };
        let text = format!(
            "{YELLOW}WARNING: ended {count} process(es) that the script had left running: {}{more}{RESET}\n",
            names.join(", ")
        );
        let masks = Masks::new(&self.spec.filters.masks, &self.spec.filters.token_prefixes);
        let mut filter = Filter::new(&masks, &self.spec.filters, 0, Output::Out);
        let mut lines = Vec::new();
        filter.push(text.as_bytes(), &mut lines);
        filter.finish(&mut lines);
        let _ = self.spool.append(&lines, TextKind::Result);
    }

    /// Waits until the shim has no child, at most for `timeout`. An orphan becomes a child of the shim when its parent
    /// ends.
    fn wait_for_children(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        loop {
            loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Err(Errno::ECHILD) => return true,
                    Ok(WaitStatus::StillAlive) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let _ = sys::wait([Some(self.signals.as_fd())], Some(left));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }
}
