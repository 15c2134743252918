//! The thread that controls the size of one pool: reads the group, calls the planner, and executes its steps.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::rounds::Rounds;
use crate::manager::engine::Engine;
use crate::manager::pool::PoolSettings;
use crate::manager::status::StatusBoard;
use crate::manager::workload::Workload;
use crate::sync::{self, StopSignal};
use crate::sys;

const STACK: usize = 512 * 1024;
/// The minimum interval of decisions. Jobs that begin and end at about the same time are handled as one change.
const MIN_ROUND: Duration = Duration::from_millis(50);
/// The minimum interval of decisions as a multiple of the CPU time of the last one, so that the decisions of a large
/// fleet use a small part of a core.
const PAUSE_FACTOR: u32 = 50;
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// The scaler of one pool; its thread ends with [`Scaler::stop`].
pub struct Scaler {
    shared: Arc<Shared>,
    workload: Arc<dyn Workload>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: StopSignal,
    /// Settings that the next round applies.
    new_settings: Mutex<Option<PoolSettings>>,
}

impl Scaler {
    /// Starts the thread. Errors: the system can create no thread.
    pub fn start(
        pool: PoolSettings,
        workload: Arc<dyn Workload>,
        engine: Arc<dyn Engine>,
        board: Arc<StatusBoard>,
    ) -> Result<Self, String> {
        let shared = Arc::new(Shared::default());
        let name = format!("scale-{}", pool.name);
        let rounds = Rounds::new(pool, Arc::clone(&workload), engine, board);
        let (thread_shared, thread_workload) = (Arc::clone(&shared), Arc::clone(&workload));
        let thread = sync::spawn(name, STACK, move || thread_shared.run(rounds, &*thread_workload));
        let thread = thread.map_err(|error| format!("cannot start the thread that scales the pool: {error}"))?;
        Ok(Self { shared, workload, thread: Mutex::new(Some(thread)) })
    }

    /// Replaces the settings; they apply from the next round. The state of instances stays.
    pub fn reload(&self, pool: PoolSettings) {
        *sync::lock(&self.shared.new_settings) = Some(pool);
        self.workload.wake();
    }

    /// Tells the thread to end after the step in progress.
    pub fn request_stop(&self) {
        self.shared.stop.stop();
        self.workload.wake();
    }

    /// Ends the thread after the step in progress.
    pub fn stop(&self) {
        self.request_stop();
        let thread = sync::lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self, mut rounds: Rounds, workload: &dyn Workload) {
        while !self.stop.is_set() {
            if let Some(pool) = sync::lock(&self.new_settings).take() {
                rounds.replace_settings(pool);
            }
            let (began, cpu) = (Instant::now(), sys::thread_cpu_time());
            let wait = rounds.run_once(&self.stop);
            let spent = sys::thread_cpu_time().saturating_sub(cpu);
            workload.wait_for_change(wait);
            let min_interval = (spent * PAUSE_FACTOR).clamp(MIN_ROUND, MAX_PAUSE);
            self.stop.wait(min_interval.saturating_sub(began.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests;
