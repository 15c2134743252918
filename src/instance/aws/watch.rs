//! One thread that looks what the metadata service announces, and tells what is new.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::Deserialize;

use super::metadata::{Error, Item, Metadata};
use crate::decode;
use crate::instance::{Hear, Interruption, Notice, Target};
use crate::monitor::machine;

/// Between two looks: with the time that a look takes, no notice is older than five seconds.
const REST: Duration = Duration::from_secs(4);
/// Looks without an answer after which that is said.
const SILENT_LOOKS: u32 = 15;
const STACK: usize = 256 * 1024;

pub const TARGET: &str = "meta-data/autoscaling/target-lifecycle-state";
const ACTION: &str = "meta-data/spot/instance-action";
const REBALANCE: &str = "meta-data/events/recommendations/rebalance";

/// Starts the thread; it lives as long as the process.
pub fn start(service: &'static Metadata, hear: Hear) {
    let mut watch = Watch { service, hear, is_spot: None, seen: Seen::default(), silent: 0 };
    let spawned = thread::Builder::new().name("notices".to_owned()).stack_size(STACK).spawn(move || {
        loop {
            watch.look();
            thread::sleep(REST);
        }
    });
    if let Err(error) = spawned {
        log::error!("cannot start the thread that watches for notices error={error}");
    }
}

struct Watch {
    service: &'static Metadata,
    hear: Hear,
    /// Whether it can be taken; `None` while that is not known.
    is_spot: Option<bool>,
    seen: Seen,
    /// Looks in a row without an answer.
    silent: u32,
}

/// What was told already.
#[derive(Default)]
struct Seen {
    target: Option<Target>,
    action: Option<String>,
    rebalance: Option<String>,
}

impl Watch {
    /// Looks once at everything; first at what the agent waits for before it asks for jobs.
    fn look(&mut self) {
        let mut failure = self.look_at(TARGET, Self::hear_of_target);
        if self.is_spot != Some(false) {
            failure = failure.or(self.look_at(ACTION, Self::hear_of_action));
            failure = failure.or(self.look_at(REBALANCE, Self::hear_of_rebalance));
        }
        if self.is_spot.is_none() {
            // Some kinds of instance are never taken, and need not be asked.
            let life = self.service.look("meta-data/instance-life-cycle");
            self.is_spot = life.ok().map(|item| !matches!(item.text.as_str(), "on-demand" | "scheduled"));
        }
        self.tell_of_silence(failure);
    }

    fn look_at(&mut self, path: &str, hear: fn(&mut Self, Option<Item>)) -> Option<Error> {
        match self.service.look(path) {
            Ok(item) => hear(self, Some(item)),
            Err(Error::Absent) => hear(self, None),
            Err(error) => return Some(error),
        }
        None
    }

    fn hear_of_action(&mut self, item: Option<Item>) {
        let Some(item) = item.filter(|item| self.seen.action.as_ref() != Some(&item.text)) else { return };
        match interruption(&item, SystemTime::now()) {
            Some((action, left)) => {
                machine::spot_notice(action.as_str());
                (self.hear)(Notice::Interruption { deadline: Instant::now() + left, action });
            }
            None => log::warn!("the metadata service sent an interruption notice that cannot be read path={ACTION}"),
        }
        self.seen.action = Some(item.text);
    }

    fn hear_of_rebalance(&mut self, item: Option<Item>) {
        let Some(item) = item.filter(|item| is_rebalance(&item.text)) else { return };
        if self.seen.rebalance.replace(item.text).is_none() {
            machine::spot_notice("rebalance");
            (self.hear)(Notice::Rebalance);
        }
    }

    fn hear_of_target(&mut self, item: Option<Item>) {
        let target = item.map_or(Target::Alone, |item| target(&item.text));
        if self.seen.target.as_ref() != Some(&target) {
            log::info!("target lifecycle state of this instance target={target:?}");
            self.seen.target = Some(target.clone());
            (self.hear)(Notice::Target(target));
        }
    }

    fn tell_of_silence(&mut self, failure: Option<Error>) {
        match &failure {
            None if self.silent >= SILENT_LOOKS => log::info!("the metadata service answers again"),
            None => {}
            Some(error) if self.silent + 1 == SILENT_LOOKS => log::warn!(
                "the metadata service does not answer; spot and rebalance notices may be missed error={error}"
            ),
            Some(error) => log::debug!("cannot read notices error={error}"),
        }
        self.silent = match failure {
            None => 0,
            Some(_) => self.silent.saturating_add(1),
        };
    }
}

/// `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`
#[derive(Deserialize)]
struct Action {
    action: String,
    time: String,
}

/// What is done, and how long until then: by the service's clock where it tells, since the one here may be wrong.
fn interruption(item: &Item, now: SystemTime) -> Option<(Interruption, Duration)> {
    let notice: Action = decode::json(item.text.as_bytes()).ok()?;
    let action = match notice.action.as_str() {
        "stop" => Interruption::Stop,
        "hibernate" => Interruption::Hibernate,
        _ => Interruption::Terminate,
    };
    Some((action, moment(&notice.time)?.duration_since(item.at.unwrap_or(now)).unwrap_or_default()))
}

/// A time as the service writes it.
fn moment(text: &str) -> Option<SystemTime> {
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
    notice.is_ok_and(|notice| moment(&notice.notice_time).is_some())
}

/// The states that the service knows.
pub fn target(text: &str) -> Target {
    match text {
        "InService" => Target::InService,
        "Terminated" | "Warmed:Terminated" => Target::Terminated,
        "Detached" => Target::Detached,
        "Standby" => Target::Resting,
        warm if warm.starts_with("Warmed:") => Target::Resting,
        other => Target::Other(other.chars().filter(|c| !c.is_control()).take(60).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str, at: Option<&str>) -> Item {
        Item { text: text.to_owned(), at: at.and_then(moment) }
    }

    #[test]
    fn the_time_that_is_left_is_the_services() {
        let text = r#"{"action":"terminate","time":"2030-01-01T00:02:00Z"}"#;
        let wrong_clock = SystemTime::UNIX_EPOCH;
        let left = interruption(&item(text, Some("2030-01-01T00:00:10Z")), wrong_clock);
        assert_eq!(left, Some((Interruption::Terminate, Duration::from_secs(110))));
        let past = interruption(&item(text, Some("2030-01-01T01:00:00Z")), wrong_clock);
        assert_eq!(past, Some((Interruption::Terminate, Duration::ZERO)));
        let now = moment("2030-01-01T00:00:00Z").unwrap();
        assert_eq!(interruption(&item(text, None), now), Some((Interruption::Terminate, Duration::from_secs(120))));
        for nonsense in ["", "<html>", "{}", r#"{"action":"terminate","time":"soon"}"#] {
            assert_eq!(interruption(&item(nonsense, None), now), None, "{nonsense}");
        }
        assert!(is_rebalance(r#"{"noticeTime":"2020-10-27T08:22:00Z"}"#) && !is_rebalance("<html>"));
    }

    #[test]
    fn knows_the_states_of_a_group() {
        for (text, expected) in [
            ("InService", Target::InService),
            ("Warmed:Stopped", Target::Resting),
            ("Warmed:Hibernated", Target::Resting),
            ("Warmed:Terminated", Target::Terminated),
            ("Terminated", Target::Terminated),
            ("Mended", Target::Other("Mended".to_owned())),
        ] {
            assert_eq!(target(text), expected);
        }
    }
}
