//! `manager simulate`: simulates the pools of a configuration over a day, or prints their targets at one moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;

use super::ConfigFile;
use super::output::{self, print_line};
use crate::config::{Config, Role, fleet};
use crate::manager::pool::PoolSettings;
use crate::manager::scaling::Sizing;
use crate::manager::settings;
use crate::manager::simulation::load::{Load, SimulatedJob};
use crate::manager::simulation::{Scenario, at, load, report, simulate};

/// The maximum length of a simulation.
const MAX_LENGTH: Duration = Duration::from_secs(366 * 24 * 3600);

/// The options of `manager simulate`.
#[derive(Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Simulate only the pool with this name
    #[arg(short, long, value_name = "NAME")]
    pool: Option<String>,
    /// Print the policy and the targets at this time, for example 'Sat 01:30', '2026-07-11 01:30' or 'now'
    #[arg(long, value_name = "TIME", conflicts_with_all = ["load", "jobs"])]
    at: Option<String>,
    /// With --at: print the targets for these numbers of running jobs
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', requires = "at")]
    running: Vec<u32>,
    /// Read the jobs of the day from a CSV file: start time (or date and time),duration
    #[arg(long, value_name = "FILE", conflicts_with = "jobs")]
    load: Option<PathBuf>,
    /// Create this number of jobs
    #[arg(long, value_name = "NUMBER", requires = "duration", value_parser = clap::value_parser!(u32).range(..=1_000_000))]
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
    /// The date of the simulated day [default: the first one in the CSV file, or today]
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
    /// Write a chart (SVG) to this file; with several pools, to one file for each, with the pool in its name
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

/// Simulates each pool and prints the result. A pool that cannot be simulated is reported; the other pools are
/// simulated.
pub fn main(options: &SimulateArgs) -> Result<ExitCode, String> {
    let (pools, refused) = selected_pools(options)?;
    refused.iter().for_each(|why| eprintln!("mayfly: {why}"));
    let zone = options.timezone.clone().unwrap_or_else(TimeZone::system);
    let today = zone.to_datetime(Timestamp::now()).date();
    if let Some(time) = &options.at {
        let time = at::read(time, options.day.unwrap_or(today), &zone)?;
        for pool in &pools {
            let sizing = Sizing::from_pool(pool);
            let numbers = if options.running.is_empty() { at::usual_numbers(&sizing) } else { options.running.clone() };
            output::write(format_args!("{}", at::describe(&pool.name, &sizing, time, &zone, &numbers)));
        }
    } else {
        let load = read_load(options, &zone)?;
        let midnight = options.day.or(load.day).unwrap_or(today).to_datetime(Time::midnight());
        let begins = zone.to_timestamp(midnight).map_err(|error| error.to_string())?;
        let simulation = DaySimulation { options, jobs: &load.jobs, begins, zone: &zone };
        for pool in &pools {
            let chart = options.svg.as_ref().map(|path| match pools.len() {
                1 => path.clone(),
                _ => with_pool(path, &pool.name),
            });
            simulation.print(pool, chart.as_deref())?;
        }
    }
    Ok(if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The simulation of one day, with the same jobs for each pool.
struct DaySimulation<'a> {
    options: &'a SimulateArgs,
    jobs: &'a [SimulatedJob],
    /// The first moment of the day.
    begins: Timestamp,
    zone: &'a TimeZone,
}

impl DaySimulation<'_> {
    /// Simulates the day of a pool, prints it, and writes its chart to a file.
    fn print(&self, pool: &PoolSettings, chart: Option<&Path>) -> Result<(), String> {
        let Self { options, jobs, begins, zone } = *self;
        let length = options.length.min(MAX_LENGTH);
        let within = jobs.partition_point(|job| job.start < length);
        let scenario = Scenario {
            sizing: Sizing::from_pool(pool),
            group_maximum: None,
            begins,
            length,
            boot: options.boot,
            jobs: jobs[..within].to_vec(),
        };
        let day = simulate(&scenario);
        print_line!("pool {}", pool.name);
        for (after, label) in &day.policies {
            let after = jiff::SignedDuration::try_from(*after).unwrap_or_default();
            let clock = begins.checked_add(after).map(|time| zone.to_datetime(time).strftime("%a %H:%M").to_string());
            print_line!("policy from {}: {label}", clock.unwrap_or_default());
        }
        print_line!("\n{}", report::table(&day, &scenario.jobs, begins, zone));
        if within < jobs.len() {
            print_line!("not simulated    {} jobs that begin later; raise --length", jobs.len() - within);
        }
        if let Some(path) = chart {
            fs::write(path, report::chart(&day, begins, zone))
                .map_err(|error| format!("cannot write the chart {}: {error}", path.display()))?;
            print_line!("chart            {}", path.display());
        }
        Ok(())
    }
}

/// `day.svg` of the pool `linux` is `day-linux.svg`.
fn with_pool(path: &Path, pool: &str) -> PathBuf {
    let letters = |letter: char| if letter.is_alphanumeric() || matches!(letter, '-' | '_') { letter } else { '_' };
    let pool: String = pool.chars().map(letters).collect();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let end = path.extension().map(|end| format!(".{}", end.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{pool}{end}"))
}

fn read_load(options: &SimulateArgs, zone: &TimeZone) -> Result<Load, String> {
    if let Some(path) = &options.load {
        let text = fs::read_to_string(path).map_err(|error| format!("the load {}: {error}", path.display()))?;
        return load::read(&text, options.day, zone).map_err(|why| format!("the load {}: {why}", path.display()));
    }
    let (Some(jobs), Some(duration)) = (options.jobs, options.duration) else {
        return Err("no load; name a CSV file with --load, or write --jobs and --duration".to_owned());
    };
    Ok(Load { jobs: load::even(jobs, duration, options.start, options.over), day: None })
}

/// The settings of the selected pools, and why others cannot be simulated.
fn selected_pools(options: &SimulateArgs) -> Result<(Vec<PoolSettings>, Vec<String>), String> {
    let path = options.file.path();
    let config = Config::load_as(&path, Role::Manager).map_err(|error| error.to_string())?.config;
    let (mut pools, mut refused) = (Vec::new(), Vec::new());
    for runner in &config.runners {
        let name = settings::name_of(runner);
        if options.pool.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let pool = fleet::read_table(&runner.written).and_then(|table| {
            table.map(|table| PoolSettings::simulated(runner, &name, table, config.concurrent)).transpose()
        });
        match pool {
            Ok(pool) => pools.extend(pool),
            Err(why) => refused.push(format!("{}: pool `{name}`: {why}", path.display())),
        }
    }
    match (pools.is_empty() && refused.is_empty(), &options.pool) {
        (false, _) => Ok((pools, refused)),
        (true, Some(name)) => Err(format!("{} has no pool `{name}`", path.display())),
        (true, None) => Err(format!(
            "{} has no pool; a pool is a [[runners]] with executor = \"docker-autoscaler\", \"instance\" or \"docker+machine\"",
            path.display()
        )),
    }
}
