//! A full disk: the job may fail, but its result and the saved part of its log reach GitLab.

use std::process::Command;

use serde_json::json;

use crate::support::docker::{Docker, is_podman_run};
use crate::support::gitlab::{GitLab, Job};
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::mayfly::Home;
use crate::support::s3::S3;
use crate::support::scenario::Scenario;

/// A small file system; unmounted when the test ends.
pub struct Small(std::path::PathBuf);

impl Small {
    pub fn mount(place: std::path::PathBuf) -> Self {
        Self::mount_with(place, "size=4m")
    }

    /// The same with mount options, such as a limit of inodes.
    pub fn mount_with(place: std::path::PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&place).expect("create the directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&place).status();
        assert!(mounted.expect("run mount").success(), "these tests need root");
        Self(place)
    }
}

impl Small {
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Fills all blocks with one file, and returns its path.
    pub fn fill(&self) -> std::path::PathBuf {
        let filler = self.0.join("filler");
        let mut file = std::fs::File::create(&filler).expect("create the directory");
        while std::io::Write::write(&mut file, &[0; 4096]).is_ok() {}
        filler
    }

    /// Uses all inodes with empty files in one directory, and returns its path.
    pub fn use_all_inodes(&self) -> std::path::PathBuf {
        let directory = self.0.join("many");
        std::fs::create_dir(&directory).expect("create the directory");
        let mut numbers = 0..1_000_000;
        while numbers.next().is_some_and(|number| std::fs::write(directory.join(number.to_string()), "").is_ok()) {}
        directory
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_job_that_fills_the_journals_disk_still_reports_its_result() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let small = Small::mount(home.path("state"));
    let fill = format!("dd if=/dev/zero of={}/filler bs=64k 2>/dev/null || true", small.0.display());
    let free = format!("rm {}/filler", small.0.display());
    let go = home.path("go");
    let lines =
        ["echo before", &until_there(go.display()), &fill, "seq 1 50000; sleep 2", &free, "echo behind", "exit 6"];
    let id = gitlab.queue(job(&lines).build());
    let mut agent = home.start(&["--once"]);
    gitlab.wait_for_log(id, "before");
    std::fs::write(go, "").expect("write a file");
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(6)), "{}", job.log());
    let lines = job.lines();
    assert!(lines.contains(&"before".to_owned()) && lines.contains(&"behind".to_owned()), "{}", job.log());
    assert!(job.log().contains("bytes of the log were lost"), "what is missing is said");
    assert!(agent.wait().success());
    gitlab.assert_strict();
}

#[test]
fn a_disk_that_stays_full_does_not_hide_the_result() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let small = Small::mount(home.path("state"));
    let fill = format!("dd if=/dev/zero of={}/filler bs=4k 2>/dev/null || exit 8", small.0.display());
    let id = gitlab.queue(job(&[&fill]).build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.exit_code), ("failed", Some(8)), "{}\n{}", job.log(), agent.log());
    agent.wait();
    gitlab.assert_strict();
}

#[test]
fn a_log_that_lost_lines_on_a_full_disk_says_so() {
    for (code, state, last) in [(0, "success", "Job succeeded"), (7, "failed", "Job failed: exit status 7")] {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let small = Small::mount(home.path("state"));
        let fill = format!("dd if=/dev/zero of={}/filler bs=4k 2>/dev/null || true", small.0.display());
        // More output than the agent allocates in advance.
        let go = home.path("go");
        let lines = ["echo before", &until_there(go.display()), &fill, "seq 1 200000", &format!("exit {code}")];
        let id = gitlab.queue(job(&lines).build());
        let mut agent = home.start(&["--once"]);
        // The disk must not be full before the line is in the log.
        gitlab.wait_for_log(id, "before");
        std::fs::write(go, "").expect("write a file");
        let job = gitlab.finished(id);
        assert_eq!(job.state, state, "{}", job.log());
        assert!(job.lines().contains(&"before".to_owned()), "{}", job.log());
        assert!(job.log().contains("bytes of the log were lost because the disk was full"), "{}", job.log());
        assert!(job.log().contains(last), "{}", job.log());
        agent.wait();
        gitlab.assert_strict();
    }
}

/// A script line that fills the small disk with a file.
fn fill(file: &str) -> String {
    format!("dd if=/dev/zero of={file} bs=64k count=1024")
}

#[test]
fn a_container_that_fills_the_engines_disk_fails_only_its_job() {
    let engine = Docker::on_small_disk("48m");
    let gitlab = GitLab::start();
    let home = Scenario::containers().engine(&engine.host()).home(&gitlab);
    let full = [&fill("/filler"), "echo not reached"];
    let loud = [&format!("({}) || echo full", fill("/filler")), "seq 1 20000", "exit 6"];
    let ids = [
        gitlab.queue(job(&full).after_script(&["echo after"]).build()),
        gitlab.queue(job(&loud).after_script(&["echo after"]).build()),
        gitlab.queue(job(&["echo well"]).build()),
    ];
    let mut agent = home.start(&["--max-builds", "3"]);
    if is_podman_run() {
        // Podman cannot start the next container on the full disk.
        assert_eq!(gitlab.finished(ids[0]).exit_code, Some(1));
        return;
    }
    let [first, second, third] = ids.map(|id| gitlab.finished(id));
    assert_eq!(
        (first.failure_reason.as_deref(), first.exit_code),
        (Some("script_failure"), Some(1)),
        "{}",
        first.log()
    );
    assert!(first.has("No space left on device") && !first.lines().contains(&"not reached".to_owned()));
    assert_eq!(second.exit_code, Some(6), "{}", second.log());
    let lines = second.lines();
    let numbers: Vec<&String> = lines.iter().filter(|line| line.parse::<u32>().is_ok()).collect();
    assert_eq!((numbers.len(), numbers.last().map(|line| line.as_str())), (20_000, Some("20000")));
    assert!(lines.contains(&"full".to_owned()), "{}", second.log());
    assert!(second.has("the disk of the container engine is full"), "{}", second.log());
    assert_eq!(third.state, "success", "{}", third.log());
    assert!(agent.wait().success());
    assert_eq!(engine.run(&["ps", "-aq"]), "", "{}", agent.log());
    gitlab.assert_strict();
}

#[test]
fn a_container_that_fills_the_builds_disk_keeps_its_result_and_its_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let builds = Small::mount(directory.path().join("builds"));
    // An engine sees only the mounts that existed when it started.
    let engine = Docker::start();
    let gitlab = GitLab::start();
    let keys = "[runners.docker.tmpfs]\n\"/scratch\" = \"size=1m\"";
    let own = format!("[runners.mayfly]\nbuilds_dir = \"{}\"", builds.0.display());
    let home = Scenario::containers().engine(&engine.host()).runner(&own).docker(keys).home(&gitlab);
    let artifact = json!([{"name": "out", "paths": ["small.txt"], "when": "always", "artifact_format": "zip",
        "artifact_type": "archive"}]);
    let cache = json!([{"key": "k", "paths": ["small.txt"], "policy": "push", "when": "always"}]);
    let lines = [
        "echo kept >small.txt",
        &format!("({}) || echo scratch is full", fill("/scratch/filler")),
        &format!("({}) || echo builds are full", fill("filler")),
        "seq 1 20000; exit 6",
    ];
    let full = job(&lines).after_script(&["echo after"]).set("artifacts", artifact).set("cache", cache);
    let ids = [gitlab.queue(full.build()), gitlab.queue(job(&["ls", "echo well"]).build())];
    let mut agent = home.start(&["--max-builds", "2"]);
    let [first, second] = ids.map(|id| gitlab.finished(id));
    assert_eq!(
        (first.failure_reason.as_deref(), first.exit_code),
        (Some("script_failure"), Some(6)),
        "{}",
        first.log()
    );
    for part in ["scratch is full", "builds are full", "20000", "after"] {
        assert!(first.lines().contains(&part.to_owned()), "{part} in {}", first.log());
    }
    assert_eq!(first.artifacts.len(), 1, "{}", first.log());
    assert_eq!(second.state, "success", "{}", second.log());
    assert!(agent.wait().success());
    assert_eq!(engine.run(&["ps", "-aq"]), "", "{}", agent.log());
    gitlab.assert_strict();
}

/// Runs a job whose project directory starts empty and that has one cache.
fn run_with_cache(gitlab: &GitLab, home: &Home, job: JobBuilder) -> Job {
    let cache = json!([{"key": "deps", "paths": ["vendor/"], "policy": "pull", "when": "on_success", "untracked": false,
        "fallback_keys": null}]);
    run(gitlab, home, job.set("cache", cache))
}

fn run(gitlab: &GitLab, home: &Home, job: JobBuilder) -> Job {
    let job = home.run(gitlab, job.variable("GIT_STRATEGY", "empty"));
    assert_eq!(job.state, "success", "{}", job.log());
    job
}

/// Saves a cache that contains a small file and one larger than the small disk.
fn fill_cache(gitlab: &GitLab, home: &Home) {
    let cache = json!([{"key": "deps", "paths": ["vendor/"], "policy": "push", "when": "on_success", "untracked": false,
        "fallback_keys": null}]);
    let script = ["mkdir vendor; echo small >vendor/a", "head -c 9000000 /dev/urandom >vendor/b"];
    run(gitlab, home, job(&script).set("cache", cache));
}

#[test]
fn a_cache_too_large_to_extract_is_a_miss_and_its_archive_is_kept() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    let caches = format!("cache_dir = \"{}\"", home.path("cache").display());
    Scenario::shell().runner(&caches).write(&home, &gitlab.url);
    fill_cache(&gitlab, &home);
    let small = Small::mount(home.path("small"));
    let cramped = Scenario::shell().runner(&format!("{caches}\nbuilds_dir = \"{}\"", small.0.display())).home(&gitlab);
    let script = "wc -c vendor/* || true; echo on";
    for clean_up in ["false", "true"] {
        let job = job(&[script]).variable("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", clean_up);
        let full = run_with_cache(&gitlab, &cramped, job);
        let warning = "WARNING: cache deps: cannot extract the archive: vendor/b: 9000000 bytes, but only ";
        assert!(full.has(warning) && full.has("Failed to extract cache"), "{}", full.log());
        assert!(full.lines().contains(&"on".to_owned()), "{}", full.log());
        assert!(!full.lines().iter().any(|line| line.ends_with(" vendor/b")), "no half of a file: {}", full.log());
        if clean_up == "true" {
            assert!(!full.lines().iter().any(|line| line.ends_with(" vendor/a")), "nothing of it: {}", full.log());
        }
    }
    let roomy = run_with_cache(&gitlab, &home, job(&[script]));
    assert!(roomy.lines().contains(&"9000000 vendor/b".to_owned()), "{}", roomy.log());
}

#[test]
fn a_cache_too_large_to_save_is_a_miss() {
    let (gitlab, s3) = (GitLab::start(), S3::start());
    let shared = s3.configuration("Shared = true", &S3::keys());
    fill_cache(&gitlab, &Scenario::shell().runner(&shared).home(&gitlab));
    let home = Home::empty();
    let small = Small::mount(home.path("small"));
    Scenario::shell().runner(&format!("cache_dir = \"{}\"\n{shared}", small.0.display())).write(&home, &gitlab.url);
    let full = run_with_cache(&gitlab, &home, job(&["ls vendor || echo nothing"]));
    assert!(full.has("WARNING: cache deps: the disk is full; no space for the cache in "), "{}", full.log());
    assert!(full.lines().contains(&"nothing".to_owned()), "{}", full.log());
    let left = Command::new("find").arg(&small.0).args(["-type", "f", "-size", "+1k"]).output().expect("run find");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "what came of it does not stay");
}
