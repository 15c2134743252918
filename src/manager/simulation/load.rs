//! The jobs of a simulated day: from a CSV file, or a number of jobs of the same duration.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

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
pub fn even(count: u32, length: Duration, first: Duration, over: Duration) -> Vec<SimulatedJob> {
    let interval = over.checked_div(count.max(1)).unwrap_or_default();
    (0..count).map(|number| SimulatedJob { start: first + interval * number, length }).collect()
}

/// The jobs of a file, and the day of the first one if the file has dates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The jobs, sorted by their start.
    pub jobs: Vec<SimulatedJob>,
    /// The day from whose midnight the start times count.
    pub day: Option<Date>,
}

/// The start of a job, as the file writes it.
enum WrittenStart {
    /// The time of day, since midnight.
    TimeOfDay(Duration),
    /// A date and a time.
    Dated(Timestamp),
}

/// Reads lines of `start,duration`: the time of day, a number of seconds or a date and time, and a duration (`90s`,
/// `5m`) or a number of seconds. Times with a date count from the midnight of `day`, or of the first date in the file.
/// A header and lines with `#` are skipped. Errors: the invalid line and the expected form.
pub fn read(text: &str, day: Option<Date>, zone: &TimeZone) -> Result<Load, String> {
    let rows = read_rows(text, zone)?;
    let dates = rows.iter().filter_map(|(start, _)| match start {
        WrittenStart::Dated(time) => Some(*time),
        WrittenStart::TimeOfDay(_) => None,
    });
    let first_day = dates.min().map(|first| day.unwrap_or_else(|| zone.to_datetime(first).date()));
    let midnight = first_day.and_then(|day| zone.to_timestamp(day.to_datetime(Time::midnight())).ok());
    let job = |(start, length)| Ok(SimulatedJob { start: start_since_midnight(start, midnight)?, length });
    let mut jobs = rows.into_iter().map(job).collect::<Result<Vec<SimulatedJob>, String>>()?;
    jobs.sort_by_key(|job| job.start);
    Ok(Load { jobs, day: first_day })
}

/// Reads the start and the duration of each job. Errors: a line is invalid, or there is no job.
fn read_rows(text: &str, zone: &TimeZone) -> Result<Vec<(WrittenStart, Duration)>, String> {
    let mut rows = Vec::new();
    // Spreadsheets write a byte order mark.
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split([',', ';']).map(|field| field.trim().trim_matches('"'));
        let (start, length) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let written_start =
            time_of_day(start).map(WrittenStart::TimeOfDay).or_else(|| moment(start, zone).map(WrittenStart::Dated));
        match written_start.zip(length_of(length)) {
            Some(row) => rows.push(row),
            // The header.
            None if rows.is_empty() && !start.starts_with(|c: char| c.is_ascii_digit()) => {}
            None => {
                return Err(format!(
                    "line {}: `{line}` is not `start,duration`; write for example `09:30,5m`, `34200,300` or \
                     `2026-07-06 09:30,5m`",
                    at + 1
                ));
            }
        }
    }
    match rows.is_empty() {
        true => Err("no job; write lines of `start,duration`, for example `09:30,5m`".to_owned()),
        false => Ok(rows),
    }
}

/// The start of a job since the midnight of the simulated day. `midnight` is `None` if no time has a date.
fn start_since_midnight(start: WrittenStart, midnight: Option<Timestamp>) -> Result<Duration, String> {
    match (start, midnight) {
        (WrittenStart::TimeOfDay(start), None) => Ok(start),
        (WrittenStart::Dated(time), Some(midnight)) => Duration::try_from(time.duration_since(midnight))
            .map_err(|_| format!("{time} is before the simulated day; correct --day")),
        _ => Err("some times have a date and others do not; write a date with every time, or with none".to_owned()),
    }
}

/// Parses `2026-07-06 09:30`, `2026-07-06T09:30:15`, or a time with its zone (RFC 3339).
pub fn moment(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    // Without a time, `DateTime` would read a date as its midnight.
    let time = text.contains(':').then(|| text.parse::<DateTime>().ok()).flatten()?;
    zone.to_timestamp(time).ok()
}

/// Parses `09:30`, `09:30:15`, or seconds since midnight.
pub fn time_of_day(text: &str) -> Option<Duration> {
    let Some((hours, rest)) = text.split_once(':') else { return seconds(text) };
    let (minutes, seconds) = rest.split_once(':').unwrap_or((rest, "0"));
    let number = |text: &str, most: u64| text.parse::<u64>().ok().filter(|number| *number <= most);
    // Hours above 24 are on the following days.
    let total = number(hours, 24 * 366)? * 3600 + number(minutes, 59)? * 60 + number(seconds, 59)?;
    Some(Duration::from_secs(total))
}

/// Parses `5m`, or a number of seconds.
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
        let text = "\u{feff}start,duration\r\n# a comment\n09:30, 5m\n34200,300\n\"00:00:01\";90s\n26:00,1h\n";
        let jobs = read(text, None, &TimeZone::UTC).expect("the load must be valid").jobs;
        assert_eq!(jobs, [job(1, 90), job(34200, 300), job(34200, 300), job(93600, 3600)]);
    }

    #[test]
    fn times_with_a_date_count_from_the_first_day() {
        let zone = TimeZone::get("Europe/Amsterdam").expect("a zone");
        let text = "started,took\n2026-07-07 00:30,60\n2026-07-06T09:30:15,5m\n2026-07-06T10:00:00Z,1m\n";
        let load = read(text, None, &zone).expect("the load must be valid");
        assert_eq!(load.jobs, [job(34215, 300), job(12 * 3600, 60), job(24 * 3600 + 1800, 60)]);
        assert_eq!(load.day.map(|day| day.to_string()).as_deref(), Some("2026-07-06"));
        let day = |text: &str| Some(text.parse().expect("a date"));
        assert_eq!(
            read(text, day("2026-07-05"), &zone).expect("the load must be valid").jobs[0],
            job(24 * 3600 + 34215, 300)
        );
        assert!(read(text, day("2026-07-07"), &zone).is_err_and(|why| why.contains("before the simulated day")));
        let mixed = "09:00,5m\n2026-07-06 09:00,5m\n";
        assert!(read(mixed, None, &zone).is_err_and(|why| why.contains("with every time")));
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        let read = |text: &str| read(text, None, &TimeZone::UTC);
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
