//! `mayfly exec` and pipelines of other projects (`trigger:project`), which run from mapped checkouts.

use std::fs;

use serde_json::Value;

use crate::exec::{assert_nothing_left, checkout, exec, exec_with, in_checkout};
use crate::support::docker::docker;
use crate::support::git::git;
use crate::support::mayfly::Home;

const TRIGGER: &str = "
variables: {COLOUR: red}
build: {stage: build, script: [echo built]}
deploy:
  stage: deploy
  variables: {SHADE: '$COLOUR-blue'}
  trigger: {project: team/deploy, branch: stable, strategy: depend}
";

const DEPLOY: &str = "
roll-out:
  script: ['echo $SHADE $CI_PIPELINE_SOURCE $CI_COMMIT_BRANCH', 'cat own', 'test ! -e other']
  cache: {key: k, paths: [kept]}
no: {script: exit 1, rules: [{if: '$CI_PIPELINE_SOURCE == \"push\"'}]}
nested: {trigger: {include: child.yml, strategy: depend}}
";

/// A checkout whose pipeline triggers the one of a second checkout, and the option that maps it.
fn two_checkouts(deploy: &str) -> (Home, String) {
    let home = checkout(TRIGGER);
    fs::write(home.path("checkout/other"), "x").expect("write a file");
    let other = in_checkout(Home::empty(), deploy);
    let place = home.path("deploy");
    fs::rename(other.path("checkout"), &place).expect("move the checkout");
    fs::write(place.join("own"), "of the other project\n").expect("write a file");
    fs::write(place.join("child.yml"), "leaf: {script: [echo leaf]}\n").expect("write a file");
    git(&place, &["add", "-A"]);
    let map = format!("team/deploy={}", place.display());
    (home, map)
}

fn statuses(home: &Home) -> Value {
    serde_json::from_slice(&fs::read(home.path("report.json")).expect("the report")).expect("must be JSON")
}

#[test]
fn the_pipeline_of_a_mapped_checkout_runs_with_its_own_files() {
    let (home, map) = two_checkouts(DEPLOY);
    let report = home.path("report.json").display().to_string();
    let (output, text) = exec(&home, &["--map-project", &map, "--report", &report]);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("\nred-blue pipeline stable\n") && text.contains("\nof the other project\n"), "{text}");
    let jobs = statuses(&home)["jobs"].clone();
    for name in ["build", "deploy", "deploy/roll-out", "deploy/nested", "deploy/nested/leaf"] {
        assert_eq!(jobs[name]["status"], "success", "{name}: {jobs}");
    }
    assert!(jobs["deploy/no"].is_null() && !text.contains("--map-project"), "{text}");
    assert_nothing_left(&home);
}

#[test]
fn a_failure_of_a_mapped_pipeline_fails_its_trigger_job() {
    let (home, map) = two_checkouts("roll-out: {script: exit 7}\n");
    let report = home.path("report.json").display().to_string();
    let (output, text) = exec(&home, &["--map-project", &map, "--report", &report]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let jobs = statuses(&home)["jobs"].clone();
    assert_eq!((&jobs["deploy"]["status"], &jobs["deploy/roll-out"]["exit_code"]), (&"failed".into(), &7.into()));
}

#[test]
fn a_downstream_pipeline_without_a_mapped_checkout_is_noted_and_not_run() {
    let (home, _) = two_checkouts(DEPLOY);
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("--map-project team/deploy="), "{text}");
    let plain = format!("team/deploy={}", home.path("").display());
    let (output, text) = exec(&home, &["--map-project", &plain]);
    assert!(output.status.success() && text.contains("is not the top directory of a git checkout"), "{text}");
}

#[test]
fn projects_that_trigger_each_other_end() {
    let again = "again: {trigger: {project: team/deploy, strategy: depend}}\n";
    let (home, map) = two_checkouts(again);
    let (output, text) = exec(&home, &["--map-project", &map]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("a chain of more than 10 pipelines"), "{text}");
}

#[test]
fn containers_of_a_mapped_pipeline_see_the_objects_of_its_checkout() {
    let script = "['test -d $(cat .git/objects/info/alternates)/pack && echo seen']";
    let (home, map) = two_checkouts(&format!("roll-out: {{image: 'busybox:local', script: {script}}}\n"));
    let (output, text) = exec_with(&home, &["--map-project", &map], &[("DOCKER_HOST", &docker().host())]);
    assert!(output.status.success() && text.contains("\nseen\n"), "{text}");
}
