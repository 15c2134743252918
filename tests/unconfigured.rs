//! Jobs outlive the configuration: the agent resumes, finishes and reports them if `config.toml` is unusable, and
//! refuses a hand-over.

use std::fs;

use serde_json::json;

use crate::support::gitlab::{Fault, GitLab};
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Agent, Home, read};
use crate::support::scenario::Scenario;

/// Files that no agent can use.
const BROKEN: [&str; 3] = ["concurrent = \"many\"\n", "concurrent = = 1\n", "[[runners]\n"];

/// Kills an agent while its job waits for the file `go`; returns the id of the job.
fn dead_agent(home: &Home, gitlab: &GitLab) -> i64 {
    let wait = until_there(home.path("go").display());
    let id = gitlab.queue(job(&["echo begun", &wait, "echo finished"]).after_script(&["echo after"]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    id
}

fn go(home: &Home) {
    fs::write(home.path("go"), "").expect("write the file");
}

fn assert_finished(gitlab: &GitLab, id: i64, agent: &Agent) {
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}\n{}", job.log(), agent.log());
    for line in ["begun", "finished", "after", "Job succeeded"] {
        assert_eq!(job.lines().iter().filter(|other| *other == line).count(), 1, "{line} in {:#?}", job.lines());
    }
}

#[test]
fn a_job_is_finished_and_reported_without_a_usable_configuration() {
    std::thread::scope(|scope| {
        for broken in BROKEN {
            scope.spawn(move || {
                let gitlab = GitLab::start();
                let home = Scenario::shell().home(&gitlab);
                let id = dead_agent(&home, &gitlab);
                let good = read(&home.config());
                fs::write(home.config(), format!("{broken}{good}")).expect("write the file");
                let waiting = gitlab.queue(job(&["true"]).build());
                let mut next = home.start(&[]);
                next.wait_for_log("the configuration cannot be used; finishing the jobs");
                next.wait_for_log("job resumed from journal");
                let polls = gitlab.count("POST jobs/request");
                go(&home);
                assert_finished(&gitlab, id, &next);
                // Without a configuration the agent has nothing left to do.
                assert!(!next.wait().success(), "{}", next.log());
                assert_eq!((gitlab.count("POST jobs/request"), gitlab.job_state(waiting).as_str()), (polls, "pending"));
                gitlab.assert_strict();
            });
        }
    });
}

#[test]
fn a_job_is_finished_without_a_file_that_names_its_state_directory() {
    type Change = fn(&Home);
    let changes: [(Change, &str); 3] = [
        (|home| fs::remove_file(home.config()).expect("remove the file"), "the configuration cannot be used"),
        (
            |home| fs::write(home.config(), "concurrent = [\n").expect("write the file"),
            "the configuration cannot be used",
        ),
        (|home| fs::write(home.config(), "").expect("write the file"), "the old directory has jobs"),
    ];
    for (change, line) in changes {
        let gitlab = GitLab::start();
        let home = Scenario::shell().home(&gitlab);
        let id = dead_agent(&home, &gitlab);
        change(&home);
        let next = home.start(&[]);
        next.wait_for_log(line);
        next.wait_for_log("job resumed from journal");
        go(&home);
        assert_finished(&gitlab, id, &next);
        gitlab.assert_strict();
    }
}

#[test]
fn a_hand_over_is_refused_if_the_metrics_listener_could_not_start() {
    let gitlab = GitLab::start();
    let scenario = |address: &str| Scenario::shell().config(&format!("listen_address = \"{address}\""));
    let home = scenario("127.0.0.1:0").home(&gitlab);
    let agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    // An address of documentation (RFC 5737), which no machine has.
    scenario("192.0.2.9:9252").write(&home, &gitlab.url);
    agent.wait_for_log("the old one stays in use");
    agent.signal("USR2");
    agent.wait_for_log("hand-over refused");
    let id = gitlab.queue(job(&["echo ran"]).build());
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
}

#[test]
fn polling_starts_once_the_configuration_is_mended() {
    let gitlab = GitLab::start();
    let marked = |mark: &str| {
        let scenario = Scenario::shell().config("listen_address = \"127.0.0.1:0\"");
        scenario.runner(&format!("environment = [\"MARK={mark}\"]"))
    };
    let home = marked("before").home(&gitlab);
    let id = dead_agent(&home, &gitlab);
    let good = read(&home.config());
    fs::write(home.config(), format!("{}{good}", BROKEN[0])).expect("write the file");
    let mut next = home.start(&[]);
    next.wait_for_log("job resumed from journal");
    marked("after").write(&home, &gitlab.url);
    next.wait_for_log("configuration loaded");
    go(&home);
    assert_finished(&gitlab, id, &next);
    let later = gitlab.queue(job(&["echo $MARK"]).build());
    assert!(gitlab.finished(later).has("after"));
    next.drain();
    gitlab.assert_strict();
}

#[test]
fn an_agent_without_work_does_not_start_with_a_broken_file() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    fs::write(home.config(), BROKEN[0]).expect("write the file");
    let output = home.call(&["run", "--config", &home.config().display().to_string()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("concurrent"));
    assert!(!home.path("state").exists());
}

#[test]
fn a_job_keeps_the_settings_it_began_with() {
    let gitlab = GitLab::start();
    let home = Scenario::shell()
        .runner("environment = [\"MARK=before\"]\npost_build_script = \"echo $MARK the end\"")
        .home(&gitlab);
    let id = dead_agent(&home, &gitlab);
    // The configuration has neither the job's runner nor its settings any more.
    Scenario::shell().token("glrt-another-token").write(&home, &gitlab.url);
    let mut next = home.start(&[]);
    next.wait_for_log("job resumed from journal");
    let record = home.record();
    assert!(!record.to_string().contains("glrt-tokenOfTheRunner"), "the token is in no journal: {record}");
    go(&home);
    assert_finished(&gitlab, id, &next);
    assert!(gitlab.job(id).has("before the end"), "{}", gitlab.job(id).log());
    next.signal("QUIT");
    next.wait();
}

#[test]
fn a_job_in_a_container_keeps_its_sandbox_without_a_configuration() {
    let gitlab = GitLab::start();
    let home = Scenario::containers()
        .runner("[runners.mayfly]\nconfined_uid = 64123\nconfined_memory = \"300m\"")
        .home(&gitlab);
    let artifacts = json!([{"name": "a", "paths": ["a.txt"], "artifact_type": "archive", "artifact_format": "zip"}]);
    let script = job(&["echo begun; echo x >a.txt", &until_there("go"), "echo finished"]).set("artifacts", artifacts);
    let id = gitlab.queue(script.build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    let confinement = |home: &Home| {
        let record = home.record();
        let groups = record["progress"]["stage"]["state"]["step"]["cgroups"].as_array().cloned().unwrap_or_default();
        let limit = |group: &serde_json::Value| {
            let group = std::path::PathBuf::from(group.as_str().expect("a path"));
            let v1 = read(&group.join("memory.limit_in_bytes"));
            v1 + &read(&group.join("memory.max"))
        };
        groups.iter().map(limit).collect::<String>()
    };
    fs::write(home.config(), format!("{}{}", BROKEN[0], read(&home.config()))).expect("write the file");
    let mut next = home.start(&[]);
    next.wait_for_log("job resumed from journal");
    gitlab.fail("POST artifacts", [Fault::Slow(std::time::Duration::from_secs(5))]);
    let project = home.path("builds");
    let checkout = find(&project, "a.txt").expect("the project directory");
    fs::write(checkout.with_file_name("go"), "").expect("write the file");
    gitlab.wait_until("the upload", |_| home.record()["progress"]["stage"]["section"] == "upload_artifacts_on_success");
    // The shim creates the group, and then writes its limits.
    let memory = (300_u64 << 20).to_string();
    gitlab.wait_until("the memory limit of the group", |_| confinement(&home).contains(&memory));
    let job = gitlab.finished(id);
    assert_eq!((job.state.as_str(), job.artifacts.len()), ("success", 1), "{}", job.log());
    assert!(!next.wait().success(), "{}", next.log());
}

/// The file with this name below a directory.
fn find(directory: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|path| match path.file_name()? {
        found if found == name => Some(path.clone()),
        _ if path.is_dir() => find(&path, name),
        _ => None,
    })
}

#[test]
fn a_hand_over_with_a_broken_file_is_refused_and_tells_why() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let wait = until_there(home.path("go").display());
    let id = gitlab.queue(job(&["echo begun", &wait, "echo finished"]).after_script(&["echo after"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    let good = read(&home.config());
    fs::write(home.config(), format!("{}{good}", BROKEN[0])).expect("write the file");
    agent.wait_for_log("cannot apply the configuration");
    agent.signal("USR2");
    agent.wait_for_log("hand-over refused");
    let refused = agent.log().lines().find(|line| line.contains("hand-over refused")).map(str::to_owned);
    assert!(refused.is_some_and(|line| line.contains("concurrent")), "{}", agent.log());
    assert!(!agent.log().contains("job resumed"), "{}", agent.log());
    fs::write(home.config(), good).expect("write the file");
    agent.wait_for_log("configuration loaded");
    agent.signal("USR2");
    agent.wait_for_log("job resumed from journal");
    go(&home);
    assert_finished(&gitlab, id, &agent);
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn many_hand_overs_are_no_deaths_of_the_agent() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let wait = until_there(home.path("go").display());
    let id = gitlab.queue(job(&["echo begun", &wait, "echo finished"]).after_script(&["echo after"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    for round in 1..=7 {
        agent.signal("USR2");
        gitlab.wait_until("the next program", |_| agent.log().matches("job resumed from journal").count() == round);
    }
    go(&home);
    assert_finished(&gitlab, id, &agent);
    agent.drain();
    gitlab.assert_strict();
}

#[test]
fn a_hand_over_that_would_lose_the_journal_is_refused() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let wait = until_there(home.path("go").display());
    let id = gitlab.queue(job(&["echo begun", &wait, "echo finished"]).after_script(&["echo after"]).build());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    let state = home.path("state").display().to_string();
    for other in ["/proc/nowhere".to_owned(), format!("{state}-2")] {
        Scenario::shell().state_dir(&other).write(&home, &gitlab.url);
        let before = agent.log().matches("hand-over refused").count();
        agent.signal("USR2");
        gitlab.wait_until("the refusal", |_| agent.log().matches("hand-over refused").count() > before);
        assert!(agent.log().contains(&other), "{}", agent.log());
    }
    go(&home);
    assert_finished(&gitlab, id, &agent);
    agent.drain();
}
