//! How long transfers are retried. [`crate::http::RetryBudget`] has the policy: the retryable failures and the delays.

use std::thread;
use std::time::Duration;

/// The limit for artifacts: GitLab may be restarting, and the files exist only here.
pub const ARTIFACT_RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// The limit for the object store of caches. It is short, because a cache only saves time.
pub const CACHE_RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits before a retry. Transfers run in a child process of the shim, which keeps the default action of SIGTERM: if
/// the job is cancelled, the shim's SIGTERM ends the process during this wait.
pub fn wait_before_retry(delay: Duration) {
    thread::sleep(delay);
}
