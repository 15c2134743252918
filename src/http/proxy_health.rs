//! Warns the operator of a proxy through which no request has succeeded for a while.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use ureq::http::HeaderMap;

use super::proxy::Route;

use crate::sync;

/// The agent logs a proxy that fails for this long.
const LOGGED_AFTER: Duration = Duration::from_secs(30);
/// The stack size of the thread that logs the proxy, in bytes.
const WATCHER_STACK: usize = 256 << 10;
/// How often the log line is repeated.
const REPEAT_INTERVAL: Duration = Duration::from_secs(600);

/// The failing proxies of this process.
static FAILING: Mutex<BTreeMap<String, Failing>> = Mutex::new(BTreeMap::new());
/// Wakes the threads that wait for a log line to be due when a proxy works again.
static RECOVERED: Condvar = Condvar::new();

#[derive(Default)]
struct Failing {
    /// When the first request failed since the last success; `None` after a success.
    since: Option<Instant>,
    logged: Option<Instant>,
    /// Why the last request failed.
    error: String,
    /// Whether a thread waits until the log line is due.
    is_watched: bool,
}

impl Failing {
    /// Whether a log line is due.
    fn is_due(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= LOGGED_AFTER)
            && self.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= REPEAT_INTERVAL)
    }

    fn log_if_due(&mut self, origin: &str, now: Instant) {
        if !self.is_due(now) {
            return;
        }
        self.logged = Some(now);
        let seconds = self.since.map_or(0, |since| now.saturating_duration_since(since).as_secs());
        let error = &self.error;
        log::error!(
            "no request succeeds through the proxy; check HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the agent \
             proxy={origin} failing_for={seconds}s error={error}"
        );
    }
}

/// Records the result of a request that began at `began`; `error` says why there was no response.
pub fn record(route: &Route, began: Instant, error: Option<&str>) {
    let Some(proxy) = route.proxy() else { return };
    let mut failing = sync::lock(&FAILING);
    let origin = proxy.origin();
    let Some(error) = error else {
        if let Some(entry) = failing.get_mut(&origin) {
            (entry.since, entry.logged) = (None, None);
            RECOVERED.notify_all();
        }
        return;
    };
    let entry = failing.entry(origin.clone()).or_default();
    entry.since.get_or_insert(began);
    error.clone_into(&mut entry.error);
    entry.log_if_due(&origin, Instant::now());
    if !entry.is_watched && entry.logged.is_none() {
        // If the kernel refuses another thread, the next failed request logs the proxy.
        entry.is_watched = sync::spawn("proxy", WATCHER_STACK, move || log_when_due(&origin)).is_ok();
    }
}

/// Logs a proxy that still fails after [`LOGGED_AFTER`], even if the back-off delays the next request. Returns when
/// the proxy works again.
fn log_when_due(origin: &str) {
    let mut failing = sync::lock(&FAILING);
    while let Some(entry) = failing.get_mut(origin) {
        let left = entry.since.map(|since| LOGGED_AFTER.saturating_sub(since.elapsed()));
        let Some(left) = left.filter(|left| !left.is_zero()) else {
            entry.log_if_due(origin, Instant::now());
            entry.is_watched = false;
            return;
        };
        failing = sync::wait_timeout(&RECOVERED, failing, left);
    }
}

/// Why a response does not count as a success of the proxy: a forwarding proxy answers with these statuses itself if it
/// cannot reach the server.
pub fn gateway_error(route: &Route, status: u16) -> Option<String> {
    matches!((route, status), (Route::Forward(_), 502..=504)).then(|| format!("the response has status {status}"))
}

/// The proxy's error, if the response to a forwarded request comes from the proxy and not from the server. A proxy
/// marks it by status 407 or one of two headers (`Proxy-Status` is RFC 9209).
pub fn refusal(route: &Route, status: u16, headers: &HeaderMap) -> Option<String> {
    let detail = ["X-Squid-Error", "Proxy-Status"].iter().find_map(|name| headers.get(*name)?.to_str().ok());
    match route {
        Route::Forward(_) if status == 407 => Some("the proxy requires a name and password (407)".to_owned()),
        Route::Forward(_) if status >= 400 => {
            detail.map(|detail| format!("the proxy returns status {status}: {detail}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_after_half_a_minute_and_again_after_ten() {
        let since = Instant::now();
        let mut failing = Failing { since: Some(since), ..Failing::default() };
        assert!(!failing.is_due(since + Duration::from_secs(29)));
        let first = since + Duration::from_secs(30);
        assert!(failing.is_due(first));
        failing.logged = Some(first);
        assert!(!failing.is_due(first + Duration::from_secs(599)));
        assert!(failing.is_due(first + Duration::from_secs(600)));
    }
}
