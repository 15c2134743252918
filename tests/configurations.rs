//! Configuration files as operators have them: one runner that mayfly cannot run, a link to the current release, one
//! file for each of two agents.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::docker::docker;
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Home, read};
use crate::support::scenario::Scenario;

#[test]
fn a_runner_that_mayfly_cannot_run_does_not_keep_the_others_from_working() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    for executor in ["kubernetes", "ssh", "custom", "parallels"] {
        let more = format!("[[runners]]\nname = \"{executor}\"\nurl = \"{}\"\ntoken = \"glrt-x\"\n", gitlab.url);
        let text = format!("{}\n{more}executor = \"{executor}\"\n", read(&home.config()));
        fs::write(home.config(), text).expect("write a file");
    }
    let id = gitlab.queue(job(&["echo ran"]).build());
    let mut agent = home.start(&["--once"]);
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success());
    let check = home.call(&["check", "--config", &home.config().display().to_string()]);
    let report = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(!check.status.success(), "{report}");
    for executor in ["kubernetes", "ssh", "custom", "parallels"] {
        let part = format!("runner `{executor}`: `executor = \"{executor}\"`");
        assert!(agent.log().contains(&part), "{part} in {}", agent.log());
        assert!(report.contains(&part), "{part} in {report}");
    }
    gitlab.assert_strict();
}

#[test]
fn a_configuration_behind_a_link_is_reloaded_when_the_link_changes() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    for (release, name) in [("r1", "one"), ("r2", "two")] {
        let runner = format!("environment = [\"RELEASE={name}\"]");
        Scenario::shell().runner(&runner).write(&home, &gitlab.url);
        fs::create_dir(home.path(release)).expect("create the directory");
        fs::rename(home.config(), home.path(release).join("config.toml")).expect("rename the file");
    }
    symlink("r1", home.path("current")).expect("the link");
    symlink("current/config.toml", home.config()).expect("the link");
    let mut agent = home.start(&[]);
    let of_job = || {
        let id = gitlab.queue(job(&["echo release $RELEASE"]).build());
        gitlab.finished(id)
    };
    assert!(of_job().has("release one"), "{}", agent.log());
    symlink("r2", home.path("next")).expect("the link");
    fs::rename(home.path("next"), home.path("current")).expect("rename the file");
    agent.wait_for_log("configuration loaded");
    gitlab.wait_for_fresh_request();
    assert!(of_job().has("release two"), "{}", agent.log());
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn two_agents_with_their_own_files_do_not_touch_each_others_jobs_and_containers() {
    let gitlab = GitLab::start();
    let state = tempfile::tempdir().expect("a directory");
    let directory = state.path().display().to_string();
    let homes = [(); 2].map(|()| {
        let home = Scenario::containers().home(&gitlab);
        let text = read(&home.config());
        let kept = text.lines().filter(|line| !line.starts_with("state_dir")).map(|line| format!("{line}\n"));
        fs::write(home.config(), kept.collect::<String>()).expect("write a file");
        home
    });
    let start = |home: &Home| home.start_with(&[], &[("STATE_DIRECTORY", directory.as_str())]);
    let wait = until_there("go");
    let held = gitlab.queue(job(&["touch here.txt; echo begun", &wait, "echo finished"]).build());
    let mut first = start(&homes[0]);
    gitlab.wait_for_log(held, "begun");
    let label = "label=com.gitlab.gitlab-runner.job.id";
    let containers = || docker().run(&["ps", "-q", "--no-trunc", "--filter", &format!("{label}={held}")]);
    let running = containers();
    assert!(!running.is_empty());
    // Its start removes the containers of earlier agents, and its end waits for that.
    let mut second = start(&homes[1]);
    let other = gitlab.queue(job(&["echo other"]).build());
    assert_eq!(gitlab.finished(other).state, "success", "{}", second.log());
    second.drain();
    assert_eq!(containers(), running, "{}", second.log());
    assert_eq!(fs::read_dir(state.path()).expect("a directory").count(), 2, "a state directory for each file");
    let here = crate::storage::project(&homes[0], "here.txt").expect("the directory of the job");
    fs::write(here.with_file_name("go"), "").expect("write a file");
    let job = gitlab.finished(held);
    assert!(job.state == "success" && job.has("finished"), "{}", job.log());
    first.drain();
    gitlab.assert_strict();
}
