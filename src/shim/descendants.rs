//! Finds and kills all processes of a step, however they detached themselves.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// All descendants of `root`. The shim is their subreaper, so a process that detaches itself is also found.
pub fn below(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in all_pids() {
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(child);
            queue.push(child);
        }
    }
    found
}

/// The processes that a dead shim left: those with the step's variable in their environment, and their descendants.
pub fn with_step_variable(step: &str) -> Vec<i32> {
    let marker = format!("MAYFLY_STEP={step}");
    let has_variable = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
    };
    let mut found: Vec<i32> = all_pids().filter(has_variable).collect();
    for index in 0..found.len() {
        found.extend(below(found[index]));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The processes in a control group.
pub fn in_group(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills the processes of a control group: with `cgroup.kill` (version 2), otherwise one by one.
pub fn kill_group(group: &Path) {
    if fs::write(group.join("cgroup.kill"), "1").is_err() {
        signal_all(&in_group(group), Signal::SIGKILL);
    }
}

/// Signals each process that still exists.
pub fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

/// Removes control groups that are empty.
pub fn remove_groups(groups: &[PathBuf]) {
    for group in groups {
        let _ = fs::remove_dir(group);
    }
}

/// The name of a process (`comm`).
pub fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The pids of all processes of the machine.
pub fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(1)?.parse().ok()
}
