//! Ends a job that repeatedly kills its agent.

use std::time::Duration;

use crate::failure::JobError;
use crate::journal::{Predecessor, Progress};
use crate::sys::BootTime;

/// A job fails if more than this number of agents die in one of its stages within [`PERIOD`].
const MAX_DEATHS: usize = 5;
/// The time within which the deaths count. Agents that restart for other reasons do so less often.
const PERIOD: Duration = Duration::from_secs(60);

/// Counts the end of the earlier agent, and aborts the job if too many died. A hand-over does not count as a death.
pub fn count(progress: &mut Progress, predecessor: Predecessor) {
    let now = BootTime::now();
    let deaths = &mut progress.resumed_at;
    deaths.retain(|at| now.since(*at) < PERIOD);
    if predecessor == Predecessor::Ended {
        deaths.push(now);
    }
    let count = deaths.len();
    if count > MAX_DEATHS {
        let why = format!("the agent was killed or crashed {count} times in a row while it ran this job");
        progress.abort();
        progress.failure.get_or_insert(JobError::system(why));
    }
}
