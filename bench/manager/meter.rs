//! What a process costs: bytes on its sockets, and CPU time.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Counts the bytes on the sockets of a process, as the kernel does (`ss`).
pub struct Meter {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<BTreeMap<String, u64>>,
    before: BTreeMap<String, u64>,
}

impl Meter {
    pub fn start(pid: i32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let before = sockets(pid);
        // A socket that is closed is not listed any more: the last look counts.
        let look = move || {
            let mut seen = BTreeMap::new();
            loop {
                let is_last = stopped.load(Ordering::SeqCst);
                seen.extend(sockets(pid));
                if is_last {
                    return seen;
                }
                thread::sleep(Duration::from_millis(50));
            }
        };
        Self { stop, thread: thread::spawn(look), before }
    }

    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let seen = self.thread.join().expect("the thread must not panic");
        seen.iter().map(|(socket, bytes)| bytes - self.before.get(socket).unwrap_or(&0)).sum()
    }
}

/// The TCP sockets of a process by their addresses, with the bytes of both directions.
fn sockets(pid: i32) -> BTreeMap<String, u64> {
    let output = Command::new("ss").args(["-tinpHO"]).output().expect("run ss");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let own = text.lines().filter(|line| line.contains(&format!("pid={pid},")));
    let count = |line: &str, name: &str| -> u64 {
        let word = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
        word.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    own.map(|line| {
        let addresses = line.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" ");
        (addresses, count(line, "bytes_sent:") + count(line, "bytes_received:"))
    })
    .collect()
}

/// User and system time of a process so far, without that of its children.
pub fn cpu_of(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
