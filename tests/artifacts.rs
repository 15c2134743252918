//! Artifacts: to GitLab, and from the jobs that this one depends on.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::gitlab::{Answer, Fault, GitLab, Job};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::Home;

fn archive(paths: &[&str]) -> Value {
    json!({"name": "out", "paths": paths, "when": "on_success", "artifact_type": "archive", "artifact_format": "zip",
        "expire_in": "1 week", "untracked": false, "exclude": null})
}

fn run(gitlab: &GitLab, home: &Home, job: JobBuilder) -> Job {
    let id = gitlab.queue(job.build());
    let mut agent = home.start(&["--once"]);
    let job = gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    gitlab.assert_strict();
    job
}

/// What `unzip` finds in an archive.
fn unzipped(home: &Home, content: &[u8], file: &str) -> String {
    let path = home.path("archive.zip");
    std::fs::write(&path, content).expect("written");
    let output = Command::new("unzip").arg("-p").arg(&path).arg(file).output().expect("unzip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn files_and_reports_reach_gitlab() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "user = \"nobody\"", "");
    let script = [
        "mkdir -p dist/deep",
        "echo one >dist/a.txt",
        "echo two >dist/deep/b.txt",
        "echo no >dist/c.tmp",
        "echo '<x/>' >report.xml",
    ];
    let mut main = archive(&["dist/"]);
    main["exclude"] = json!(["dist/*.tmp"]);
    main["name"] = json!("build-$CI_JOB_NAME");
    let report = json!({"name": "junit.xml", "paths": ["report.xml"], "when": "always", "artifact_type": "junit", "artifact_format": "gzip"});
    let job = run(&gitlab, &home, job(&script).set("artifacts", json!([main, report])));
    assert_eq!(job.state, "success", "{}", job.log());
    let [zip, gzip] = &job.artifacts[..] else { panic!("two uploads: {:?}", job.lines()) };
    assert_eq!((zip.name.as_str(), zip.kind.as_str(), zip.expire_in.as_str()), ("build-unit.zip", "archive", "1 week"));
    assert_eq!(unzipped(&home, &zip.content, "dist/deep/b.txt"), "two\n");
    assert_eq!(unzipped(&home, &zip.content, "dist/c.tmp"), "");
    assert_eq!((gzip.name.as_str(), gzip.kind.as_str()), ("junit.xml.gz", "junit"));
    assert_eq!((zip.format.as_str(), gzip.format.as_str()), ("zip", "gzip"));
    let mut gunzip = Command::new("gunzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gunzip");
    gunzip.stdin.take().expect("a pipe").write_all(&gzip.content).expect("written");
    assert_eq!(gunzip.wait_with_output().expect("ended").stdout, b"<x/>\n");
    assert!(job.log().contains("upload_artifacts_on_success") && job.log().contains("found 4 matching artifact files"));
}

#[test]
fn only_artifacts_that_fit_the_outcome_are_uploaded() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "", "");
    let with = |when: &str| {
        let mut artifact = archive(&["f"]);
        artifact["when"] = json!(when);
        artifact["name"] = json!(when);
        artifact
    };
    let all = json!([with("on_success"), with("on_failure"), with("always")]);
    let job = run(&gitlab, &home, job(&["echo x >f", "exit 5"]).set("artifacts", all));
    let names: Vec<&str> = job.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    assert_eq!(names, ["on_failure.zip", "always.zip"]);
    assert_eq!(job.exit_code, Some(5), "the first failure counts");
}

#[test]
fn links_out_of_the_project_are_not_followed() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "", "");
    std::fs::create_dir(home.path("outside")).expect("made");
    std::fs::write(home.path("outside/secret.txt"), "secret of the machine").expect("written");
    let link = format!("ln -s {} link; echo ok >f", home.path("outside").display());
    let paths = ["link/secret.txt", "link/*.txt", "link", "../*", "/etc/passwd", "f"];
    let job = run(&gitlab, &home, job(&[&link]).set("artifacts", json!([archive(&paths)])));
    assert_eq!(job.state, "success", "{}", job.log());
    let content = &job.artifacts[0].content;
    let listed = {
        std::fs::write(home.path("archive.zip"), content).expect("written");
        let output = Command::new("unzip").arg("-Z1").arg(home.path("archive.zip")).output().expect("unzip");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!listed.contains("secret.txt") && !listed.contains("passwd") && listed.contains('f'), "{listed}");
    assert!(!content.windows(21).any(|window| window == b"secret of the machine"));
}

#[test]
fn uploads_are_repeated_and_refusals_are_final() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "", "");
    let good = || job(&["echo x >f"]).set("artifacts", json!([archive(&["f"])]));
    gitlab.fail("POST artifacts", [Fault::Answer(Answer::new(503)), Fault::TakeAndCut]);
    let repeated = run(&gitlab, &home, good());
    assert_eq!(repeated.state, "success", "{}", repeated.log());
    assert_eq!(unzipped(&home, &repeated.artifacts.last().expect("an upload").content, "f"), "x\n", "whole each time");
    let before = gitlab.count("POST artifacts");
    gitlab.fail("POST artifacts", [Fault::Answer(Answer::new(413))]);
    let too_large = run(&gitlab, &home, good());
    assert_eq!(too_large.failure_reason.as_deref(), Some("script_failure"));
    assert!(too_large.log().contains("too large"), "{}", too_large.log());
    assert_eq!(gitlab.count("POST artifacts"), before + 1);
}

#[test]
fn a_dependency_is_downloaded_without_leaking_its_token() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "user = \"nobody\"", "");
    // The first job goes on while the second asks for its artifacts: a fake GitLab gives them to a live job's token.
    let made = run(
        &gitlab,
        &home,
        job(&["mkdir -p out; printf '#!/bin/sh\\necho ran\\n' >out/tool; chmod 755 out/tool"])
            .set("artifacts", json!([archive(&["out"])])),
    );
    let dependencies = json!([
        {"id": made.id, "name": "build", "token": made.token, "artifacts_file": {"filename": "out.zip", "size": 1}},
        {"id": 1, "name": "without", "token": "x", "artifacts_file": null},
    ]);
    let used =
        run(&gitlab, &home, job(&["rm -rf ./*.unrelated; ./out/tool"]).set("dependencies", dependencies.clone()));
    assert_eq!(used.state, "success", "{}", used.log());
    assert!(used.lines().contains(&"ran".to_owned()));
    let mut missing = dependencies;
    missing[0]["token"] = json!("glcbt-wrong");
    let refused = run(&gitlab, &home, job(&["echo never"]).set("dependencies", missing));
    assert_eq!((refused.state.as_str(), refused.exit_code), ("failed", Some(1)));
    assert!(refused.log().contains("permission denied") && !refused.lines().contains(&"never".to_owned()));
}

#[test]
fn an_agent_killed_during_an_upload_is_followed() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "", "");
    gitlab.fail("POST artifacts", std::iter::repeat_n(Fault::Answer(Answer::new(503)), 3));
    let id = gitlab.queue(job(&["head -c 3000000 /dev/urandom >f"]).set("artifacts", json!([archive(&["f"])])).build());
    let agent = home.start(&[]);
    gitlab.wait_until("the upload", |server| server.count("POST artifacts") >= 1);
    agent.kill();
    let mut next = home.start(&[]);
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}", job.log());
    assert_eq!(job.artifacts.len(), 1);
    next.signal("QUIT");
    next.wait();
    gitlab.assert_strict();
}
