//! `mayfly exec`: runs the jobs of a checkout without a server.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::docker::docker;
use crate::support::git::git;
use crate::support::mayfly::Home;
use crate::support::{output_text, send_signal, wait_until};

pub fn checkout(file: &str) -> Home {
    in_checkout(Home::empty(), file)
}

/// Creates a checkout with this configuration in a home.
pub fn in_checkout(home: Home, file: &str) -> Home {
    let root = home.path("checkout");
    std::fs::create_dir(&root).expect("create the directory");
    git(&root, &["init", "-q", "-b", "main"]);
    std::fs::write(root.join(".gitlab-ci.yml"), file).expect("write a file");
    git(&root, &["add", "-A"]);
    git(&root, &["-c", "user.name=Dev", "-c", "user.email=dev@example.test", "commit", "-q", "-m", "first"]);
    home
}

pub fn exec(home: &Home, arguments: &[&str]) -> (Output, String) {
    exec_with(home, arguments, &[])
}

pub fn command(home: &Home, arguments: &[&str]) -> Command {
    let mut command = home.command(&[&["exec"], arguments].concat());
    command.current_dir(home.path("checkout")).env("XDG_CACHE_HOME", home.path("cache")).stdin(Stdio::null());
    command
}

/// Asserts that no directory of a finished run exists.
pub fn assert_nothing_left(home: &Home) {
    for project in std::fs::read_dir(home.path("cache/mayfly/exec")).expect("list the directory") {
        let runs = project.expect("an entry").path().join("runs");
        let left = std::fs::read_dir(runs).into_iter().flatten().count();
        assert_eq!(left, 0, "the directory of a run is left");
    }
}

pub fn exec_with(home: &Home, arguments: &[&str], environment: &[(&str, &str)]) -> (Output, String) {
    let output = command(home, arguments).envs(environment.iter().copied()).output().expect("run mayfly");
    let text = output_text(&output);
    (output, text)
}

/// Every file below a directory with its content, including the repository.
fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).expect("list the directory") {
            let path = entry.expect("an entry").path();
            match path.symlink_metadata().expect("the file must exist").is_dir() {
                true => waiting.push(path),
                false => found.push((path.clone(), std::fs::read(&path).unwrap_or_default())),
            }
        }
    }
    found.sort();
    found
}

const FILE: &str = "
stages: [one, two]
variables: {WORD: global}
first:
  stage: one
  script: [echo \"first $WORD $CI_COMMIT_BRANCH\", pwd]
may-fail: {stage: one, script: exit 3, allow_failure: {exit_codes: 3}}
second: {stage: two, script: echo second, after_script: [echo after]}
";

#[test]
fn runs_all_jobs_in_the_order_of_their_stages() {
    let home = checkout(FILE);
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success(), "{text}");
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
    assert!(at("first global main") < at("\nsecond\n") && at("\nsecond\n") < at("\nafter\n"));
    assert!(text.contains("may-fail  warning") && text.contains("second    success"), "{text}");
    assert!(!text.contains('\x1b') && !text.contains("Running with mayfly"), "{text}");
}

#[test]
fn jobs_work_in_a_copy_and_do_not_change_the_checkout() {
    let file = "
one:
  stage: build
  script:
    - echo changed >>.gitlab-ci.yml && rm tracked && mkdir made && touch made/x
    - git config user.name job && git config user.email j@example.test && git tag job && git update-ref refs/heads/main $(git commit-tree -m x HEAD^{tree})
two: {script: [cat tracked, 'ls -A', 'test ! -e made', 'git tag | grep job && exit 1; git diff --stat']}
";
    let home = checkout(file);
    let root = home.path("checkout");
    std::fs::write(root.join("tracked"), "first\n").expect("write a file");
    git(&root, &["add", "tracked"]);
    std::fs::write(root.join("tracked"), "edited\n").expect("write a file");
    std::fs::write(root.join("loose"), "loose\n").expect("write a file");
    let before = contents(&root);
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("\nedited\n") && !text.contains("\nloose\n"), "{text}");
    assert!(contents(&root) == before, "nothing is written into the checkout");
    let (_, text) = exec(&home, &["two", "--untracked"]);
    assert!(text.contains("\nloose\n"), "{text}");
    assert!(contents(&root) == before);
}

#[test]
fn a_job_with_an_image_is_refused_without_an_engine_unless_shell_is_set() {
    let home = checkout("default: {image: alpine}\na: {script: echo ran}\n");
    let away = [("DOCKER_HOST", "unix:///nonexistent/docker.sock")];
    let (output, text) = exec_with(&home, &[], &away);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains(".gitlab-ci.yml:2: job `a`") && text.contains("--shell") && !text.contains("\nran\n"),
        "{text}"
    );
    let (output, text) = exec_with(&home, &["--shell"], &away);
    assert!(output.status.success() && text.contains("\nran\n"), "{text}");
    assert!(text.contains("warning: --shell: a run on this machine"), "{text}");
    assert_nothing_left(&home);
}

#[test]
fn a_manual_job_runs_only_on_request() {
    let home = checkout("a: {script: echo a}\ndeploy: {script: echo deployed, when: manual}\n");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && !text.contains("\ndeployed\n"), "{text}");
    let (output, text) = exec(&home, &["deploy"]);
    assert!(output.status.code() == Some(2) && text.contains("--manual 'deploy'"), "{text}");
    let (output, text) = exec(&home, &["--manual", "deploy"]);
    assert!(output.status.success() && text.contains("\ndeployed\n"), "{text}");
}

#[test]
fn the_exit_status_is_that_of_the_selected_job() {
    let home = checkout("bad: {script: [echo out, exit 9]}\ngood: {script: echo fine}\n");
    let (output, text) = exec(&home, &["bad"]);
    assert!(output.status.code() == Some(1) && text.contains("\nout\n"), "{text}");
    let (output, text) = exec(&home, &["good"]);
    assert!(output.status.success() && text.contains("\nfine\n"), "{text}");
    let (output, text) = exec(&home, &["none"]);
    assert!(output.status.code() == Some(2) && text.contains("the jobs are: bad, good"), "{text}");
}

#[test]
fn a_failed_stage_skips_later_jobs_except_those_for_failures() {
    let file = "
stages: [a, b]
x: {stage: a, script: 'false'}
y: {stage: b, script: echo y}
z: {stage: b, script: echo z ran, when: on_failure}
w: {stage: b, script: echo, when: manual}
";
    let (output, text) = exec(&checkout(file), &[]);
    assert!(!output.status.success());
    assert!(text.contains("y  skipped") && text.contains("\nz ran\n") && text.contains("w  skipped"), "{text}");
    assert!(text.contains("x: exit status 1\n  failed command: false\n"), "{text}");
}

#[test]
fn an_invalid_file_is_refused_with_all_its_problems() {
    let (output, text) = exec(&checkout("a: {scirpt: x}\nb: {extends: .c}\n"), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("did you mean `script`?") && text.contains("`extends`"), "{text}");
}

#[test]
fn a_closed_output_pipe_ends_the_run_quietly() {
    let home = checkout("a: {script: ['while true; do echo line; done']}\nb: {stage: deploy, script: echo never}\n");
    let mut child = command(&home, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start mayfly");
    let mut start = [0; 64];
    child.stdout.take().expect("a pipe").read_exact(&mut start).expect("read the file");
    let output = child.wait_with_output().expect("must end");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !stderr.contains("panicked"), "{stderr}");
}

#[test]
fn the_pipeline_of_this_project_succeeds() {
    let home = Home::empty();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mayfly"))
        .arg("exec")
        .env("XDG_CACHE_HOME", home.path("cache"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("run mayfly");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Starts a run, and waits until its job has created the file `sign`.
pub fn started(home: &Home, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
    let mut command = command(home, arguments);
    command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("start mayfly");
    wait_until("the job begins", || home.path("sign").exists());
    child
}

/// Whether a process with this id exists and is not a zombie.
pub fn is_running(process: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", process.trim())).unwrap_or_default();
    status.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn an_interrupt_or_a_kill_ends_all_jobs_and_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let home = Home::empty();
        let sign = home.path("sign").display().to_string();
        let home = in_checkout(
            home,
            &format!("a: {{script: ['sleep 1000 & echo $! >{sign}.new && mv {sign}.new {sign}; wait']}}\n"),
        );
        let mut child = started(&home, &[], &[]);
        let process = std::fs::read_to_string(home.path("sign")).expect("a number");
        assert!(is_running(&process));
        send_signal(child.id().cast_signed(), signal);
        let status = child.wait().expect("must end");
        if signal == Signal::SIGINT {
            assert_eq!(status.code(), Some(130));
        }
        wait_until("the job's processes end", || !is_running(&process));
        wait_until("the run's directory is removed", || {
            let projects = std::fs::read_dir(home.path("cache/mayfly/exec")).expect("list the directory");
            projects
                .flatten()
                .all(|project| std::fs::read_dir(project.path().join("runs")).into_iter().flatten().count() == 0)
        });
    }
}

#[test]
fn explains_the_decision_of_rules() {
    let home = checkout("a: {script: echo a}\nb: {script: echo b, rules: [if: $NO]}\n");
    let (output, text) = exec(&home, &["b"]);
    assert!(
        output.status.code() == Some(2) && text.contains("job `b` (.gitlab-ci.yml:2) is not in this pipeline"),
        "{text}"
    );
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && !text.contains("\nb\n"), "{text}");
    let (_, text) = exec(&home, &["--var", "NO=1", "b"]);
    assert!(text.contains("\nb\n"), "{text}");
    let (output, text) = exec(&home, &["--explain", "b"]);
    assert!(output.status.success() && text.contains("is not in this pipeline"), "{text}");
}

#[test]
fn writes_reports_of_all_jobs_and_unpacks_artifacts() {
    let file = "
make: {script: 'mkdir out && echo made >out/x && echo secret: $KEY', artifacts: {paths: [out]}}
bad: {stage: deploy, script: [echo one, exit 7]}
";
    let home = checkout(file);
    let path = |name: &str| home.path(name).display().to_string();
    let (report, junit, wanted) = (path("report.json"), path("junit.xml"), path("wanted"));
    let arguments = ["--report", &report, "--junit", &junit, "--artifacts", &wanted, "--secret", "KEY"];
    let (output, text) = exec_with(&home, &arguments, &[("KEY", "hunter2hunter2")]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("secret: [MASKED]") && !text.contains("hunter2"), "{text}");
    assert_eq!(std::fs::read_to_string(home.path("wanted/out/x")).expect("read the file"), "made\n");
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(&report).expect("read the file")).expect("must be JSON");
    assert_eq!(report["status"], "failed");
    let bad = &report["jobs"]["bad"];
    assert_eq!((&bad["status"], &bad["exit_code"], &bad["attempts"]), (&"failed".into(), &7.into(), &1.into()));
    assert_eq!(bad["failure_reason"], "script_failure");
    let log = std::fs::read_to_string(bad["log"].as_str().expect("a path")).expect("read the file");
    assert_eq!(log, "$ echo one\none\n$ exit 7\n");
    assert!(std::fs::read_to_string(&junit).expect("read the file").contains("failures=\"1\""));
    assert_nothing_left(&home);
}

#[test]
fn runs_jobs_with_artifacts_and_services_in_containers_and_removes_them() {
    let docker = docker();
    docker.import("exec-base:local", &crate::support::docker::busybox(), &["CMD [\"sh\"]"]);
    let file = "
default: {image: exec-base:local}
make: {stage: build, script: ['pwd', 'echo from-container >x', 'test -d .git'], artifacts: {paths: [x]}}
use:
  image: {name: 'exec-base:local', entrypoint: ['']}
  services: [{name: 'exec-base:local', alias: web, command: [sleep, '60']}]
  script: ['cat x', 'grep -q web /etc/hosts && echo has-service || nslookup web | head -n 4']
";
    let home = checkout(file);
    let host = docker.host();
    let engine = [("DOCKER_HOST", host.as_str())];
    let (output, text) = exec_with(&home, &[], &engine);
    assert!(output.status.success() && text.contains("\n/builds/") && text.contains("\nfrom-container\n"), "{text}");
    let (output, text) = exec_with(&checkout("a: {image: 'none:missing', script: echo}\n"), &[], &engine);
    assert!(output.status.code() == Some(2) && text.contains(".gitlab-ci.yml:1: job `a`"), "{text}");
    assert!(text.contains("none:missing") && text.contains("no job was started"), "{text}");
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let home = in_checkout(Home::empty(), "a: {image: 'exec-base:local', script: 'sleep 1000'}\n");
        let mut command = command(&home, &[]);
        let mut child = command
            .env("DOCKER_HOST", &host)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start mayfly");
        let of_run = || {
            let label = format!("label=io.mayfly.state={}", run_directory(&home));
            let output = docker.command(&["ps", "-aq", "--filter", &label]).output().expect("run docker");
            String::from_utf8_lossy(&output.stdout).lines().count()
        };
        wait_until("the container runs", || of_run() > 0);
        let label = run_directory(&home);
        send_signal(child.id().cast_signed(), signal);
        child.wait().expect("must end");
        wait_until("the containers are removed", || {
            let filter = format!("label=io.mayfly.state={label}");
            let output = docker.command(&["ps", "-aq", "--filter", &filter]).output().expect("run docker");
            output.stdout.is_empty()
        });
    }
}

/// The directory of the only run.
pub fn run_directory(home: &Home) -> String {
    let projects = std::fs::read_dir(home.path("cache/mayfly/exec")).into_iter().flatten().flatten();
    let runs =
        projects.flat_map(|project| std::fs::read_dir(project.path().join("runs")).into_iter().flatten().flatten());
    let found = runs.map(|run| run.path().display().to_string()).next();
    found.unwrap_or_else(|| "none".to_owned())
}

#[test]
fn bad_input_is_refused_quickly_and_nothing_runs() {
    let refused = |home: &Home, arguments: &[&str], word: &str| {
        let began = Instant::now();
        let (output, text) = exec(home, arguments);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(word) && !text.contains("panicked"), "{word}: {text}");
        assert!(began.elapsed() < Duration::from_secs(60), "{word}");
        assert_nothing_left(home);
    };
    let home = checkout("a: {script: echo}\n");
    let file = home.path("checkout/.gitlab-ci.yml");
    std::fs::remove_file(&file).expect("remove the file");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("create a pipe");
    refused(&home, &[], ".gitlab-ci.yml");
    std::fs::remove_file(&file).expect("remove the file");
    std::fs::File::create(&file).and_then(|file| file.set_len(100 << 20)).expect("create the file");
    refused(&home, &[], ".gitlab-ci.yml");
    for (content, word) in [
        ("a: [", ".gitlab-ci.yml:"),
        (
            "m: {script: echo, parallel: {matrix: [{A: [&x 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], B: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], C: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], D: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], E: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], F: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}]}}",
            "m",
        ),
        ("include: [{component: git.example.test/a/b@1}]\na: {script: echo}", "a/b"),
        ("include: [{local: /missing.yml}]\na: {script: echo}", "missing.yml"),
        ("include: {remote: 'http://127.0.0.1:1/x.yml'}\na: {script: echo}", "127.0.0.1:1"),
    ] {
        std::fs::write(&file, content).expect("write a file");
        refused(&home, &["--offline"], word);
    }
    std::fs::write(&file, "include: {remote: 'http://127.0.0.1:1/x.yml'}\na: {script: echo}").expect("write a file");
    refused(&home, &[], "127.0.0.1:1");
    std::fs::write(&file, "a: {script: echo}\n").expect("write a file");
    for (arguments, word) in [
        (&["--map-project", "x"][..], "PATH[@REF]=DIR"),
        (&["--mr", "x"], "SOURCE:TARGET"),
        (&["--vars-file", "/nonexistent"], "/nonexistent"),
        (&["--before", "nonsense"], "nonsense"),
        (&["--stage", "none"], "none"),
        (&["--secret", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
    ] {
        refused(&home, arguments, word);
    }
}

#[test]
fn ten_thousand_jobs_are_listed() {
    let mut file = String::new();
    (0..10_000).for_each(|number| file.push_str(&format!("j{number}: {{script: 'true'}}\n")));
    let home = checkout(&file);
    let (output, text) = exec(&home, &["--list"]);
    assert!(output.status.success() && text.lines().count() == 10_001, "{}", &text[..text.len().min(500)]);
}

#[test]
fn options_come_from_files_and_the_command_line_wins() {
    let home = checkout("a: {script: 'echo $A $B $C'}\n");
    std::fs::create_dir_all(home.path("config/mayfly")).expect("create the directory");
    std::fs::write(home.path("config/mayfly/exec.toml"), "[var]\nA = \"user\"\nB = \"user\"\n").expect("write a file");
    std::fs::create_dir_all(home.path("checkout/.mayfly")).expect("create the directory");
    std::fs::write(home.path("checkout/.mayfly/exec.toml"), "[var]\nB = \"project\"\n").expect("write a file");
    let config = home.path("config").display().to_string();
    let environment = [("XDG_CONFIG_HOME", config.as_str())];
    let (output, text) = exec_with(&home, &["--var", "C=line"], &environment);
    assert!(output.status.success() && text.contains("\nuser project line\n"), "{text}");
    std::fs::write(home.path("checkout/.mayfly/exec.toml"), "nonsense = 1\n").expect("write a file");
    let (output, text) = exec_with(&home, &[], &environment);
    assert!(output.status.code() == Some(2) && text.contains("exec.toml") && text.contains("nonsense"), "{text}");
}

/// Adds a program in the language of each of many tools to a checkout.
pub fn add_many_tools(home: &Home) {
    let root = home.path("checkout");
    for (name, content) in [
        ("hello.c", "#include <stdio.h>\nint main(void) { puts(\"hello from c\"); }\n"),
        ("Makefile", "hello: hello.c\n\tcc -o hello hello.c\n"),
        ("CMakeLists.txt", "cmake_minimum_required(VERSION 3.10)\nproject(hello C)\nadd_executable(hello hello.c)\n"),
        ("hello.go", "package main\n\nfunc main() { println(\"hello from go\") }\n"),
        (
            "Cargo.toml",
            "[package]\nname = \"hello\"\nedition = \"2021\"\n[[bin]]\nname = \"hello\"\npath = \"hello.rs\"\n",
        ),
        ("hello.rs", "fn main() { println!(\"hello from rust\") }\n"),
        ("package.json", "{\"name\": \"hello\", \"scripts\": {\"test\": \"node -p \\\"'hello from node'\\\"\"}}\n"),
    ] {
        std::fs::write(root.join(name), content).expect("write a file");
    }
    git(&root, &["add", "-A"]);
}

#[test]
fn pipelines_of_many_tools_run_in_the_shell() {
    let file = "
stages: [build, test]
make: {stage: build, script: [make -s], artifacts: {paths: [hello]}}
hello: {stage: test, script: [./hello]}
cmake: {stage: test, script: [cmake -S . -B out >/dev/null, cmake --build out >/dev/null, ./out/hello]}
go: {stage: test, script: [go run hello.go], variables: {GOCACHE: $CI_PROJECT_DIR/.gocache}}
cargo: {stage: test, script: [cargo run --quiet --offline]}
npm: {stage: test, script: [npm --silent test]}
pip: {stage: test, script: [python3 -m pip --version, python3 -c 'print(\"hello from python\")']}
";
    let home = checkout(file);
    add_many_tools(&home);
    let own = |key: &str| std::env::var(key).unwrap_or_default();
    let path = format!("PATH={}", own("PATH"));
    // Some tools are installed in the home directory of the user who runs the tests.
    let tool = |key: &str, directory: &str| {
        format!("{key}={}", std::env::var(key).unwrap_or_else(|_| format!("{}/{directory}", own("HOME"))))
    };
    let (rustup, pyenv) = (tool("RUSTUP_HOME", ".rustup"), tool("PYENV_ROOT", ".pyenv"));
    let (output, text) = exec(&home, &["--var", &path, "--var", &rustup, "--var", &pyenv]);
    assert!(output.status.success(), "{text}");
    for word in ["hello from c", "hello from go", "hello from rust", "hello from node", "hello from python"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn watch_runs_the_pipeline_again_after_a_change() {
    let home = Home::empty();
    let sign = home.path("sign").display().to_string();
    let home = in_checkout(home, &format!("a: {{script: 'cat word >>{sign}'}}\n"));
    let root = home.path("checkout");
    std::fs::write(root.join("word"), "one\n").expect("write a file");
    git(&root, &["add", "word"]);
    let seen = || std::fs::read_to_string(home.path("sign")).unwrap_or_default();
    let report = root.join("report.json").display().to_string();
    let mut child = started(&home, &["--watch", "--report", &report], &[]);
    wait_until("the first run", || seen() == "one\n");
    // The directory of the run disappears when the run ends; then the program watches for changes.
    wait_until("the first run ends", || run_directory(&home) == "none");
    std::fs::write(root.join("word"), "two\n").expect("write a file");
    wait_until("the second run", || seen().ends_with("two\n"));
    wait_until("the second run ends", || run_directory(&home) == "none");
    // Neither results nor other untracked files start a run; a file that becomes tracked does.
    std::fs::write(root.join("word"), "three\n").expect("write a file");
    wait_until("the third run", || seen().ends_with("three\n"));
    wait_until("the third run ends", || run_directory(&home) == "none");
    std::fs::write(root.join("untracked"), "").expect("write a file");
    git(&root, &["add", "untracked"]);
    wait_until("the fourth run", || seen().ends_with("three\nthree\n"));
    wait_until("the fourth run ends", || run_directory(&home) == "none");
    assert_eq!(seen(), "one\ntwo\nthree\nthree\n");
    send_signal(child.id().cast_signed(), Signal::SIGINT);
    assert_eq!(child.wait().expect("must end").code(), Some(130));
}

#[test]
fn watch_runs_again_after_a_change_of_settings_and_of_variables() {
    let home = Home::empty();
    let sign = home.path("sign").display().to_string();
    let home = in_checkout(home, &format!("a: {{script: 'echo $ONE$TWO >>{sign}'}}\n"));
    let seen = || std::fs::read_to_string(home.path("sign")).unwrap_or_default();
    let settings = home.path("checkout/.mayfly/exec.toml");
    std::fs::create_dir(settings.parent().expect("a directory")).expect("create the directory");
    // Replaced in one step: a run that starts meanwhile reads the settings before or after.
    let replace = |text: &str| {
        let draft = home.path("exec.draft");
        std::fs::write(&draft, text).expect("write a file");
        std::fs::rename(draft, &settings).expect("rename the file");
    };
    let set = |value: u8| replace(&format!("[var]\nONE = {value}\n"));
    // The path on the command line is a link: editors write the file that it refers to.
    let (variables, link) = (home.path("real.env"), home.path("link.env"));
    std::os::unix::fs::symlink(&variables, &link).expect("create a link");
    let set_variable = |value: u8| std::fs::write(&variables, format!("TWO={value}\n")).expect("write a file");
    set(1);
    set_variable(1);
    let mut child = started(&home, &["--watch", "--vars-file", &link.display().to_string()], &[]);
    let wait_for_run = |expected: &str| {
        wait_until(expected, || seen().ends_with(expected));
        wait_until("the run ends", || run_directory(&home) == "none");
    };
    wait_for_run("11\n");
    set(2);
    wait_for_run("21\n");
    set_variable(2);
    wait_for_run("22\n");
    // A mistake in the settings ends neither the watch nor its view of that file.
    replace("nonsense");
    std::fs::write(home.path("checkout/.gitlab-ci.yml"), format!("a: {{script: 'echo $ONE-$TWO >>{sign}'}}\n"))
        .expect("write a file");
    set(3);
    wait_for_run("3-2\n");
    // A run that was already starting may have read the last change, which then starts one more run.
    assert!(seen().starts_with("11\n21\n22\n3-2\n"), "{}", seen());
    send_signal(child.id().cast_signed(), Signal::SIGINT);
    assert_eq!(child.wait().expect("must end").code(), Some(130));
}

#[test]
fn watch_runs_again_after_a_change_of_mapped_files_and_after_the_first_settings() {
    let home = Home::empty();
    let sign = home.path("sign").display().to_string();
    let home = in_checkout(home, "include: {project: group/ci, file: a.yml}\n");
    let mapped = home.path("ci");
    std::fs::create_dir(&mapped).expect("create the directory");
    let write = |word: &str| {
        let text = format!("a: {{script: 'echo {word}$MORE >>{sign}'}}\n");
        std::fs::write(mapped.join("a.yml"), text).expect("write a file");
    };
    write("one");
    let map = format!("group/ci={}", mapped.display());
    let mut child = started(&home, &["--watch", "--map-project", &map], &[]);
    let wait_for_run = |expected: &str| {
        let seen = || std::fs::read_to_string(home.path("sign")).unwrap_or_default();
        wait_until(expected, || seen().ends_with(expected));
        wait_until("the run ends", || run_directory(&home) == "none");
    };
    wait_for_run("one\n");
    write("two");
    wait_for_run("two\n");
    // The directory of the settings file does not exist yet.
    let settings = home.path("checkout/.mayfly/exec.toml");
    std::fs::create_dir(settings.parent().expect("a directory")).expect("create the directory");
    std::fs::write(&settings, "[var]\nMORE = \"-more\"\n").expect("write a file");
    wait_for_run("two-more\n");
    send_signal(child.id().cast_signed(), Signal::SIGINT);
    assert_eq!(child.wait().expect("must end").code(), Some(130));
}
