//! Warns the operator of a proxy through which no request has succeeded for a while.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::HeaderMap;

use super::proxy::Route;

use crate::sync;

/// A proxy that fails for this long is logged.
const FAILING_FOR: Duration = Duration::from_secs(30);
/// Stack size of the thread that logs it.
const STACK: usize = 256 << 10;
/// How often the log line is repeated.
const REPEATED_EVERY: Duration = Duration::from_secs(600);

/// The failing proxies of this process.
static FAILING: Mutex<BTreeMap<String, Failing>> = Mutex::new(BTreeMap::new());

#[derive(Clone)]
struct Failing {
    since: Instant,
    logged: Option<Instant>,
    /// Why the last request failed.
    error: String,
}

impl Failing {
    /// Whether a log line is due.
    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= FAILING_FOR
            && self.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= REPEATED_EVERY)
    }

    fn log_if_due(&mut self, origin: &str, now: Instant) {
        if !self.is_due(now) {
            return;
        }
        self.logged = Some(now);
        let (seconds, error) = (now.saturating_duration_since(self.since).as_secs(), &self.error);
        log::error!(
            "no request succeeds through the proxy; check HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the agent \
             proxy={origin} failing_for={seconds}s error={error}"
        );
    }
}

/// Records the result of a request that began at `began`; `error` says why there was no response.
pub fn note(route: &Route, began: Instant, error: Option<&str>) {
    let Some(proxy) = route.proxy() else { return };
    let mut failing = sync::lock(&FAILING);
    let Some(error) = error else {
        failing.remove(&proxy.origin());
        return;
    };
    let origin = proxy.origin();
    if !failing.contains_key(&origin) {
        log_later(origin.clone(), began);
    }
    let entry = failing.entry(origin).or_insert(Failing { since: began, logged: None, error: String::new() });
    error.clone_into(&mut entry.error);
    entry.log_if_due(&proxy.origin(), Instant::now());
}

/// Logs a proxy that still fails after [`FAILING_FOR`], even if the back-off delays the next request.
fn log_later(origin: String, began: Instant) {
    let wait = move || {
        thread::sleep(FAILING_FOR.saturating_sub(began.elapsed()));
        if let Some(entry) = sync::lock(&FAILING).get_mut(&origin).filter(|entry| entry.since == began) {
            entry.log_if_due(&origin, Instant::now());
        }
    };
    // Without a thread, the next request logs it.
    let _ = sync::spawn("proxy", STACK, wait);
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
        let mut failing = Failing { since, logged: None, error: String::new() };
        assert!(!failing.is_due(since + Duration::from_secs(29)));
        let first = since + Duration::from_secs(30);
        assert!(failing.is_due(first));
        failing.logged = Some(first);
        assert!(!failing.is_due(first + Duration::from_secs(599)));
        assert!(failing.is_due(first + Duration::from_secs(600)));
    }
}
