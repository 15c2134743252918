//! The agent's log on standard error: one line per event, in a format for terminals, systemd's journal, or log
//! collectors.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args, ValueEnum};
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};

use crate::config::{Config, LOG_LEVELS};
use crate::monitor::metrics;

/// Level and format of the log.
#[derive(Args, Clone, Debug)]
pub struct LoggingArgs {
    /// The lowest level that is logged
    #[arg(long, global = true, help_heading = "Log", value_name = "LEVEL", env = "LOG_LEVEL", ignore_case = true,
          value_parser = PossibleValuesParser::new(LOG_LEVELS))]
    log_level: Option<String>,
    /// The format of log lines
    #[arg(long, global = true, help_heading = "Log", value_name = "FORMAT", env = "LOG_FORMAT", ignore_case = true)]
    log_format: Option<Format>,
    /// The same as --log-level debug
    #[arg(long, global = true, help_heading = "Log", env = "RUNNER_DEBUG", action = ArgAction::Set,
          num_args = 0..=1, require_equals = true, value_name = "true|false", default_value = "false", default_missing_value = "true",
          hide_default_value = true, value_parser = super::boolean)]
    debug: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The message, with the level before it unless the level is info
    Runner,
    /// time, level and msg as key=value
    Text,
    /// One JSON object per line
    Json,
    /// As `Runner`, with the priority prefix that systemd's journal reads
    #[value(skip)]
    Journal,
}

/// The current format. The configuration is read only after the first lines may have been logged.
static FORMAT: AtomicU8 = AtomicU8::new(Format::Runner as u8);

fn current_format() -> Format {
    let number = FORMAT.load(Ordering::Relaxed);
    let formats = [Format::Runner, Format::Text, Format::Json, Format::Journal];
    formats.into_iter().find(|format| *format as u8 == number).unwrap_or(Format::Runner)
}

impl LoggingArgs {
    /// Initialises or changes the log. Flags and environment take precedence over the configuration.
    pub fn set_up(&self, config: Option<&Config>) {
        let configured_level = config.and_then(|config| config.log_level.as_deref());
        let level = self.log_level.as_deref().or(configured_level).unwrap_or("info");
        let filter = if self.debug { LevelFilter::Debug } else { level_filter(level) };
        let configured_format = config.and_then(|config| Format::from_str(config.log_format.as_deref()?, true).ok());
        let format = match self.log_format.or(configured_format).unwrap_or(Format::Runner) {
            Format::Runner if stderr_is_the_journal() => Format::Journal,
            format => format,
        };
        FORMAT.store(format as u8, Ordering::Relaxed);
        let mut builder = env_logger::Builder::new();
        builder.filter_module("mayfly", LevelFilter::Debug);
        builder.format(|out, record| {
            count_in_metrics(record.level());
            write(current_format(), out, record)
        });
        // Fails on the second call, which changes only level and format.
        let _ = builder.try_init();
        log::set_max_level(filter);
    }
}

fn count_in_metrics(level: Level) {
    match level {
        Level::Error => metrics::error_logged(),
        Level::Warn => metrics::warning_logged(),
        _ => {}
    }
}

/// Whether standard error is the socket that systemd names. The variable is also inherited by processes whose standard
/// error is redirected.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = nix::sys::stat::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stderr.st_dev, stderr.st_ino)
}

fn level_filter(level: &str) -> LevelFilter {
    match level.to_ascii_lowercase().as_str() {
        "debug" | "trace" => LevelFilter::Debug,
        "warn" | "warning" => LevelFilter::Warn,
        "error" | "fatal" | "panic" => LevelFilter::Error,
        _ => LevelFilter::Info,
    }
}

fn write(format: Format, out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let time = || jiff::Timestamp::now().to_string();
    writeln!(out, "{}", format_line(format, record.level(), &record.args().to_string(), time))
}

/// The line of an event; exactly one line in the formats for programs.
fn format_line(format: Format, level: Level, message: &str, time: impl Fn() -> String) -> String {
    let (name, priority) = match level {
        Level::Error => ("error", 3),
        Level::Warn => ("warning", 4),
        Level::Info => ("info", 6),
        Level::Debug | Level::Trace => ("debug", 7),
    };
    match format {
        Format::Text => format!("time={} level={name} msg={message:?}", time()),
        Format::Json => serde_json::json!({"level": name, "msg": message, "time": time()}).to_string(),
        Format::Runner if level == Level::Info => message.replace('\n', "\n    "),
        Format::Runner => format!("{}: {}", name.to_ascii_uppercase(), message.replace('\n', "\n    ")),
        // In the journal each line is an entry.
        Format::Journal => format!("<{priority}>{}", message.replace('\n', &format!("\n<{priority}>    "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_an_event_as_one_line_in_each_format() {
        let time = || "T".to_owned();
        for (format, level, expected) in [
            (Format::Runner, Level::Info, "a \"b\""),
            (Format::Runner, Level::Warn, "WARNING: a \"b\""),
            (Format::Text, Level::Warn, r#"time=T level=warning msg="a \"b\"""#),
            (Format::Json, Level::Error, r#"{"level":"error","msg":"a \"b\"","time":"T"}"#),
            (Format::Journal, Level::Warn, "<4>a \"b\""),
            (Format::Journal, Level::Debug, "<7>a \"b\""),
        ] {
            assert_eq!(format_line(format, level, "a \"b\"", time), expected);
        }
        assert_eq!(format_line(Format::Json, Level::Info, "a\nb", time).lines().count(), 1);
        assert_eq!(format_line(Format::Text, Level::Info, "a\nb", time).lines().count(), 1);
        assert_eq!(format_line(Format::Journal, Level::Info, "a\nb", time), "<6>a\n<6>    b");
    }
}
