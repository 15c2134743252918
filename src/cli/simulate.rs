//! `manager simulate`: simulates the pools of a configuration over a day, or prints their targets at one moment.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;

use super::ConfigFile;
use crate::config::{Config, Role, fleet};
use crate::manager::pool::PoolSettings;
use crate::manager::scaling::Sizing;
use crate::manager::simulation::{Scenario, at, load, report, simulate};

/// The options of `manager simulate`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Simulate only the pool with this name
    #[arg(short, long, value_name = "NAME")]
    pool: Option<String>,
    /// Print the policy and the targets at this time, for example 'Sat 01:30' or '2026-07-11 01:30'
    #[arg(long, value_name = "TIME", conflicts_with_all = ["load", "jobs"])]
    at: Option<String>,
    /// With --at: print the targets for these numbers of running jobs
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', requires = "at")]
    running: Vec<u32>,
    /// Read the jobs of the day from a CSV file: start time,duration
    #[arg(long, value_name = "FILE", conflicts_with = "jobs")]
    load: Option<PathBuf>,
    /// Create this number of jobs
    #[arg(long, value_name = "NUMBER", requires = "duration")]
    jobs: Option<u32>,
    /// The duration of each job
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// The time at which the first job is created
    #[arg(long, value_name = "HH:MM", value_parser = time_of_day, default_value = "00:00")]
    start: Duration,
    /// Create the jobs evenly over this time; 0 creates all at once
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "24h")]
    over: Duration,
    /// The date of the simulated day [default: today]
    #[arg(long, value_name = "DATE", value_parser = date)]
    day: Option<Date>,
    /// The length of the simulation
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "24h")]
    length: Duration,
    /// The time from the start of an instance to the registration of its agent
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "90s")]
    boot: Duration,
    /// The time zone of the given times [default: that of this machine]
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    timezone: Option<TimeZone>,
    /// Write a chart (SVG) to this file
    #[arg(long, value_name = "FILE", conflicts_with = "at")]
    svg: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    load::length_of(text).ok_or_else(|| "write a duration, for example 90s or 5m".to_owned())
}

fn time_of_day(text: &str) -> Result<Duration, String> {
    load::time_of_day(text).ok_or_else(|| "write a time, for example 09:00".to_owned())
}

fn date(text: &str) -> Result<Date, String> {
    text.parse().map_err(|_| "write a date, for example 2026-07-06".to_owned())
}

fn zone(text: &str) -> Result<TimeZone, String> {
    TimeZone::get(text).map_err(|_| "write a time zone, for example Europe/Amsterdam".to_owned())
}

/// Simulates each pool and prints the result.
pub fn main(options: &Options) -> Result<ExitCode, String> {
    let pools = pools(options)?;
    let zone = options.timezone.clone().unwrap_or_else(TimeZone::system);
    let today = zone.to_datetime(Timestamp::now()).date();
    if let Some(time) = &options.at {
        let time = at::read(time, options.day.unwrap_or(today), &zone)?;
        for pool in &pools {
            let sizing = Sizing::of(pool);
            let numbers = if options.running.is_empty() { at::usual_numbers(&sizing) } else { options.running.clone() };
            print!("{}", at::describe(&pool.name, &sizing, time, &zone, &numbers));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let midnight = options.day.unwrap_or(today).to_datetime(Time::midnight());
    let begins = zone.to_timestamp(midnight).map_err(|error| error.to_string())?;
    for pool in &pools {
        print_day(options, pool, begins, &zone)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_day(options: &Options, pool: &PoolSettings, begins: Timestamp, zone: &TimeZone) -> Result<(), String> {
    let scenario = Scenario {
        sizing: Sizing::of(pool),
        group_maximum: None,
        begins,
        length: options.length.min(Duration::from_secs(366 * 24 * 3600)),
        boot: options.boot,
        jobs: jobs(options)?,
    };
    let day = simulate(&scenario);
    println!("pool {}", pool.name);
    for (after, label) in &day.policies {
        let after = jiff::SignedDuration::try_from(*after).unwrap_or_default();
        let clock = begins.checked_add(after).map(|time| zone.to_datetime(time).strftime("%a %H:%M").to_string());
        println!("policy from {}: {label}", clock.unwrap_or_default());
    }
    println!("\n{}", report::table(&day, &scenario.jobs, begins, zone));
    if let Some(path) = &options.svg {
        fs::write(path, report::chart(&day, begins, zone))
            .map_err(|error| format!("cannot write the chart {}: {error}", path.display()))?;
    }
    Ok(())
}

fn jobs(options: &Options) -> Result<Vec<load::SimulatedJob>, String> {
    if let Some(path) = &options.load {
        let text = fs::read_to_string(path).map_err(|error| format!("the load {}: {error}", path.display()))?;
        return load::read(&text).map_err(|why| format!("the load {}: {why}", path.display()));
    }
    let (Some(jobs), Some(duration)) = (options.jobs, options.duration) else {
        return Err("no load; name a CSV file with --load, or write --jobs and --duration".to_owned());
    };
    Ok(load::even(jobs, duration, options.start, options.over))
}

/// The settings of the selected pools.
fn pools(options: &Options) -> Result<Vec<PoolSettings>, String> {
    let path = options.file.path();
    let config = Config::load_as(&path, Role::Manager).map_err(|error| error.to_string())?.config;
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let table: toml::Table = text.parse().map_err(|error| format!("{}: {error}", path.display()))?;
    let mut pools = Vec::new();
    for runner in &config.runners {
        let problem = |why: String| format!("{}: pool `{}`: {why}", path.display(), runner.name);
        if options.pool.as_ref().is_some_and(|name| *name != runner.name) {
            continue;
        }
        if let Some(table) = fleet::of(&table, runner.position).map_err(problem)? {
            pools.push(PoolSettings::new(Arc::new(runner.clone()), table, config.concurrent).map_err(problem)?);
        }
    }
    match (pools.is_empty(), &options.pool) {
        (false, _) => Ok(pools),
        (true, Some(name)) => Err(format!("{} has no pool `{name}`", path.display())),
        (true, None) => Err(format!(
            "{} has no pool; a pool is a [[runners]] with executor = \"docker-autoscaler\", \"instance\" or \"docker+machine\"",
            path.display()
        )),
    }
}
