//! Polls the metadata service for notices, in one thread.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::Deserialize;

use super::metadata::{Item, Metadata, MetadataError};
use crate::decode;
use crate::instance::{Interruption, Notice, NoticeHandler, TargetState};
use crate::monitor::machine;
use crate::sync;

/// Interval of the polls: with the time of a poll, no notice is older than five seconds.
const POLL_INTERVAL: Duration = Duration::from_secs(4);
/// Polls without a response before a warning is logged.
const MAX_FAILED_POLLS: u32 = 15;
const STACK: usize = 256 * 1024;

pub const TARGET_PATH: &str = "meta-data/autoscaling/target-lifecycle-state";
const ACTION_PATH: &str = "meta-data/spot/instance-action";
const REBALANCE_PATH: &str = "meta-data/events/recommendations/rebalance";

/// Starts the thread, which runs as long as the process.
pub fn start(metadata: &'static Metadata, handler: NoticeHandler) {
    let mut watch =
        NoticeWatcher { metadata, handle: handler, is_spot: None, seen: SeenNotices::default(), failed_polls: 0 };
    let spawned = sync::spawn("notices", STACK, move || {
        loop {
            watch.poll();
            // The service announces no notice, so it is polled until the process exits.
            thread::sleep(POLL_INTERVAL);
        }
    });
    if let Err(error) = spawned {
        log::error!("cannot start the thread that watches for notices error={error}");
    }
}

struct NoticeWatcher {
    metadata: &'static Metadata,
    handle: NoticeHandler,
    /// Whether this is a spot instance; `None` if not known yet.
    is_spot: Option<bool>,
    seen: SeenNotices,
    /// Polls in a row without a response.
    failed_polls: u32,
}

/// Notices that were passed on already.
#[derive(Default)]
struct SeenNotices {
    target: Option<TargetState>,
    action: Option<String>,
    rebalance: Option<String>,
}

impl NoticeWatcher {
    /// Polls all paths; the target lifecycle state first, because the first poll for jobs waits for it.
    fn poll(&mut self) {
        let mut failure = self.poll_path(TARGET_PATH, Self::handle_target);
        if self.is_spot != Some(false) {
            failure = failure.or(self.poll_path(ACTION_PATH, Self::handle_action));
            failure = failure.or(self.poll_path(REBALANCE_PATH, Self::handle_rebalance));
        }
        if self.is_spot.is_none() {
            // On-demand instances get no interruption notices.
            let life = self.metadata.get_once("meta-data/instance-life-cycle");
            self.is_spot = life.ok().map(|item| !matches!(item.text.as_str(), "on-demand" | "scheduled"));
        }
        self.report_failures(failure);
    }

    fn poll_path(&mut self, path: &str, handler: fn(&mut Self, Option<Item>)) -> Option<MetadataError> {
        match self.metadata.get_once(path) {
            Ok(item) => handler(self, Some(item)),
            Err(MetadataError::Absent) => handler(self, None),
            Err(error) => return Some(error),
        }
        None
    }

    fn handle_action(&mut self, item: Option<Item>) {
        let Some(item) = item.filter(|item| self.seen.action.as_ref() != Some(&item.text)) else { return };
        match interruption(&item, SystemTime::now()) {
            Some((action, left)) => {
                machine::spot_notice(action.as_str());
                (self.handle)(Notice::Interruption { deadline: Instant::now() + left, action });
            }
            None => {
                log::warn!("the metadata service sent an interruption notice that cannot be read path={ACTION_PATH}")
            }
        }
        self.seen.action = Some(item.text);
    }

    fn handle_rebalance(&mut self, item: Option<Item>) {
        let Some(item) = item.filter(|item| is_rebalance(&item.text)) else { return };
        if self.seen.rebalance.replace(item.text).is_none() {
            machine::spot_notice("rebalance");
            (self.handle)(Notice::Rebalance);
        }
    }

    fn handle_target(&mut self, item: Option<Item>) {
        let target = item.map_or(TargetState::NoGroup, |item| parse_target_state(&item.text));
        if self.seen.target.as_ref() != Some(&target) {
            log::info!("target lifecycle state of this instance target={target:?}");
            self.seen.target = Some(target.clone());
            (self.handle)(Notice::Target(target));
        }
    }

    fn report_failures(&mut self, failure: Option<MetadataError>) {
        match &failure {
            None if self.failed_polls >= MAX_FAILED_POLLS => log::info!("the metadata service answers again"),
            None => {}
            Some(error) if self.failed_polls + 1 == MAX_FAILED_POLLS => log::warn!(
                "the metadata service does not answer; spot and rebalance notices may be missed error={error}"
            ),
            Some(error) => log::debug!("cannot read notices error={error}"),
        }
        self.failed_polls = match failure {
            None => 0,
            Some(_) => self.failed_polls.saturating_add(1),
        };
    }
}

/// `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`
#[derive(Deserialize)]
struct Action {
    action: String,
    time: String,
}

/// The action, and the time until then: by the clock of the service if the answer has a date, because the local clock
/// may be wrong.
fn interruption(item: &Item, now: SystemTime) -> Option<(Interruption, Duration)> {
    let notice: Action = decode::json(item.text.as_bytes()).ok()?;
    let action = match notice.action.as_str() {
        "stop" => Interruption::Stop,
        "hibernate" => Interruption::Hibernate,
        _ => Interruption::Terminate,
    };
    Some((action, parse_time(&notice.time)?.duration_since(item.at.unwrap_or(now)).unwrap_or_default()))
}

/// Parses a time of the service.
fn parse_time(text: &str) -> Option<SystemTime> {
    let seconds = text.parse::<Timestamp>().ok()?.as_second();
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// `{"noticeTime": "2020-10-27T08:22:00Z"}`
fn is_rebalance(text: &str) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rebalance {
        notice_time: String,
    }
    let notice = decode::json::<Rebalance>(text.as_bytes());
    notice.is_ok_and(|notice| parse_time(&notice.notice_time).is_some())
}

/// Parses a target lifecycle state.
pub fn parse_target_state(text: &str) -> TargetState {
    match text {
        "InService" => TargetState::InService,
        "Terminated" | "Warmed:Terminated" => TargetState::Terminated,
        "Detached" => TargetState::Detached,
        "Standby" => TargetState::Standby,
        warm if warm.starts_with("Warmed:") => TargetState::Standby,
        other => TargetState::Other(other.chars().filter(|c| !c.is_control()).take(60).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str, at: Option<&str>) -> Item {
        Item { text: text.to_owned(), at: at.and_then(parse_time) }
    }

    #[test]
    fn the_remaining_time_uses_the_clock_of_the_service() {
        let text = r#"{"action":"terminate","time":"2030-01-01T00:02:00Z"}"#;
        let wrong_clock = SystemTime::UNIX_EPOCH;
        let left = interruption(&item(text, Some("2030-01-01T00:00:10Z")), wrong_clock);
        assert_eq!(left, Some((Interruption::Terminate, Duration::from_secs(110))));
        let past = interruption(&item(text, Some("2030-01-01T01:00:00Z")), wrong_clock);
        assert_eq!(past, Some((Interruption::Terminate, Duration::ZERO)));
        let now = parse_time("2030-01-01T00:00:00Z").expect("a time");
        assert_eq!(interruption(&item(text, None), now), Some((Interruption::Terminate, Duration::from_secs(120))));
        for nonsense in ["", "<html>", "{}", r#"{"action":"terminate","time":"soon"}"#] {
            assert_eq!(interruption(&item(nonsense, None), now), None, "{nonsense}");
        }
        assert!(is_rebalance(r#"{"noticeTime":"2020-10-27T08:22:00Z"}"#) && !is_rebalance("<html>"));
    }

    #[test]
    fn parses_target_lifecycle_states() {
        for (text, expected) in [
            ("InService", TargetState::InService),
            ("Warmed:Stopped", TargetState::Standby),
            ("Warmed:Hibernated", TargetState::Standby),
            ("Warmed:Terminated", TargetState::Terminated),
            ("Terminated", TargetState::Terminated),
            ("Mended", TargetState::Other("Mended".to_owned())),
        ] {
            assert_eq!(parse_target_state(text), expected);
        }
    }
}
