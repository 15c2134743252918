//! Prints a simulated day: a table by the hour, totals, and a chart.

use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::load::SimulatedJob;
use super::{Day, Sample};
use crate::manager::status::chart::{HEIGHT, Series, Tick, WIDTH, draw};

/// The number of minutes in one line of the table.
const MINUTES_PER_LINE: usize = 60;

/// Table and totals. Times are by the clock of `zone`.
pub fn table(day: &Day, jobs: &[SimulatedJob], begins: Timestamp, zone: &TimeZone) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        text,
        "time       jobs waiting  running   instances wanted  starting  idle  busy   wait mean  longest"
    );
    for (number, samples) in day.samples.chunks(MINUTES_PER_LINE).enumerate() {
        let from = Duration::from_secs(number as u64 * MINUTES_PER_LINE as u64 * 60);
        let until = from + Duration::from_secs(MINUTES_PER_LINE as u64 * 60);
        let waits: Vec<Duration> = jobs
            .iter()
            .zip(&day.waits)
            .filter(|(job, _)| job.start >= from && job.start < until)
            .filter_map(|(_, wait)| *wait)
            .collect();
        let maximum = |value: fn(&Sample) -> u32| samples.iter().map(value).max().unwrap_or(0);
        let (mean, longest) = match waits.is_empty() {
            true => ("-".to_owned(), "-".to_owned()),
            false => (short(mean(&waits)), short(waits.iter().copied().max().unwrap_or_default())),
        };
        let _ = writeln!(
            text,
            "{:<9} {:>13} {:>8} {:>18} {:>9} {:>5} {:>5} {:>11} {:>8}",
            clock(begins, from, zone),
            maximum(|sample| sample.queued + sample.held),
            maximum(|sample| sample.running),
            maximum(|sample| sample.wanted),
            maximum(|sample| sample.starting),
            maximum(|sample| sample.idle),
            maximum(|sample| sample.busy),
            mean,
            longest
        );
    }
    text.push_str(&totals(day));
    text
}

fn totals(day: &Day) -> String {
    let mut waits: Vec<Duration> = day.waits.iter().flatten().copied().collect();
    waits.sort_unstable();
    let percentile =
        |percent: usize| waits.get((waits.len() * percent / 100).min(waits.len().saturating_sub(1))).copied();
    let shown = |wait: Option<Duration>| wait.map_or_else(|| "-".to_owned(), short);
    let hours = |time: Duration| time.as_secs_f64() / 3600.0;
    let (all, busy) = (hours(day.instance_time), hours(day.busy_time));
    let share = if all > 0.0 { busy / all * 100.0 } else { 0.0 };
    let most = day.samples.iter().map(|sample| sample.starting + sample.idle + sample.busy).max().unwrap_or(0);
    let mut text = format!(
        "\njobs             {} created, {} started\nwaiting time     median {}, 95 % {}, longest {}\n\
         instances        {} started, at most {most} at once\ninstance hours   {all:.1}, with a job {busy:.1} ({share:.0} %)\n",
        day.waits.len(),
        waits.len(),
        shown(percentile(50)),
        shown(percentile(95)),
        shown(waits.last().copied()),
        day.started
    );
    if waits.len() < day.waits.len() {
        let _ = writeln!(text, "not started      {} jobs had no instance at the end", day.waits.len() - waits.len());
    }
    text
}

/// Two charts below each other as one SVG document.
pub fn chart(day: &Day, begins: Timestamp, zone: &TimeZone) -> String {
    let series = |value: fn(&Sample) -> u32| -> Vec<u32> { day.samples.iter().map(value).collect() };
    let (waiting, running) = (series(|sample| sample.queued + sample.held), series(|sample| sample.running));
    let (busy, idle) = (series(|sample| sample.busy), series(|sample| sample.idle));
    let (starting, wanted) = (series(|sample| sample.starting), series(|sample| sample.wanted));
    let minutes = day.samples.len() as u64;
    let tick =
        |part: u64| -> Tick { (part as f64 / 6.0, clock(begins, Duration::from_secs(minutes * 60 * part / 6), zone)) };
    let ticks: Vec<Tick> = (0..=6).map(tick).collect();
    let jobs = [Series::running_jobs(&running), Series::waiting_jobs(&waiting)];
    let instances = [
        Series::busy_instances(&busy),
        Series::idle_instances(&idle),
        Series { name: "starting instances", colour: "#888", values: &starting, filled: false },
        Series { name: "wanted instances", colour: "#c33", values: &wanted, filled: false },
    ];
    let place = |svg: String, y: f64| {
        svg.replacen("<svg ", &format!("<svg y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" "), 1)
    };
    let both = 2.0 * HEIGHT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {both}\" width=\"{}\" height=\"{}\">\
         <rect width=\"{WIDTH}\" height=\"{both}\" fill=\"#fff\"/>{}{}</svg>\n",
        1.5 * WIDTH,
        1.5 * both,
        place(draw("Jobs over the day", &jobs, &ticks), 0.0),
        place(draw("Instances over the day", &instances, &ticks), HEIGHT)
    )
}

fn mean(waits: &[Duration]) -> Duration {
    let sum: Duration = waits.iter().sum();
    sum.checked_div(u32::try_from(waits.len()).unwrap_or(u32::MAX)).unwrap_or_default()
}

fn clock(begins: Timestamp, after: Duration, zone: &TimeZone) -> String {
    let after = jiff::SignedDuration::try_from(after).unwrap_or_default();
    begins.checked_add(after).map(|time| zone.to_datetime(time).strftime("%a %H:%M").to_string()).unwrap_or_default()
}

/// `0s`, `45s`, `1m30s`, `2h05m`.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match () {
        () if seconds < 60 => format!("{seconds}s"),
        () if seconds < 3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        () => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}
