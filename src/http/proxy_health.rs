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

/// The proxies that this process has used.
static PROXIES: Mutex<BTreeMap<String, ProxyHealth>> = Mutex::new(BTreeMap::new());
/// Wakes the threads that wait for a log line to be due when a proxy works again.
static RECOVERED: Condvar = Condvar::new();

#[derive(Default)]
struct ProxyHealth {
    /// When a request last succeeded.
    succeeded: Option<Instant>,
    /// Since when requests have failed; `None` after a success.
    since: Option<Instant>,
    logged: Option<Instant>,
    /// Why the last request failed.
    error: String,
    /// Whether a thread waits until the log line is due.
    is_watched: bool,
}

impl ProxyHealth {
    fn record_success(&mut self, now: Instant) {
        (self.succeeded, self.since, self.logged) = (Some(now), None, None);
    }

    /// Records a failed request, which may have begun before the last success.
    fn record_failure(&mut self, began: Instant, error: &str) {
        let succeeded = self.succeeded.unwrap_or(began);
        self.since.get_or_insert(began.max(succeeded));
        error.clone_into(&mut self.error);
    }

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
    let mut proxies = sync::lock(&PROXIES);
    let origin = proxy.origin();
    let entry = proxies.entry(origin.clone()).or_default();
    let Some(error) = error else {
        entry.record_success(Instant::now());
        RECOVERED.notify_all();
        return;
    };
    entry.record_failure(began, error);
    entry.log_if_due(&origin, Instant::now());
    if !entry.is_watched && entry.logged.is_none() {
        // If the kernel refuses another thread, the next failed request logs the proxy.
        entry.is_watched = sync::spawn("proxy", WATCHER_STACK, move || log_when_due(&origin)).is_ok();
    }
}

/// Logs a proxy that still fails after [`LOGGED_AFTER`], even if the back-off delays the next request. Returns when
/// the proxy works again.
fn log_when_due(origin: &str) {
    let mut proxies = sync::lock(&PROXIES);
    while let Some(entry) = proxies.get_mut(origin) {
        let left = entry.since.map(|since| LOGGED_AFTER.saturating_sub(since.elapsed()));
        let Some(left) = left.filter(|left| !left.is_zero()) else {
            entry.log_if_due(origin, Instant::now());
            entry.is_watched = false;
            return;
        };
        proxies = sync::wait_timeout(&RECOVERED, proxies, left);
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
        let mut failing = ProxyHealth { since: Some(since), ..ProxyHealth::default() };
        assert!(!failing.is_due(since + Duration::from_secs(29)));
        let first = since + Duration::from_secs(30);
        assert!(failing.is_due(first));
        failing.logged = Some(first);
        assert!(!failing.is_due(first + Duration::from_secs(599)));
        assert!(failing.is_due(first + Duration::from_secs(600)));
    }

    #[test]
    fn a_slow_request_that_fails_after_another_one_succeeded_does_not_count_as_an_outage() {
        let began = Instant::now();
        let succeeded = began + Duration::from_secs(60);
        let mut proxy = ProxyHealth::default();
        proxy.record_success(succeeded);
        proxy.record_failure(began, "timeout");
        assert!(!proxy.is_due(succeeded + Duration::from_secs(29)));
        assert!(proxy.is_due(succeeded + Duration::from_secs(30)), "no request has succeeded since then");
    }
}
