//! Boots a machine from an image with the package (systemd-nspawn, cloud-init) and measures the time until its agent
//! polls and until its first job is finished: `cargo bench --bench boot`, as root, after `tests/setup.sh`.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::gitlab::{GitLab, RUNNER_TOKEN};
use support::imds::Imds;
use support::job::job;
use support::machine::{Image, in_own_network, with_image};

/// The number of boots; the median is printed.
const ROUNDS: usize = 5;

fn main() {
    let mut lives = Vec::new();
    with_image("true", |image| lives = (0..ROUNDS).map(|_| life(image)).collect());
    tell("unit start to first request", lives.iter().map(|(first_request, _)| *first_request));
    tell("boot to first job done", lives.iter().map(|(_, job_done)| *job_done));
}

/// The time from the start of the unit to the first poll, and the time from the start of the machine to the end of the
/// first job.
fn life(image: &Image) -> (Duration, Duration) {
    let mut life = None;
    in_own_network(|| {
        let gitlab = GitLab::start();
        let user_data = format!(
            "#cloud-config\nwrite_files:\n  - path: /etc/mayfly/config.toml\n    permissions: '0600'\n    content: |\n      \
             user = \"mayfly-job\"\n      [[runners]]\n      name = \"bench\"\n      url = \"{}\"\n      \
             token = \"{RUNNER_TOKEN}\"\n      executor = \"shell\"\n",
            gitlab.url
        );
        let _imds = Imds::start("i-0abc0000000000001", &user_data);
        let id = gitlab.queue(job(&["true"]).build());
        let began = Instant::now();
        let machine = image.boot();
        let done = gitlab.finished(id);
        let job_done = done.ended.expect("the job must have ended") - began;
        // The job was in the queue, so the first poll returned it.
        let taken = SystemTime::now() - done.taken.expect("the runner must have the job").elapsed();
        let journal = machine.read_journal(&["--unit", "mayfly.service", "--output", "short-unix"]);
        let start = journal.lines().find(|line| line.contains("Starting mayfly.service")).expect("a start");
        let seconds: f64 = start.split_whitespace().next().and_then(|time| time.parse().ok()).expect("a time");
        let start = UNIX_EPOCH + Duration::from_secs_f64(seconds);
        life = Some((taken.duration_since(start).unwrap_or_default(), job_done));
    });
    life.expect("a life")
}

fn tell(what: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let milliseconds = times[times.len() / 2].as_secs_f64() * 1000.0;
    println!("{what:<44} {milliseconds:>12.1} ms");
}
