//! The limits for build directories, cache volumes and pulled images that jobs leave on the machine.

use std::path::PathBuf;

use serde_json::json;

use crate::metrics::wait_for;
use crate::support::docker::{Docker, docker};
use crate::support::git::GitServer;
use crate::support::gitlab::GitLab;
use crate::support::job::{JobBuilder, job, until_there};
use crate::support::mayfly::{Agent, Home};
use crate::support::ports::free_address;
use crate::support::registry::{PASSWORD, Registry, USER, login};
use crate::support::scenario::Scenario;

/// A job of this project that leaves 300 KB.
fn of_project(name: &str) -> JobBuilder {
    let url = format!("https://gitlab-ci-token:x@gitlab.test/team/{name}.git");
    job(&["head -c 300000 /dev/urandom >big"]).set("git_info", json!({"repo_url": url, "ref": "main", "sha": "0"}))
}

fn run(gitlab: &GitLab, agent: &Agent, job: JobBuilder) {
    let id = gitlab.queue(job.build());
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}\n{}", job.log(), agent.log());
}

/// The directory of a project below the builds directory.
pub fn project(home: &Home, name: &str) -> Option<PathBuf> {
    fn find(directory: PathBuf, name: &str) -> Option<PathBuf> {
        let entries: Vec<_> = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
        entries
            .iter()
            .find(|path| path.file_name().is_some_and(|found| found == name))
            .cloned()
            .or_else(|| entries.into_iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
    }
    find(home.path("builds"), name)
}

#[test]
fn the_least_recently_used_build_directories_go_when_there_are_too_many_bytes() {
    let gitlab = GitLab::start();
    let address = free_address();
    let limits = "[runners.mayfly]\nbuilds_max_size = 700000";
    let home = Scenario::shell().config(&format!("listen_address = \"{address}\"")).runner(limits).home(&gitlab);
    let mut agent = home.start(&[]);
    for name in ["first", "second"] {
        run(&gitlab, &agent, of_project(name));
    }
    // The record has whole seconds, and the agent notes a use shortly after the end of the job: use the first one again
    // when two seconds have begun, so that the second one is older.
    let seconds = || std::time::UNIX_EPOCH.elapsed().expect("the clock must be after 1970").as_secs();
    let used = seconds();
    agent.wait_until("the second after the next", || seconds() > used + 1);
    run(&gitlab, &agent, of_project("first"));
    assert!(project(&home, "first").is_some() && project(&home, "second").is_some());
    run(&gitlab, &agent, of_project("third"));
    agent.wait_for_log("build directory removed");
    wait_for(&agent, &address, "/metrics", "mayfly_builds_removed_total 1");
    assert!(project(&home, "second").is_none(), "{}", agent.log());
    assert!(project(&home, "first").is_some() && project(&home, "third").is_some(), "{}", agent.log());
    let (_, metrics) = wait_for(&agent, &address, "/metrics", "mayfly_builds_bytes{");
    let bytes = metrics.lines().find_map(|line| line.strip_prefix("mayfly_builds_bytes{")).expect("a sample");
    let bytes: f64 = bytes.rsplit(' ').next().and_then(|bytes| bytes.parse().ok()).expect("a number");
    assert!((600_000.0..700_000.0).contains(&bytes), "{bytes}");
    agent.drain();
}

#[test]
fn build_directories_from_before_are_limited_too() {
    let of_shell = ["old/0/team/left/big", "old/0/team/left.tmp/x", "data/0/team/no-project/big"];
    let of_containers = ["old/project-5-0/team/left/big", "old/unknown-5-0/team/left/big"];
    for (scenario, paths, gone, kept) in [
        (Scenario::shell(), &of_shell[..], "old/0/team/left", "data/0/team/no-project/big"),
        (Scenario::containers(), &of_containers[..], "old/project-5-0", "old/unknown-5-0/team/left/big"),
    ] {
        let gitlab = GitLab::start();
        let home = scenario.runner("[runners.mayfly]\nbuilds_max_size = 100000").home(&gitlab);
        let builds = home.path("builds");
        for path in paths {
            let path = builds.join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("create the directory");
            std::fs::write(path, vec![1; 300_000]).expect("write a file");
        }
        let mut agent = home.start(&[]);
        run(&gitlab, &agent, job(&["true"]));
        agent.wait_for_log("build directory removed");
        assert!(!builds.join(gone).exists() && builds.join(kept).exists(), "{}", agent.log());
        assert!(agent.log().contains("unrecorded build directories found"), "{}", agent.log());
        agent.drain();
    }
}

#[test]
fn without_limits_every_build_directory_stays() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&["--max-builds", "2"]);
    for name in ["first", "second"] {
        run(&gitlab, &agent, of_project(name));
    }
    assert!(agent.wait().success());
    assert!(project(&home, "first").is_some() && project(&home, "second").is_some());
}

#[test]
fn the_build_directories_of_containers_are_limited_too() {
    let root = tempfile::tempdir().expect("a directory");
    let git = GitServer::start(root.path());
    let gitlab = GitLab::start();
    let home = Scenario::containers().runner("[runners.mayfly]\nbuilds_max_size = 600000").home(&gitlab);
    let agent = home.start(&[]);
    for (number, name) in ["first", "second", "third"].into_iter().enumerate() {
        let (url, sha) = git.repository(&format!("team/{name}"), &[("file.txt", "x\n")]);
        let mut payload = job(&["head -c 300000 /dev/urandom >big; chmod 700 ."]).sources(&url, &sha).build();
        payload["job_info"]["project_id"] = json!(number + 10);
        let id = gitlab.queue(payload);
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "{}", job.log());
    }
    agent.wait_for_log("build directory removed");
    gitlab.wait_until("the removal", |_| project(&home, "first").is_none());
    assert!(project(&home, "third").is_some(), "{}", agent.log());
}

#[test]
fn images_that_a_job_pulled_go_when_they_are_unused_and_others_stay() {
    let docker = docker();
    let registry = Registry::start(docker);
    let (made, local) = (docker.image(&["ENV NAME=old"]), docker.image(&["ENV NAME=local"]));
    let old = registry.push(&made, "old");
    docker.run(&["rmi", &made]);
    let gitlab = GitLab::start();
    let runner = format!(
        "environment = ['DOCKER_AUTH_CONFIG={}']\n[runners.mayfly]\nimages_max_age = \"1s\"",
        login(&registry.address, USER, PASSWORD)
    );
    let home = Scenario::containers().runner(&runner).home(&gitlab);
    let agent = home.start(&[]);
    let here =
        |image: &str| docker.command(&["image", "inspect", image]).output().expect("run docker").status.success();
    for image in [&old, &local] {
        let id = gitlab.queue(job(&["echo ran"]).set("image", json!({"name": image})).build());
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "{}", job.log());
    }
    let id = gitlab.queue(job(&["sleep 4"]).build());
    gitlab.finished(id);
    agent.wait_for_log("unused image removed");
    gitlab.wait_until("the removal", |_| !here(&old));
    assert!(here(&local) && here("busybox:local"), "{}", agent.log());
}

/// The names of the engine's volumes that belong to jobs.
fn cache_volumes(engine: &Docker) -> Vec<String> {
    let volumes = engine.run(&["volume", "ls", "--quiet", "--filter", "label=com.gitlab.gitlab-runner.managed=true"]);
    volumes.lines().map(str::to_owned).collect()
}

#[test]
fn the_least_recently_used_cache_volumes_go_and_none_that_a_job_uses() {
    // A separate engine, because other tests also create cache volumes.
    let engine = Docker::start();
    let gitlab = GitLab::start();
    let address = free_address();
    let limits = "[runners.mayfly]\ncache_volumes_max_size = 700000";
    let scenario = Scenario::containers().engine(&engine.host()).docker("volumes = [\"/cache\"]").runner(limits);
    let home = scenario.config(&format!("concurrent = 2\nlisten_address = \"{address}\"")).home(&gitlab);
    engine.run(&["volume", "create", "--label", "com.gitlab.gitlab-runner.managed=true", "of-others"]);
    let of_project = |project: u32, lines: &[&str]| {
        let mut payload = job(lines).build();
        payload["job_info"]["project_id"] = json!(project);
        gitlab.queue(payload)
    };
    let fill = "head -c 300000 /dev/urandom >/cache/big";
    let pass = |agent: &Agent, id: i64| {
        let job = gitlab.finished(id);
        assert_eq!(job.state, "success", "{}\n{}", job.log(), agent.log());
    };
    let mut agent = home.start(&[]);
    // The first project's volume is the least recently used one, but its job runs until the end.
    let held = of_project(1, &[fill, "touch here.txt; echo begun", &until_there("go"), "wc -c </cache/big"]);
    gitlab.wait_for_log(held, "begun");
    pass(&agent, of_project(2, &[fill]));
    assert_eq!(cache_volumes(&engine).len(), 3, "{}", agent.log());
    pass(&agent, of_project(3, &[fill]));
    agent.wait_for_log("unused cache volume removed");
    wait_for(&agent, &address, "/metrics", "mayfly_cache_volumes_removed_total 1");
    let left = cache_volumes(&engine);
    assert!(left.len() == 3 && left.contains(&"of-others".to_owned()), "{left:?}");
    let here = project(&home, "here.txt").expect("the directory of the first job");
    std::fs::write(here.with_file_name("go"), "").expect("write a file");
    let first = gitlab.finished(held);
    assert!(first.state == "success" && first.has("300000"), "{}", first.log());
    agent.drain();
}
