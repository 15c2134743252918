//! The agent's own log: one line an event on standard error, fit for a terminal, the journal of systemd, or a
//! collector.

use std::io::Write;

use clap::{Args, ValueEnum};
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};

/// How much is logged, and how.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// debug, info, warn, error, fatal or panic
    #[arg(long, global = true, value_name = "LEVEL", env = "LOG_LEVEL")]
    log_level: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_name = "FORMAT", env = "LOG_FORMAT")]
    log_format: Option<Format>,
    /// The same as --log-level debug
    #[arg(long, global = true, env = "RUNNER_DEBUG", num_args = 0..=1, require_equals = true)]
    #[arg(default_value_t = false, default_missing_value = "true")]
    debug: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The message, with a level where it is not information
    Runner,
    /// time, level and msg as key=value
    Text,
    /// One JSON object a line
    Json,
}

impl Options {
    /// Sets the log up once. `configured` is what the configuration says; flags and environment beat it.
    pub fn set_up(&self, configured: Option<(&str, &str)>) {
        let level = self.log_level.as_deref().or(configured.map(|(level, _)| level)).unwrap_or("info");
        let filter = if self.debug { LevelFilter::Debug } else { filter(level) };
        let named = configured.and_then(|(_, format)| Format::from_str(format, true).ok());
        let format = self.log_format.or(named).unwrap_or(Format::Runner);
        let mut builder = env_logger::Builder::new();
        builder.filter_module("mayfly", filter).format(move |out, record| write(format, out, record));
        // The second set-up, with what the configuration says, only moves the level.
        if builder.try_init().is_err() {
            log::set_max_level(filter);
        }
    }
}

fn filter(level: &str) -> LevelFilter {
    match level.to_ascii_lowercase().as_str() {
        "debug" | "trace" => LevelFilter::Debug,
        "warn" | "warning" => LevelFilter::Warn,
        "error" | "fatal" | "panic" => LevelFilter::Error,
        _ => LevelFilter::Info,
    }
}

fn write(format: Format, out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let message = record.args().to_string();
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    };
    match format {
        Format::Runner if record.level() == Level::Info => writeln!(out, "{message}"),
        Format::Runner => writeln!(out, "{}: {message}", level.to_ascii_uppercase()),
        Format::Text => writeln!(out, "time={} level={level} msg={message:?}", jiff::Timestamp::now()),
        Format::Json => {
            let time = jiff::Timestamp::now().to_string();
            writeln!(out, "{}", serde_json::json!({"level": level, "msg": message, "time": time}))
        }
    }
}
