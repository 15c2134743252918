//! `mayfly exec`: the jobs of a checkout, without a server.

use std::process::Output;

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
    let output = home.command(&all).current_dir(home.path("checkout")).output().expect("mayfly");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

const FILE: &str = "
stages: [one, two]
variables: {WORD: global}
first:
  stage: one
  image: alpine
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
    assert!(text.contains("warning   may-fail") && text.contains("`image` has no effect here"));
    let dirty = git(&home.path("checkout"), &["status", "--porcelain"]);
    assert_eq!(dirty, "", "nothing is written into the work tree");
    assert!(!home.path("checkout.tmp").exists());
}

#[test]
fn one_job_tells_its_outcome() {
    let home = checkout("bad: {script: [echo out, exit 9]}\ngood: {script: echo fine}\n");
    let (output, text) = exec(&home, &["bad"]);
    assert!(!output.status.success() && text.contains("Job failed: exit status 9"), "{text}");
    let (output, text) = exec(&home, &["good"]);
    assert!(output.status.success() && text.contains("\nfine\n"), "{text}");
    let (output, text) = exec(&home, &["none"]);
    assert!(!output.status.success() && text.contains("there are: bad, good"), "{text}");
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
fn the_projects_own_pipeline_passes() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mayfly"))
        .arg("exec")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("mayfly");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
