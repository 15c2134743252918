//! Progress of a transfer in the job's log.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use crate::payload::variables::Variables;

/// A reader that periodically prints its progress (`TRANSFER_METER_FREQUENCY`).
pub struct Meter<R> {
    reader: R,
    label: &'static str,
    interval: Option<Duration>,
    total: Option<u64>,
    done: u64,
    started: Instant,
    last_report: Instant,
}

impl<R> Meter<R> {
    /// Creates a meter that prints a line at the interval `every`; without it, the meter prints nothing.
    pub fn new(reader: R, label: &'static str, every: Option<Duration>, total: Option<u64>) -> Self {
        let now = Instant::now();
        Self { reader, label, interval: every, total, done: 0, started: now, last_report: now }
    }

    /// The number of bytes read.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The progress line after `elapsed`.
    fn line(&self, elapsed: Duration) -> String {
        let rate = self.done as f64 / elapsed.as_secs_f64().max(0.001);
        let total = self.total.map(|total| format!("/{}", bytes(total as f64))).unwrap_or_default();
        format!("{} {}{total} ({}/s)", self.label, bytes(self.done as f64), bytes(rate))
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.done += length as u64;
        if self.interval.is_some_and(|every| self.last_report.elapsed() >= every) {
            self.last_report = Instant::now();
            println!("\r{}", self.line(self.started.elapsed()));
        }
        Ok(length)
    }
}

/// The interval of progress lines: at least a second; none by default.
pub fn meter_frequency(variables: &Variables) -> Option<Duration> {
    let every = variables.duration("TRANSFER_METER_FREQUENCY")?;
    (!every.is_zero()).then(|| every.max(Duration::from_secs(1)))
}

/// Formats a size in bytes.
pub fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["B", "KiB", "MiB"] {
        if count < 1024.0 {
            return if unit == "B" { format!("{count:.0} B") } else { format!("{count:.1} {unit}") };
        }
        count /= 1024.0;
    }
    format!("{count:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_prints_amount_and_speed() {
        let mut meter = Meter::new(io::repeat(0).take(3 << 20), "Downloading cache", None, Some(6 << 20));
        io::copy(&mut meter, &mut io::sink()).unwrap();
        let line = meter.line(Duration::from_secs(2));
        assert_eq!(line, "Downloading cache 3.0 MiB/6.0 MiB (1.5 MiB/s)");
        meter.total = None;
        assert_eq!(meter.line(Duration::from_secs(3)), "Downloading cache 3.0 MiB (1.0 MiB/s)");
    }

    #[test]
    fn formats_sizes() {
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(3.0 * 1024.0 * 1024.0 * 1024.0), "3.0 GiB");
    }
}
