//! The control groups of a step.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::spec::Limits;

/// The period of the CPU quota.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// Creates the groups, and sets the limits that each hierarchy has controllers for.
pub fn create(groups: &[PathBuf], limits: Limits) {
    let settings = settings(limits);
    for group in groups {
        let _ = fs::create_dir_all(group);
        if settings.is_empty() {
            continue;
        }
        // The directory is opened once: each resolution of the whole path takes as long as everything else here.
        let Ok(directory) = open(group, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) else {
            continue;
        };
        for (file, value) in &settings {
            // The file does not exist if the controller belongs to another hierarchy.
            if let Ok(file) = openat(&directory, *file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
                let _ = nix::unistd::write(&file, value.as_bytes());
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
        // Version 1 counts swap with memory; version 2 has a separate limit for swap.
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

/// Enters a group. In version 1 only the thread enters, because moving a process waits for all CPUs; this process is
/// single-threaded. Fails with the error of write(2).
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
        let value = |file: &str| settings.iter().find(|(name, _)| *name == file).map(|(_, value)| value.as_str());
        assert_eq!(value("memory.max"), Some("67108864"));
        assert_eq!(value("memory.limit_in_bytes"), Some("67108864"));
        assert_eq!((value("pids.max"), value("cpu.max")), (Some("100"), Some("50000 100000")));
        assert!(super::settings(Limits::default()).is_empty());
    }

    /// Uses the control groups of this machine, of either version; needs root.
    #[test]
    fn processes_in_a_group_stay_within_its_limits() {
        use std::io::Write;
        use std::process::{Command, Stdio};
        use std::time::Duration;

        let parents = crate::executor::cgroup::CgroupParents::find();
        if !nix::unistd::Uid::effective().is_root() || !parents.missing().is_empty() {
            eprintln!("not tested: no groups can be made for {:?}", parents.missing());
            return;
        }
        let groups = parents.confined_groups(&format!("limits-{}", std::process::id()));
        create(&groups, Limits { memory: Some(48 << 20), processes: Some(20), cpu_millis: Some(500) });
        let run = |script: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("read go; {script}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut shell = shell.stderr(Stdio::null()).spawn().expect("a shell");
            for group in &groups {
                fs::write(group.join("cgroup.procs"), shell.id().to_string()).expect("write the file");
            }
            shell.stdin.take().expect("a pipe").write_all(b"go\n").expect("write all bytes");
            String::from_utf8(shell.wait_with_output().expect("wait for the end of the process").stdout)
                .expect("the text must be UTF-8")
        };
        // tail keeps a line without an end in memory.
        let memory = run("head -c 200000000 /dev/zero | tail -n 1 >/dev/null; echo $?");
        assert_ne!(memory.trim(), "0", "200 MB were taken");
        let few = run("head -c 2000000 /dev/zero | tail -n 1 >/dev/null; echo $?");
        assert_eq!(few.trim(), "0", "2 MB are allowed");
        // A shell that cannot start more processes exits without a message.
        let started = run("for i in $(seq 100); do sleep 1 & echo $i; done");
        let started = started.lines().count();
        assert!((5..20).contains(&started), "{started} processes");
        // No subreaper adopts the processes that the shell started; process 1 reaps them with a delay.
        let (timeout, interval) = (Duration::from_secs(10), Duration::from_millis(20));
        let removed = crate::sync::try_until(timeout, interval, || {
            super::super::descendants::remove_groups(&groups);
            groups.iter().all(|group| !group.exists()).then_some(())
        });
        assert!(removed.is_some(), "{groups:?} are not empty");
    }
}
