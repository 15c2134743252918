//! Artifacts: uploads to GitLab, and downloads from the jobs that a job depends on.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::gitlab::{Answer, Fault, GitLab};
use crate::support::job::{JobBuilder, job};
use crate::support::mayfly::{Home, kill_shims, peak_memory_of_shims};
use crate::support::pki::{Chain, Pki};
use crate::support::proxy::tunnel_proxy;
use crate::support::scenario::Scenario;

fn archive(paths: &[&str]) -> Value {
    json!({"name": "out", "paths": paths, "when": "on_success", "artifact_type": "archive", "artifact_format": "zip",
        "expire_in": "1 week", "untracked": false, "exclude": null})
}

/// The output of `unzip` for an archive.
fn unzipped(home: &Home, content: &[u8], file: &str) -> String {
    let path = home.path("archive.zip");
    std::fs::write(&path, content).expect("write a file");
    let output = Command::new("unzip").arg("-p").arg(&path).arg(file).output().expect("run unzip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn uploads_artifacts_and_reports() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("user = \"nobody\"").home(&gitlab);
    let script = [
        "mkdir -p dist/deep",
        "echo one >dist/a.txt",
        "echo two >dist/deep/b.txt",
        "echo no >dist/c.tmp",
        "echo '<x/>' >report-1.xml; echo '<y/>' >report-2.xml",
        "echo raw >metrics.txt",
    ];
    let mut main = archive(&["dist/"]);
    main["exclude"] = json!(["dist/*.tmp"]);
    main["name"] = json!("build-$CI_JOB_NAME");
    let report = json!({"name": "junit.xml", "paths": ["report-*.xml"], "when": "always", "artifact_type": "junit", "artifact_format": "gzip"});
    let metrics =
        json!({"name": "metrics.txt", "paths": ["metrics.txt"], "artifact_type": "metrics", "artifact_format": "raw"});
    let job = home.run(&gitlab, job(&script).set("artifacts", json!([main, report, metrics])));
    assert_eq!(job.state, "success", "{}", job.log());
    let [zip, gzip, raw] = &job.artifacts[..] else { panic!("three uploads: {:?}", job.lines()) };
    assert_eq!((raw.name.as_str(), raw.format.as_str(), &raw.content[..]), ("metrics.txt", "raw", &b"raw\n"[..]));
    assert_eq!((zip.name.as_str(), zip.kind.as_str(), zip.expire_in.as_str()), ("build-unit.zip", "archive", "1 week"));
    assert_eq!(unzipped(&home, &zip.content, "dist/deep/b.txt"), "two\n");
    assert_eq!(unzipped(&home, &zip.content, "dist/c.tmp"), "");
    assert_eq!((gzip.name.as_str(), gzip.kind.as_str()), ("junit.xml.gz", "junit"));
    assert_eq!((zip.format.as_str(), gzip.format.as_str()), ("zip", "gzip"));
    let mut gunzip = Command::new("gunzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start gunzip");
    gunzip.stdin.take().expect("a pipe").write_all(&gzip.content).expect("write a file");
    assert_eq!(gunzip.wait_with_output().expect("must end").stdout, b"<x/>\n<y/>\n");
    assert!(job.log().contains("upload_artifacts_on_success") && job.log().contains("found 4 matching artifact files"));
}

#[test]
fn uploads_only_artifacts_whose_when_matches_the_result() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let with = |when: &str| {
        let mut artifact = archive(&["f"]);
        artifact["when"] = json!(when);
        artifact["name"] = json!(when);
        artifact
    };
    let all = json!([with("on_success"), with("on_failure"), with("always")]);
    let job = home.run(&gitlab, job(&["echo x >f", "exit 5"]).set("artifacts", all));
    let names: Vec<&str> = job.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    assert_eq!(names, ["on_failure.zip", "always.zip"]);
    assert_eq!(job.exit_code, Some(5), "the first failure counts");
}

#[test]
fn does_not_follow_links_out_of_the_project() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    std::fs::create_dir(home.path("outside")).expect("create the directory");
    std::fs::write(home.path("outside/secret.txt"), "secret of the machine").expect("write a file");
    let link = format!("ln -s {} link; echo ok >f", home.path("outside").display());
    let paths = ["link/secret.txt", "link/*.txt", "link", "../*", "/etc/passwd", "f"];
    let job = home.run(&gitlab, job(&[&link]).set("artifacts", json!([archive(&paths)])));
    assert_eq!(job.state, "success", "{}", job.log());
    let content = &job.artifacts[0].content;
    let listed = {
        std::fs::write(home.path("archive.zip"), content).expect("write a file");
        let output = Command::new("unzip").arg("-Z1").arg(home.path("archive.zip")).output().expect("run unzip");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!listed.contains("secret.txt") && !listed.contains("passwd") && listed.contains('f'), "{listed}");
    assert!(!content.windows(21).any(|window| window == b"secret of the machine"));
}

#[test]
fn retries_uploads_except_after_a_refusal() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let good = || job(&["echo x >f"]).set("artifacts", json!([archive(&["f"])]));
    let moved = Answer::new(307).with("Location", &format!("{}/elsewhere", gitlab.url));
    gitlab.fail("POST artifacts", [Fault::Answer(Answer::new(503)), Fault::Answer(moved), Fault::TakeAndCut]);
    let repeated = home.run(&gitlab, good());
    assert_eq!(repeated.state, "success", "{}", repeated.log());
    assert_eq!(unzipped(&home, &repeated.artifacts.last().expect("an upload").content, "f"), "x\n", "whole each time");
    let before = gitlab.count("POST artifacts");
    gitlab.fail("POST artifacts", [Fault::Answer(Answer::new(413))]);
    let too_large = home.run(&gitlab, good());
    assert_eq!(too_large.failure_reason.as_deref(), Some("script_failure"));
    assert!(too_large.log().contains("too large"), "{}", too_large.log());
    assert_eq!(gitlab.count("POST artifacts"), before + 1);
}

#[test]
fn retries_after_different_errors_share_one_time_limit() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let busy = |status| Fault::Answer(Answer::new(status).with("Retry-After", "1"));
    let outage = || [Fault::Cut, Fault::Cut].into_iter().chain([500, 502, 500, 502, 504, 500].map(busy));
    gitlab.fail("POST artifacts", outage());
    let made = home.run(&gitlab, job(&["echo x >f"]).set("artifacts", json!([archive(&["f"])])));
    assert_eq!(made.state, "success", "{}", made.log());
    let needs = json!([{"id": made.id, "name": "build", "token": made.token,
        "artifacts_file": {"filename": "out.zip", "size": 1}}]);
    gitlab.fail("GET artifacts", outage());
    let used = home.run(&gitlab, job(&["cat f"]).set("dependencies", needs));
    assert_eq!(used.state, "success", "{}", used.log());
}

#[test]
fn downloads_a_dependency_without_leaking_its_token() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("user = \"nobody\"").home(&gitlab);
    // The first job still runs while the second downloads its artifacts: the fake GitLab accepts only tokens of running
    // jobs.
    let made = home.run(
        &gitlab,
        job(&["mkdir -p out; printf '#!/bin/sh\\necho ran\\n' >out/tool; chmod 755 out/tool"])
            .set("artifacts", json!([archive(&["out"])])),
    );
    let dependencies = json!([
        {"id": made.id, "name": "build", "token": made.token, "artifacts_file": {"filename": "out.zip", "size": 1}},
        {"id": 1, "name": "without", "token": "x", "artifacts_file": null},
    ]);
    let used = home.run(&gitlab, job(&["rm -rf ./*.unrelated; ./out/tool"]).set("dependencies", dependencies.clone()));
    assert_eq!(used.state, "success", "{}", used.log());
    assert!(used.lines().contains(&"ran".to_owned()));
    let mut missing = dependencies;
    missing[0]["token"] = json!("glcbt-wrong");
    let refused = home.run(&gitlab, job(&["echo never"]).set("dependencies", missing));
    assert_eq!((refused.state.as_str(), refused.exit_code), ("failed", Some(1)));
    assert!(refused.log().contains("permission denied") && !refused.lines().contains(&"never".to_owned()));
}

#[test]
fn the_next_agent_repeats_an_interrupted_upload() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
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

#[test]
fn a_killed_file_task_is_repeated() {
    for route in ["POST artifacts", "GET artifacts"] {
        for with_agent in [false, true] {
            let gitlab = GitLab::start();
            let home = Scenario::shell().home(&gitlab);
            let made = home.run(&gitlab, job(&["echo made >out"]).set("artifacts", json!([archive(&["out"])])));
            let needs = json!([{"id": made.id, "name": "build", "token": made.token,
                "artifacts_file": {"filename": "out.zip", "size": 1}}]);
            let before = gitlab.count(route);
            gitlab.fail(route, [Fault::Slow(Duration::from_secs(5))]);
            let used = job(&["cat out"]).set("dependencies", needs).set("artifacts", json!([archive(&["out"])]));
            let id = gitlab.queue(used.build());
            let mut agent = home.start(&[]);
            gitlab.wait_until("the transfer", |server| server.count(route) > before);
            if with_agent {
                agent.signal("KILL");
                agent.wait();
            }
            assert!(kill_shims(id) > 0);
            if with_agent {
                agent = home.start(&[]);
            }
            let job = gitlab.finished(id);
            assert_eq!(job.state, "success", "{route}: {}", job.log());
            assert!(job.log().contains("Repeating it"), "{route}: {}", job.log());
            assert!(job.lines().contains(&"made".to_owned()), "{route}: {}", job.log());
            assert_eq!(unzipped(&home, &job.artifacts.last().expect("an upload").content, "out"), "made\n");
            agent.signal("QUIT");
            agent.wait();
            gitlab.assert_strict();
        }
    }
}

#[test]
fn uploads_a_provenance_statement_with_an_archive() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut artifact = archive(&["f"]);
    artifact["name"] = json!("feature/b\u{fc}ild-$CI_JOB_NAME");
    let job = job(&["printf abc >f"]).variable("RUNNER_GENERATE_ARTIFACTS_METADATA", "true");
    let job = home.run(&gitlab, job.set("artifacts", json!([artifact])));
    let upload = &job.artifacts[0];
    assert_eq!(upload.name, "b\u{fc}ild-unit.zip", "a slash makes no directory");
    let statement = unzipped(&home, &upload.content, "b\u{fc}ild-unit-metadata.json");
    let statement: Value = serde_json::from_str(&statement).expect("must be JSON");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(statement["subject"], json!([{"name": "f", "digest": {"sha256": sha}}]));
}

#[test]
fn skips_pipes_and_devices() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let script = ["mkfifo pipe", "mknod device c 10 130", "mkdir d; ln -s ../pipe d/link", "echo x >f"];
    let job = home.run(&gitlab, job(&script).set("artifacts", json!([archive(&["*"])])));
    assert_eq!(job.state, "success", "{}", job.log());
    for name in ["pipe", "device"] {
        let line = format!("WARNING: {name}: skipped: not a file, directory or link");
        assert!(job.lines().contains(&line), "{}", job.log());
    }
    assert_eq!(unzipped(&home, &job.artifacts[0].content, "f"), "x\n");
}

#[test]
fn a_full_disk_is_reported_and_fails_only_one_job() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let small = home.path("small");
    let _small = crate::disk::Small::mount(small.clone());
    let cramped = Scenario::shell().runner(&format!("builds_dir = \"{}\"", small.display())).home(&gitlab);
    let make = [
        ("head -c 30000000 /dev/zero >f", "are free on the disk"),
        ("head -c 9000000 /dev/urandom >f", "the disk is full"),
    ];
    for (script, message) in make {
        let made = home.run(&gitlab, job(&[script]).set("artifacts", json!([archive(&["f"])])));
        let needs = json!([{"id": made.id, "name": "build", "token": made.token,
            "artifacts_file": {"filename": "out.zip", "size": 1}}]);
        let full = cramped.run(&gitlab, job(&["echo never"]).set("dependencies", needs));
        assert_eq!((full.state.as_str(), full.failure_reason.as_deref()), ("failed", Some("script_failure")));
        let lines = full.lines();
        assert!(lines.iter().any(|line| line.starts_with("FATAL: ") && line.contains(message)), "{lines:#?}");
    }
    let next = cramped.run(&gitlab, job(&["ls; echo on"]));
    assert!(next.lines().contains(&"on".to_owned()) && !next.lines().contains(&"f".to_owned()), "{}", next.log());
}

#[test]
fn memory_does_not_grow_with_file_size() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let script = ["head -c 60000000 /dev/urandom >random", "head -c 100000000 /dev/zero | tr '\\0' 'x' >text"];
    let id = gitlab.queue(job(&script).set("artifacts", json!([archive(&["random", "text"])])).build());
    let mut agent = home.start(&["--once"]);
    let peak = std::cell::Cell::new(0);
    gitlab.wait_until("the upload", |server| {
        peak.set(peak_memory_of_shims(id).max(peak.get()));
        server.count("POST artifacts") > 0
    });
    let (job, peak) = (gitlab.finished(id), peak.get());
    assert_eq!(job.state, "success", "{}", job.log());
    assert!(job.artifacts[0].content.len() > 60_000_000);
    assert!((4096..32 * 1024).contains(&peak), "{peak} KiB");
    assert!(agent.wait().success());
}

#[test]
fn uploads_artifacts_with_a_client_key_that_only_the_agent_can_read() {
    let pki = Pki::new();
    let (server, client) = (pki.server(), pki.server());
    let gitlab = GitLab::start_with(Some(pki.serve_known(&server)));
    let home = Home::empty();
    std::fs::create_dir(home.path("private")).expect("create the directory");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(home.path("private"), closed).expect("set the permissions");
    let write =
        |name: &str, content: &str| std::fs::write(home.path("private").join(name), content).expect("write a file");
    write("ca.pem", &pki.root);
    write("client.pem", &client.chain);
    write("client.key", &client.key);
    let at = |name: &str| home.path("private").join(name).display().to_string();
    let files = format!(
        "tls-ca-file = \"{}\"\ntls-cert-file = \"{}\"\ntls-key-file = \"{}\"",
        at("ca.pem"),
        at("client.pem"),
        at("client.key")
    );
    Scenario::shell().config("user = \"nobody\"").runner(&files).write(&home, &gitlab.url);
    let job = home.run(&gitlab, job(&["echo x >f"]).set("artifacts", json!([archive(&["f"])])));
    assert_eq!(job.state, "success", "{}", job.log());
    assert_eq!(job.artifacts.len(), 1);
}

#[test]
fn a_slow_transfer_reports_its_progress() {
    let pki = Pki::new();
    let gitlab = GitLab::start_with(Some(pki.serve(&pki.server_of("gitlab.test"), Chain::Complete)));
    let home = Home::empty();
    std::fs::write(home.path("ca.pem"), &pki.root).expect("write a file");
    let trust = format!("tls-ca-file = \"{}\"", home.path("ca.pem").display());
    Scenario::shell().runner(&trust).write(&home, "https://gitlab.test");
    // A pause of some milliseconds after each 64 KiB makes the transfer take several seconds on any machine.
    let proxy = tunnel_proxy(&gitlab.url, Duration::from_millis(20));
    let slowly = |job: JobBuilder| {
        let job = job.variable("TRANSFER_METER_FREQUENCY", "1s").variable("FF_USE_DIRECT_DOWNLOAD", "false");
        let id = gitlab.queue(job.build());
        let mut agent = home.start_with(&["--once"], &[("HTTPS_PROXY", &proxy)]);
        let job = gitlab.finished(id);
        assert!(agent.wait().success(), "{}", agent.log());
        assert_eq!(job.state, "success", "{}", job.log());
        job
    };
    let made = slowly(job(&["head -c 16000000 /dev/urandom >f"]).set("artifacts", json!([archive(&["f"])])));
    let needs = json!([{"id": made.id, "name": "build", "token": made.token,
        "artifacts_file": {"filename": "out.zip", "size": 1}}]);
    let used = slowly(job(&["wc -c f"]).set("dependencies", needs));
    assert!(used.has("16000000 f"), "{}", used.log());
    for (job, what, total) in [(&made, "Uploading artifacts ", ""), (&used, "Downloading artifacts ", "/15.3 MiB")] {
        let rates: Vec<String> = job.lines().into_iter().filter(|line| line.ends_with("/s)")).collect();
        assert!(rates.iter().any(|line| line.starts_with(what) && line.contains(&format!("iB{total} ("))), "{rates:?}");
    }
}

#[test]
fn names_the_entry_in_messages_about_bad_input() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let named = |name: &str| {
        let mut artifact = archive(&["[f", "{f", "f"]);
        artifact["name"] = json!(name);
        artifact
    };
    gitlab.fail("POST artifacts", [Fault::Answer(Answer::new(413))]);
    let refused = home.run(&gitlab, job(&["echo x >f"]).set("artifacts", json!([named("a/large"), named("b")])));
    assert!(refused.has("FATAL: large.zip (archive): too large for this GitLab"), "{}", refused.log());
    let made = home.run(&gitlab, job(&["echo x >f"]).set("artifacts", json!([named("first"), named("b")])));
    assert_eq!(made.state, "success", "{}", made.log());
    assert_eq!(made.artifacts.len(), 2, "what could be delivered is");
    assert!(made.has("WARNING: [f: invalid pattern: a [ without its ]"), "{}", made.log());
    let needs = json!([{"id": made.id, "name": "build", "token": made.token,
        "artifacts_file": {"filename": "out.zip", "size": 1}}]);
    let page = Answer::new(200).with("Content-Type", "text/html").body("<html>sign in</html>");
    let around = Answer::new(302).with("Location", &format!("{}/api/v4/jobs/{}/artifacts", gitlab.url, made.id));
    let loops = std::iter::repeat_n(Fault::Answer(around), 18);
    for (faults, why) in [
        (vec![Fault::Answer(page)], "not a valid zip archive"),
        (loops.collect(), "the download failed after all retries"),
    ] {
        gitlab.fail("GET artifacts", faults);
        let refused = home.run(&gitlab, job(&["echo never"]).set("dependencies", needs.clone()));
        assert_eq!(refused.failure_reason.as_deref(), Some("script_failure"), "{}", refused.log());
        assert!(refused.has(&format!("FATAL: the artifacts of build ({}): {why}", made.id)), "{}", refused.log());
    }
    let next = home.run(&gitlab, job(&["cat f"]).set("dependencies", needs));
    assert!(next.lines().contains(&"x".to_owned()), "{}", next.log());
}
