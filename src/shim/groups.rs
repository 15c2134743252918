//! The control groups of a step.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::spec::Limits;

/// The period of the CPU quota.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// Creates the groups, and sets the limits that each hierarchy has controllers for.
pub fn create(groups: &[PathBuf], limits: Limits) {
    for group in groups {
        let _ = fs::create_dir_all(group);
        for (file, value) in settings(limits) {
            let file = group.join(file);
            if file.exists() {
                let _ = fs::write(file, value);
            }
        }
    }
}

/// The files of both cgroup versions, with their values.
fn settings(limits: Limits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if let Some(memory) = limits.memory {
        settings.push(("memory.max", memory.to_string()));
        settings.push(("memory.limit_in_bytes", memory.to_string()));
        // Version 1 counts swap with memory; version 2 has a limit of its own for swap.
        settings.push(("memory.swap.max", "0".to_owned()));
        settings.push(("memory.memsw.limit_in_bytes", memory.to_string()));
    }
    if let Some(processes) = limits.processes {
        settings.push(("pids.max", processes.to_string()));
    }
    if let Some(processor) = limits.cpu_millis {
        let quota = (processor * CPU_PERIOD_MICROS / 1000).max(1000);
        settings.push(("cpu.max", format!("{quota} {CPU_PERIOD_MICROS}")));
        settings.push(("cpu.cfs_quota_us", quota.to_string()));
    }
    settings
}

/// Enters a group. For version 1 the thread enters, because moving a process waits for all CPUs; this process has one
/// thread only. Errors: of write(2).
pub fn enter(group: &Path) -> io::Result<()> {
    match fs::write(group.join("tasks"), "0") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(group.join("cgroup.procs"), "0"),
        entered => entered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_for_both_versions() {
        let limits = Limits { memory: Some(64 << 20), processes: Some(100), cpu_millis: Some(500) };
        let settings = settings(limits);
        let of = |file: &str| settings.iter().find(|(name, _)| *name == file).map(|(_, value)| value.as_str());
        assert_eq!(of("memory.max"), Some("67108864"));
        assert_eq!(of("memory.limit_in_bytes"), Some("67108864"));
        assert_eq!((of("pids.max"), of("cpu.max")), (Some("100"), Some("50000 100000")));
        assert!(super::settings(Limits::default()).is_empty());
    }
}
