//! The commands besides `run`: register, verify, unregister, check, lint.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

use crate::support::gitlab::{ACCESS_TOKEN, Answer, Fault, GitLab, REGISTRATION_TOKEN, RUNNER_TOKEN};
use crate::support::mayfly::{Home, read};
use crate::support::output_text;
use crate::support::scenario::Scenario;

fn call_with_input(home: &Home, arguments: &[&str], input: &str) -> Output {
    let mut child = home
        .command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start mayfly");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("write a file");
    child.wait_with_output().expect("must end")
}

#[test]
fn register_with_a_token_from_standard_input() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    let config = home.config().display().to_string();
    let arguments = [
        "register",
        "-n",
        "--config",
        &config,
        "--url",
        &gitlab.url,
        "--token-file",
        "-",
        "--executor",
        "shell",
        "--name",
        "box",
        "--limit",
        "2",
    ];
    let output = call_with_input(&home, &arguments, &format!("{RUNNER_TOKEN}\n"));
    assert!(output.status.success(), "{}", output_text(&output));
    let written = read(&home.config());
    for part in ["name = \"box\"", "limit = 2", "id = 7", RUNNER_TOKEN, "executor = \"shell\""] {
        assert!(written.contains(part), "{part} in {written}");
    }
    assert_eq!(std::fs::metadata(home.config()).expect("the file must exist").permissions().mode() & 0o777, 0o600);
    assert_eq!(gitlab.managers().len(), 1);
    gitlab.assert_strict();
}

#[test]
fn register_prompts_for_missing_values() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    let config = home.config().display().to_string();
    let input = format!("{}\n{RUNNER_TOKEN}\nmy box\nshell\n", gitlab.url);
    let output = call_with_input(&home, &["register", "--config", &config], &input);
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(read(&home.config()).contains("name = \"my box\""));
}

#[test]
fn register_creates_a_runner_with_an_access_token_and_refuses_conflicting_options() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    let config = home.config().display().to_string();
    std::fs::write(home.path("pat"), ACCESS_TOKEN).expect("write a file");
    let pat = home.path("pat").display().to_string();
    let base = ["register", "-n", "--config", &config, "--url", &gitlab.url, "--executor", "shell"];
    let create = [
        &base[..],
        &["--access-token-file", &pat, "--runner-type", "project_type", "--project-id", "9", "--tag-list", "a,b"],
    ]
    .concat();
    let output = home.call(&create);
    assert!(output.status.success(), "{}", output_text(&output));
    let created = gitlab.created();
    assert_eq!(
        (created[0]["runner_type"].as_str(), created[0]["project_id"].as_i64()),
        (Some("project_type"), Some(9))
    );
    let refused = [
        (vec!["--token", RUNNER_TOKEN, "--tag-list", "x"], "change its attributes on the server"),
        (vec!["--token", RUNNER_TOKEN, "--token-file", "x"], "cannot be used with"),
        (vec!["--token", "glrt-unknown"], "does not know this token"),
        (vec![], "a token is missing"),
        (vec!["--token", RUNNER_TOKEN, "--executor", "kubernetes"], "kubernetes"),
    ];
    for (more, part) in refused {
        let arguments =
            if more.contains(&"--executor") { [&base[..6], &more].concat() } else { [&base[..], &more].concat() };
        let output = home.call(&arguments);
        assert!(!output.status.success() && output_text(&output).contains(part), "{part} in {}", output_text(&output));
    }
    let legacy = [&base[..], &["-r", REGISTRATION_TOKEN, "--locked=false"]].concat();
    assert!(home.call(&legacy).status.success());
    assert_eq!(gitlab.created()[1]["locked"], false);
    gitlab.assert_strict();
}

#[test]
fn verify_unregister_reset_and_list() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().config("# kept").home(&gitlab);
    let config = home.config().display().to_string();
    assert!(output_text(&home.call(&["list", "--config", &config])).contains("test\texecutor=shell"));
    assert!(home.call(&["verify", "--config", &config]).status.success());
    assert!(home.call(&["reset-token", "--config", &config, "--name", "test"]).status.success());
    let written = read(&home.config());
    assert!(
        written.contains("glrt-tokenAfterReset")
            && written.contains("# kept")
            && written.contains("2040-01-02T03:04:05Z")
    );
    assert!(home.call(&["unregister", "--config", &config, "--name", "test"]).status.success());
    assert!(gitlab.managers().is_empty());
    assert!(!read(&home.config()).contains("[[runners]]") && read(&home.config()).contains("# kept"));
    Scenario::shell().write(&home, &gitlab.url);
    gitlab.delete_runner();
    assert!(!home.call(&["verify", "--config", &config]).status.success());
    assert!(home.call(&["verify", "--config", &config, "--delete"]).status.success());
    assert!(!read(&home.config()).contains("[[runners]]"));
    gitlab.assert_strict();
}

#[test]
fn check_passes_only_when_jobs_would_run() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().runner("odd_key = 1").home(&gitlab);
    let config = home.config().display().to_string();
    let good = home.call(&["check", "--config", &config]);
    assert!(good.status.success(), "{}", output_text(&good));
    assert!(
        output_text(&good).contains("`runners.odd_key` is unknown")
            && output_text(&good).contains("the token is valid")
    );
    assert_eq!(gitlab.count("POST jobs/request"), 0);
    let before = read(&home.config());
    for (global, runner, part) in [
        ("user = \"no-such-user\"", "", "does not exist"),
        ("", "tls-ca-file = \"/nowhere/ca.pem\"", "/nowhere/ca.pem cannot be read"),
        ("", "builds_dir = \"/dev/null/builds\"", "cannot write"),
        ("concurrent = 0", "", "at least 1"),
    ] {
        Scenario::shell().config(global).runner(runner).write(&home, &gitlab.url);
        let bad = home.call(&["check", "--config", &config]);
        assert!(!bad.status.success() && output_text(&bad).contains(part), "{part} in {}", output_text(&bad));
    }
    Scenario::shell().runner("odd_key = 1").write(&home, &gitlab.url);
    assert_eq!(read(&home.config()), before, "check edits nothing");
    gitlab.delete_runner();
    let dead = home.call(&["check", "--config", &config]);
    assert!(!dead.status.success() && output_text(&dead).contains("does not know the token"));
}

#[test]
fn usage_errors_go_to_standard_error() {
    let home = Home::empty();
    let output = home.call(&["run", "--no-such-flag"]);
    assert!(!output.status.success() && output.stdout.is_empty() && !output.stderr.is_empty());
    let version = home.call(&["--version"]);
    assert!(output_text(&version).starts_with("mayfly 0."), "{}", output_text(&version));
    let missing = home.call(&["run", "--config", "nowhere.toml"]);
    assert!(!missing.status.success() && output_text(&missing).contains("mayfly register"));
    let stray = home.call(&["shim"]);
    assert!(!stray.status.success());
}

#[test]
fn log_format_json_writes_json_lines() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let mut agent = home.start(&["--log-format", "json", "--idle-timeout", "1s"]);
    agent.wait();
    for line in agent.log().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value["level"].is_string() && value["msg"].is_string());
    }
}

#[test]
fn register_refuses_a_server_that_names_no_runner() {
    let gitlab = GitLab::start();
    for body in ["{}", "{\"id\": 0, \"token\": \"x\"}", "<html>sign in</html>", "[]"] {
        let home = Home::empty();
        let config = home.config().display().to_string();
        let answer = Answer::new(200).with("Content-Type", "application/json").body(body.as_bytes().to_vec());
        gitlab.fail("POST runners/verify", [Fault::Answer(answer)]);
        let base = ["register", "-n", "--config", &config, "--url", &gitlab.url, "--token", RUNNER_TOKEN];
        let refused = home.call(&[&base[..], &["--executor", "shell"]].concat());
        assert!(!refused.status.success() && !home.config().exists(), "{body}: {}", output_text(&refused));
    }
}

#[test]
fn register_for_containers_needs_an_image_and_adds_the_cache_volume() {
    let gitlab = GitLab::start();
    let home = Home::empty();
    let config = home.config().display().to_string();
    let base =
        ["register", "-n", "--config", &config, "--url", &gitlab.url, "--token", RUNNER_TOKEN, "--executor", "docker"];
    let refused = home.call(&base);
    assert!(
        !refused.status.success() && output_text(&refused).contains("--docker-image is missing"),
        "{}",
        output_text(&refused)
    );
    assert!(!home.config().exists());
    let made = home.call(&[&base[..], &["--docker-image", "alpine:3", "--docker-volumes", "/certs"]].concat());
    assert!(made.status.success(), "{}", output_text(&made));
    let written: toml::Table = read(&home.config()).parse().expect("must be TOML");
    let docker = &written["runners"][0]["docker"];
    assert_eq!(docker["image"].as_str(), Some("alpine:3"));
    assert_eq!(docker["volumes"].to_string(), "[\"/certs\", \"/cache\"]");
}

#[test]
fn unregister_takes_the_token_of_the_environment() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let config = home.config().display().to_string();
    let mut command = home.command(&["unregister", "--config", &config]);
    let done = command.env("CI_SERVER_TOKEN", RUNNER_TOKEN).output().expect("run mayfly");
    assert!(done.status.success(), "{}", output_text(&done));
    assert!(!read(&home.config()).contains("[[runners]]"));
}

#[test]
fn check_and_lint_find_problems_that_prevent_a_start() {
    let gitlab = GitLab::start();
    let call = |home: &Home, command: &str| home.call(&[command, "--config", &home.config().display().to_string()]);
    let check = |home: &Home| output_text(&call(home, "check"));
    // The file may be for another machine.
    let lint = |home: &Home| {
        let done = call(home, "lint");
        assert!(done.status.success(), "{}", output_text(&done));
        output_text(&done)
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let home = Scenario::shell()
        .config(&format!("listen_address = \"{}\"", taken.local_addr().expect("an address")))
        .home(&gitlab);
    assert!(check(&home).contains("FAIL     listen_address"), "{}", check(&home));
    assert!(lint(&home).contains("on this machine: `listen_address = "), "{}", lint(&home));
    let home = Scenario::shell().state_dir("/proc/x").home(&gitlab);
    assert!(check(&home).contains("FAIL     state directory: /proc/x cannot be written"), "{}", check(&home));
    assert!(lint(&home).contains("on this machine: the state directory /proc/x cannot"), "{}", lint(&home));
    let home = Scenario::shell().mayfly("leave = \"aws-asg\"").home(&gitlab);
    assert!(check(&home).contains("FAIL     instance: `leave = \"aws-asg\"`"), "{}", check(&home));
    assert!(lint(&home).contains("on this machine: `leave = \"aws-asg\"`"), "{}", lint(&home));
    let home = Scenario::shell().home(&gitlab);
    assert!(!lint(&home).contains("on this machine"), "{}", lint(&home));
    let mut without_git = home.command(&["check", "--config", &home.config().display().to_string()]);
    let report = output_text(&without_git.env("PATH", home.path("empty")).output().expect("run mayfly"));
    assert!(report.contains("FAIL     git: no working `git` in the PATH"), "{report}");
}

#[test]
fn check_names_the_target_of_a_redirect() {
    let server = crate::support::http::listen(None, |mut connection| {
        while let Some(request) = crate::support::http::read_request(&mut connection) {
            let target = format!("https://gitlab.test{}", request.path);
            let answer = crate::support::http::Answer::new(308).with("Location", &target);
            if crate::support::http::write_answer(connection.get_mut(), &answer).is_err() {
                return;
            }
        }
    });
    let home = Home::empty();
    Scenario::shell().write(&home, &server);
    let report = output_text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(report.contains("the server redirects to https://gitlab.test; write that address"), "{report}");
}
