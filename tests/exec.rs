//! `mayfly exec`: the jobs of a checkout, without a server.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::support::git::git;
use crate::support::mayfly::Home;

fn checkout(file: &str) -> Home {
    let home = Home::empty();
    let root = home.path("checkout");
    std::fs::create_dir(&root).expect("made");
    git(&root, &["init", "-q", "-b", "main"]);
    std::fs::write(root.join(".gitlab-ci.yml"), file).expect("written");
    git(&root, &["add", "-A"]);
    git(&root, &["-c", "user.name=Dev", "-c", "user.email=dev@example.test", "commit", "-q", "-m", "first"]);
    home
}

fn exec(home: &Home, arguments: &[&str]) -> (Output, String) {
    let all = [&["exec"], arguments].concat();
    let mut command = home.command(&all);
    command.current_dir(home.path("checkout")).env("XDG_CACHE_HOME", home.path("cache"));
    let output = command.output().expect("mayfly");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

/// Every file below a directory with its content, the repository included.
fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).expect("read") {
            let path = entry.expect("an entry").path();
            match path.symlink_metadata().expect("there").is_dir() {
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
    assert!(text.contains("warning   may-fail"));
    assert!(!text.contains('\x1b') && !text.contains("Running with mayfly"), "{text}");
}

#[test]
fn jobs_work_in_a_copy_and_the_checkout_stays_as_it_is() {
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
    std::fs::write(root.join("tracked"), "first\n").expect("written");
    git(&root, &["add", "tracked"]);
    std::fs::write(root.join("tracked"), "edited\n").expect("written");
    std::fs::write(root.join("loose"), "loose\n").expect("written");
    let before = contents(&root);
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("\nedited\n") && !text.contains("\nloose\n"), "{text}");
    assert!(contents(&root) == before, "nothing is written into the checkout");
    let (_, text) = exec(&home, &["two", "--untracked"]);
    assert!(text.contains("\nloose\n"), "{text}");
    assert!(contents(&root) == before);
}

#[test]
fn a_job_that_asks_for_a_container_is_refused_unless_the_shell_is_asked_for() {
    let home = checkout("default: {image: alpine}\na: {script: touch $CI_PROJECT_DIR/ran && echo ran}\n");
    let (output, text) = exec(&home, &[]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--shell") && !text.contains("\nran\n"), "{text}");
    let (output, text) = exec(&home, &["--shell"]);
    assert!(output.status.success() && text.contains("\nran\n"), "{text}");
    assert!(text.contains("warning: --shell: no container for a"), "{text}");
}

#[test]
fn a_manual_job_runs_only_when_it_is_asked_for() {
    let home = checkout("a: {script: echo a}\ndeploy: {script: echo deployed, when: manual}\n");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && !text.contains("\ndeployed\n"), "{text}");
    let (output, text) = exec(&home, &["deploy"]);
    assert!(output.status.code() == Some(2) && text.contains("--manual deploy"), "{text}");
    let (output, text) = exec(&home, &["--manual", "deploy"]);
    assert!(output.status.success() && text.contains("\ndeployed\n"), "{text}");
}

#[test]
fn one_job_tells_its_outcome() {
    let home = checkout("bad: {script: [echo out, exit 9]}\ngood: {script: echo fine}\n");
    let (output, text) = exec(&home, &["bad"]);
    assert!(output.status.code() == Some(1) && text.contains("\nout\n"), "{text}");
    let (output, text) = exec(&home, &["good"]);
    assert!(output.status.success() && text.contains("\nfine\n"), "{text}");
    let (output, text) = exec(&home, &["none"]);
    assert!(output.status.code() == Some(2) && text.contains("there are: bad, good"), "{text}");
}

#[test]
fn a_failed_stage_skips_later_jobs_but_not_those_for_failures() {
    let file = "
stages: [a, b]
x: {stage: a, script: 'false'}
y: {stage: b, script: echo y}
z: {stage: b, script: echo z ran, when: on_failure}
w: {stage: b, script: echo, when: manual}
";
    let (output, text) = exec(&checkout(file), &[]);
    assert!(!output.status.success());
    assert!(text.contains("skipped   y") && text.contains("\nz ran\n") && text.contains("skipped   w"), "{text}");
}

#[test]
fn a_file_that_cannot_be_used_is_refused_with_every_mistake() {
    let (output, text) = exec(&checkout("a: {scirpt: x}\nb: {extends: .c}\n"), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("did you mean `script`?") && text.contains("`extends`"), "{text}");
}

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let home = checkout("a: {script: ['while true; do echo line; done']}\nb: {stage: deploy, script: echo never}\n");
    let mut command = home.command(&["exec"]);
    command.current_dir(home.path("checkout")).env("XDG_CACHE_HOME", home.path("cache"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mayfly");
    let mut start = [0; 64];
    child.stdout.take().expect("a pipe").read_exact(&mut start).expect("read");
    let output = child.wait_with_output().expect("ended");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !complaint.contains("panicked"), "{complaint}");
}

#[test]
fn the_projects_own_pipeline_passes() {
    let home = Home::empty();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mayfly"))
        .arg("exec")
        .env("XDG_CACHE_HOME", home.path("cache"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("mayfly");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
