//! Drains the manager: it takes no more jobs, hands the held ones to agents, fails the remaining ones at GitLab, and
//! ends.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Event, Manager, POLL_TIMEOUT, Pool, STACK};
use crate::manager::broker::Broker;
use crate::manager::scaling::deletion::delete_instances;
use crate::manager::scaling::scaler::Scaler;
use crate::sync;

/// The time limit for failing the remaining jobs.
const FAIL_TIMEOUT: Duration = Duration::from_secs(20);
/// The time for handing out held jobs after SIGQUIT, which sets no limit.
const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

impl Manager {
    /// Starts the drain in a thread; its end is [`Event::Drained`]. `limit` is the time for handing out held jobs.
    pub(super) fn start_drain(&self, limit: Option<Duration>) {
        let pools = Arc::clone(&self.pools);
        let retired: Vec<Arc<Scaler>> = self.retired.iter().map(|pool| Arc::clone(&pool.scaler)).collect();
        let mut brokers: Vec<Arc<Broker>> = self.pools().iter().map(|pool| Arc::clone(&pool.broker)).collect();
        brokers.extend(self.retired.iter().map(|pool| Arc::clone(&pool.broker)));
        brokers.iter().for_each(|broker| broker.close());
        match limit {
            Some(limit) => log::info!("draining: the manager takes no more jobs timeout={}s", limit.as_secs()),
            None => log::info!("draining: the manager takes no more jobs timeout=none"),
        }
        let events = self.events.clone();
        let drain = move || {
            hand_out_held_jobs(&brokers, limit.unwrap_or(NO_LIMIT));
            stop_scalers(&pools, &retired);
            brokers.iter().for_each(|broker| broker.stop());
            let _ = events.send(Event::Drained);
        };
        if let Err(error) = sync::spawn("drain", STACK, drain) {
            log::error!("cannot start the thread that drains error={error}");
        }
    }
}

/// Waits until agents have accepted the held jobs. After `limit`, fails the remaining ones.
fn hand_out_held_jobs(brokers: &[Arc<Broker>], limit: Duration) {
    let until = Instant::now() + POLL_TIMEOUT;
    for broker in brokers {
        let _ = broker.wait_for_polls(until);
    }
    let until = Instant::now() + limit;
    for broker in brokers {
        if !broker.wait_for_held_jobs(until) {
            broker.fail_held("the manager was stopped before an instance took the job");
        }
    }
    let until = Instant::now() + FAIL_TIMEOUT;
    for broker in brokers {
        let _ = broker.wait_for_held_jobs(until);
    }
}

/// Stops the scalers, and deletes the instances of pools with `delete_instances_on_shutdown`. The status page reads the
/// pools meanwhile, so this does not hold their lock.
fn stop_scalers(pools: &Mutex<Vec<Pool>>, retired: &[Arc<Scaler>]) {
    let pools = sync::lock(pools).clone();
    // All scalers end their rounds at the same time.
    let all = || pools.iter().map(|pool| &pool.scaler).chain(retired);
    all().for_each(|scaler| scaler.request_stop());
    all().for_each(|scaler| scaler.stop());
    for pool in pools.iter().filter(|pool| pool.settings.delete_instances_on_shutdown) {
        delete_instances(&pool.settings, &*pool.broker.workload(), &*pool.engine);
    }
}
