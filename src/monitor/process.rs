//! Metrics of the process, with the names of Prometheus client libraries.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use super::text::{MetricKind, Page};

/// Writes the metrics; a value that the system does not provide is left out.
pub fn write(page: &mut Page) {
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        write_stat(page, &stat);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of these descriptors belongs to the listing itself.
        let open = open.count().saturating_sub(1);
        page.single("process_open_fds", MetricKind::Gauge, "Number of open file descriptors.", open as f64);
    }
    if let Ok((most, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        page.single("process_max_fds", MetricKind::Gauge, "Maximum number of open file descriptors.", most as f64);
    }
}

fn write_stat(page: &mut Page, stat: &str) {
    // The process name, in parentheses, may contain any character; the third field follows the last parenthesis.
    let fields: Vec<f64> = stat.rfind(')').map_or_else(Vec::new, |end| {
        stat[end + 1..].split_ascii_whitespace().map(|field| field.parse().unwrap_or(f64::NAN)).collect()
    });
    let field = |number: usize| fields.get(number - 3).copied().filter(|value| value.is_finite());
    let constant = |name| sysconf(name).ok().flatten().map(|value| value as f64);
    let ticks = constant(SysconfVar::CLK_TCK).unwrap_or(100.0);
    if let Some((user, system)) = field(14).zip(field(15)) {
        let seconds = (user + system) / ticks;
        page.single("process_cpu_seconds_total", MetricKind::Counter, "User and system CPU time spent.", seconds);
    }
    if let Some((started, booted)) = field(22).zip(booted()) {
        let help = "Start time of the process, in seconds since the epoch.";
        page.single("process_start_time_seconds", MetricKind::Gauge, help, booted + started / ticks);
    }
    if let Some(size) = field(23) {
        page.single("process_virtual_memory_bytes", MetricKind::Gauge, "Virtual memory size.", size);
    }
    if let Some((pages, size)) = field(24).zip(constant(SysconfVar::PAGE_SIZE)) {
        page.single("process_resident_memory_bytes", MetricKind::Gauge, "Resident memory size.", pages * size);
    }
}

/// The boot time of the machine, in seconds since the epoch.
fn booted() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_metrics_of_this_process() {
        let mut page = Page::default();
        write(&mut page);
        let text = page.finish();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        assert!(value("process_cpu_seconds_total") < 100_000.0);
        let now = jiff::Timestamp::now().as_second() as f64;
        let started = value("process_start_time_seconds");
        assert!(started <= now + 2.0 && started > now - 86_400.0, "{started} {now}");
    }
}
