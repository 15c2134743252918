//! The policy at one time, and its targets by the number of running jobs.

use std::fmt::Write;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::load;
use crate::manager::scaling::Sizing;
use crate::manager::scaling::wanted::{Bounds, JobCounts, wanted};

/// Parses `Sat 01:30` (the next such day from `today` on), `01:30` (today), `2026-07-11 01:30`, `now`, or a time with
/// its zone (RFC 3339).
pub fn read(text: &str, today: Date, zone: &TimeZone) -> Result<Timestamp, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("now") {
        return Ok(Timestamp::now());
    }
    if let Some(time) = load::moment(text, zone) {
        return Ok(time);
    }
    let wrong = || format!("`{text}` is not a time; write for example 'Sat 01:30', '01:30' or '2026-07-11 01:30'");
    let (date, time) = match text.split_once(char::is_whitespace) {
        Some((day, time)) => {
            let day = day.trim_end_matches(',');
            (day.parse::<Date>().ok().or_else(|| next_weekday(weekday(day)?, today)), time.trim())
        }
        None => (Some(today), text),
    };
    let moment = date.zip(clock(time)).ok_or_else(wrong)?;
    zone.to_timestamp(moment.0.to_datetime(moment.1)).map_err(|_| wrong())
}

/// Parses `1:30`, `01:30` or `01:30:15`.
fn clock(text: &str) -> Option<Time> {
    let parts: Option<Vec<i8>> = text.split(':').map(|part| part.parse().ok()).collect();
    match parts?.as_slice() {
        [hour, minute] => Time::new(*hour, *minute, 0, 0).ok(),
        [hour, minute, second] => Time::new(*hour, *minute, *second, 0).ok(),
        _ => None,
    }
}

fn weekday(name: &str) -> Option<Weekday> {
    let names = [
        ("monday", Weekday::Monday),
        ("tuesday", Weekday::Tuesday),
        ("wednesday", Weekday::Wednesday),
        ("thursday", Weekday::Thursday),
        ("friday", Weekday::Friday),
        ("saturday", Weekday::Saturday),
        ("sunday", Weekday::Sunday),
    ];
    let lower = name.to_ascii_lowercase();
    let fits = |full: &str| lower.len() >= 3 && full.starts_with(&lower);
    names.iter().find(|(full, _)| fits(full)).map(|(_, day)| *day)
}

fn next_weekday(wanted: Weekday, today: Date) -> Option<Date> {
    (0..7).filter_map(|days| today.checked_add(days.days()).ok()).find(|date| date.weekday() == wanted)
}

/// The policy at a time, and idle capacity and instances by the number of running jobs.
pub fn describe(pool: &str, sizing: &Sizing, time: Timestamp, zone: &TimeZone, running: &[u32]) -> String {
    let policy = sizing.policies.at(time);
    let shown = zone.to_datetime(time).strftime("%a %Y-%m-%d %H:%M");
    let name = zone.iana_name().unwrap_or("local time");
    let mut text = format!(
        "pool {pool} at {shown} {name}\npolicy in force: {}\n  idle target {}; idle time {} s; {}\n\
         running jobs  idle capacity  instances\n",
        policy.label,
        policy.idle,
        policy.idle_time.as_secs(),
        policy.intake
    );
    let bounds = Bounds { capacity: sizing.capacity, max_instances: sizing.max_instances, group: None };
    for running in running {
        let wanted = wanted(policy, JobCounts { held: 0, running: *running }, bounds);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{running:>12}  {:>13}  {:>9}", wanted.idle, wanted.instances);
    }
    text
}

/// Numbers of running jobs that illustrate a policy, up to the maximum of the pool.
pub fn usual_numbers(sizing: &Sizing) -> Vec<u32> {
    let most = sizing.max_instances.map_or(u32::MAX, |most| most.saturating_mul(sizing.capacity)).min(sizing.max_jobs);
    let all = [0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000];
    let mut numbers: Vec<u32> = all.into_iter().filter(|number| *number < most).collect();
    numbers.push(most.min(2000));
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_day_and_a_clock() {
        let zone = TimeZone::get("Europe/Amsterdam").expect("a zone");
        let today: Date = "2026-07-08".parse().expect("a date");
        let read = |text: &str| read(text, today, &zone).map(|time| time.to_string());
        assert_eq!(read("Sat 01:30"), Ok("2026-07-10T23:30:00Z".to_owned()));
        assert_eq!(read("wednesday 9:05"), Ok("2026-07-08T07:05:00Z".to_owned()));
        assert_eq!(read("2026-01-11 01:30"), Ok("2026-01-11T00:30:00Z".to_owned()));
        assert_eq!(read("2026-01-11T01:30:00Z"), Ok("2026-01-11T01:30:00Z".to_owned()));
        for same in ["SAT 01:30", "sat, 1:30", " Saturday  01:30:59 ", "2026-07-11T01:30", "2026-07-11 01:30:59"] {
            assert!(read(same).is_ok_and(|time| time.starts_with("2026-07-10T23:30")), "{same}");
        }
        assert_eq!(read("01:30"), Ok("2026-07-07T23:30:00Z".to_owned()));
        assert!(read("now").is_ok());
        for text in ["", "Sat", "Sat 25:00", "Foo 01:30", "2026-07-11", "2026-02-30 01:00", "1", "1:2:3:4"] {
            assert!(read(text).is_err_and(|why| why.contains("is not a time")), "{text}");
        }
    }
}
