//! Jobs and instances over the last hours, for the chart.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

/// The interval of points.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// The number of points: 12 hours.
const MAX_POINTS: usize = 12 * 120;

/// The numbers at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryPoint {
    /// Jobs that wait for an instance.
    pub waiting: u32,
    /// Jobs that run.
    pub running: u32,
    /// Instances without a job, including starting ones.
    pub idle: u32,
    /// Instances with a job.
    pub busy: u32,
}

/// Points at equal intervals. Each has the maximum of its interval, so that short peaks are visible.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<HistoryPoint>,
    /// The interval of the last point.
    last: Option<i64>,
}

impl History {
    /// Records the current numbers.
    pub fn record(&mut self, now: Timestamp, point: HistoryPoint) {
        let interval = now.as_second().div_euclid(INTERVAL.as_secs() as i64);
        match self.last {
            // Also if the clock was set back, the numbers are merged into the last point.
            Some(last) if interval <= last => {
                if let Some(peak) = self.points.back_mut() {
                    *peak = HistoryPoint {
                        waiting: peak.waiting.max(point.waiting),
                        running: peak.running.max(point.running),
                        idle: peak.idle.max(point.idle),
                        busy: peak.busy.max(point.busy),
                    };
                }
                return;
            }
            Some(last) => {
                // Without a record, the numbers did not change in between.
                let before = self.points.back().copied().unwrap_or_default();
                let missed = usize::try_from(interval - last - 1).unwrap_or(MAX_POINTS).min(MAX_POINTS);
                self.points.extend(std::iter::repeat_n(before, missed));
            }
            None => {}
        }
        self.points.push_back(point);
        self.last = Some(interval);
        while self.points.len() > MAX_POINTS {
            self.points.pop_front();
        }
    }

    /// All points, the oldest first, and the start of the last one (seconds since the epoch).
    pub fn points(&self) -> (Vec<HistoryPoint>, i64) {
        let end = self.last.unwrap_or_default() * INTERVAL.as_secs() as i64;
        (self.points.iter().copied().collect(), end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_020 + seconds).expect("a time")
    }

    #[test]
    fn keeps_peaks_and_fills_gaps() {
        let mut history = History::default();
        let running = |running| HistoryPoint { running, ..HistoryPoint::default() };
        for (time, number) in [(0, 1), (10, 5), (20, 2), (100, 3)] {
            history.record(at(time), running(number));
        }
        let (points, end) = history.points();
        let numbers: Vec<u32> = points.iter().map(|point| point.running).collect();
        assert_eq!(numbers, [5, 5, 5, 3]);
        assert_eq!(end, 1_000_110);
        history.record(at(-500), running(9));
        assert_eq!(history.points().0.last(), Some(&running(9)));
    }

    #[test]
    fn is_bounded() {
        let mut history = History::default();
        history.record(at(0), HistoryPoint::default());
        history.record(at(10_000_000), HistoryPoint::default());
        assert_eq!(history.points().0.len(), MAX_POINTS);
    }
}
