//! The jobs of a simulated day: from a CSV file, or a number of jobs of the same duration.

use std::time::Duration;

use crate::config::duration;

/// A job of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimulatedJob {
    /// The time at which the job is created, since the start of the day.
    pub start: Duration,
    /// The duration of the job.
    pub length: Duration,
}

/// `count` jobs of the same length: the first at `first`, the others distributed evenly over `over`.
pub fn even(jobs: u32, length: Duration, first: Duration, over: Duration) -> Vec<SimulatedJob> {
    let distance = over.checked_div(jobs.max(1)).unwrap_or_default();
    (0..jobs).map(|number| SimulatedJob { start: first + distance * number, length }).collect()
}

/// Reads lines of `start,duration`: the time of day or a number of seconds, and a duration (`90s`, `5m`) or a number of
/// seconds. A header and lines with `#` are skipped. Errors: the invalid line and the expected form.
pub fn read(text: &str) -> Result<Vec<SimulatedJob>, String> {
    let mut jobs = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split([',', ';']).map(|field| field.trim().trim_matches('"'));
        let (start, length) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        match time_of_day(start).zip(length_of(length)) {
            Some((start, length)) => jobs.push(SimulatedJob { start, length }),
            None if jobs.is_empty() && !start.starts_with(|c: char| c.is_ascii_digit()) => {}
            None => {
                return Err(format!(
                    "line {}: `{line}` is not `start,duration`; write for example `09:30,5m` or `34200,300`",
                    at + 1
                ));
            }
        }
    }
    jobs.sort_by_key(|job| job.start);
    match jobs.is_empty() {
        true => Err("no job; write lines of `start,duration`, for example `09:30,5m`".to_owned()),
        false => Ok(jobs),
    }
}

/// `09:30`, `09:30:15`, or seconds since midnight.
pub fn time_of_day(text: &str) -> Option<Duration> {
    let Some((hours, rest)) = text.split_once(':') else { return seconds(text) };
    let (minutes, seconds) = rest.split_once(':').unwrap_or((rest, "0"));
    let number = |text: &str, most: u64| text.parse::<u64>().ok().filter(|number| *number <= most);
    // Days beyond the first are hours beyond 24.
    let total = number(hours, 24 * 366)? * 3600 + number(minutes, 59)? * 60 + number(seconds, 59)?;
    Some(Duration::from_secs(total))
}

/// `5m`, or seconds.
pub fn length_of(text: &str) -> Option<Duration> {
    duration::parse(text).or_else(|| seconds(text))
}

fn seconds(text: &str) -> Option<Duration> {
    let number: f64 = text.parse().ok().filter(|number: &f64| (0.0..1e9).contains(number))?;
    Duration::try_from_secs_f64(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(start: u64, length: u64) -> SimulatedJob {
        SimulatedJob { start: Duration::from_secs(start), length: Duration::from_secs(length) }
    }

    #[test]
    fn reads_times_and_durations() {
        let text = "start,duration\n# a comment\n09:30, 5m\n34200,300\n\"00:00:01\";90s\n26:00,1h\n";
        let jobs = read(text).expect("the load must be valid");
        assert_eq!(jobs, [job(1, 90), job(34200, 300), job(34200, 300), job(93600, 3600)]);
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        assert!(read("09:30,5m\n10:70,5m\n").expect_err("must be refused").starts_with("line 2: `10:70,5m`"));
        assert!(read("09:30\n").expect_err("must be refused").starts_with("line 1"));
        assert!(read("start,duration\n").expect_err("must be refused").starts_with("no job"));
    }

    #[test]
    fn an_even_load_has_equal_distances() {
        let hour = Duration::from_secs(3600);
        let jobs = even(4, hour, hour, hour);
        let starts: Vec<u64> = jobs.iter().map(|job| job.start.as_secs()).collect();
        assert_eq!(starts, [3600, 4500, 5400, 6300]);
        assert!(even(3, hour, Duration::ZERO, Duration::ZERO).iter().all(|job| job.start.is_zero()));
    }
}
