//! A full disk: the job may fail, its outcome and what could be kept of its log arrive.

use std::process::Command;

use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::mayfly::Home;

/// A small file system of its own, unmounted with the test.
pub struct Small(std::path::PathBuf);

impl Small {
    pub fn mount(place: std::path::PathBuf) -> Self {
        std::fs::create_dir_all(&place).expect("made");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&place).status();
        assert!(mounted.expect("mount").success(), "these tests need root");
        Self(place)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_job_that_fills_the_disk_of_the_journal_still_tells_its_outcome() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "", "");
    let small = Small::mount(home.path("state"));
    let fill = format!("dd if=/dev/zero of={}/filler bs=64k 2>/dev/null || true", small.0.display());
    let free = format!("rm {}/filler", small.0.display());
    let id = gitlab.queue(job(&["echo before", &fill, "seq 1 50000; sleep 2", &free, "echo behind", "exit 6"]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(6)), "{}", job.log());
    let lines = job.lines();
    assert!(lines.contains(&"before".to_owned()) && lines.contains(&"behind".to_owned()), "{}", agent.log());
    assert!(job.log().contains("bytes of the log were lost"), "what is missing is said");
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_disk_that_stays_full_does_not_hide_the_outcome() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "", "");
    let small = Small::mount(home.path("state"));
    let fill = format!("dd if=/dev/zero of={}/filler bs=4k 2>/dev/null || exit 8", small.0.display());
    let id = gitlab.queue(job(&[&fill]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(8)), "{}\n{}", job.log(), agent.log());
    agent.wait();
    gitlab.assert_strict();
}
