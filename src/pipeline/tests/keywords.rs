//! Keywords of jobs: the values that GitLab accepts, and their effects.

use serde_json::{Value, json};

use super::memory::Memory;
use super::planning::{classes, job, job_of, names, outcome, planned, with_job};
use crate::pipeline::plan;
use crate::pipeline::problem::Class;

/// The value of a keyword in a valid job with the given lines.
fn job_with(lines: &str, keyword: &str) -> Value {
    let text = with_job(lines);
    let listing = outcome(&[(".gitlab-ci.yml", &text)]).unwrap_or_else(|classes| panic!("{text}: {classes:?}"));
    job(&listing, "j")[keyword].clone()
}

#[test]
fn values_are_accepted_as_on_gitlab() {
    for (lines, keyword, expected) in [
        ("script: ['']", "script", json!([""])),
        ("cache: {key: '...', paths: [a]}", "cache", json!([{"key": "...", "paths": ["a"]}])),
        ("cache: {policy: $POLICY}", "cache", json!([{"policy": "$POLICY"}])),
        ("artifacts: {reports: {lsif: dump}}", "artifacts", json!({"reports": {"lsif": "dump"}})),
        (
            "artifacts: {paths: [a/], expose_as: My files_2}",
            "artifacts",
            json!({"paths": ["a/"], "expose_as": "My files_2"}),
        ),
        (
            "environment: {name: a/$B, deployment_tier: $TIER}",
            "environment",
            json!({"name": "a/$B", "deployment_tier": "$TIER"}),
        ),
        ("needs: [], dependencies: [o]", "dependencies", json!(["o"])),
        ("rules: [{exists: .gitlab-ci.yml}]", "when", json!("on_success")),
        ("rules: [[{if: $NO}], [[{when: always}]]]", "when", json!("always")),
        ("before_script: [[a], [[b]]]", "before_script", json!(["a", "b"])),
        ("needs: [[o]]", "needs", json!([{"job": "o", "artifacts": true, "optional": false}])),
        ("image: {name: i, kubernetes: {user: 1000}}", "image", json!({"name": "i", "kubernetes": {"user": 1000}})),
        ("inputs: {size: {type: number, default: 3}}", "script", json!(["x"])),
        ("release: {tag_name: v1, description: d, assets: {links: [{name: n, url: u}]}}", "script", json!(["x"])),
    ] {
        assert_eq!(job_with(lines, keyword), expected, "{lines}");
    }
}

#[test]
fn a_job_with_pages_uploads_the_published_directory() {
    assert_eq!(job_with("pages: true", "artifacts"), json!({"paths": ["public"]}));
    assert_eq!(
        job_with("pages: {publish: site}, artifacts: {paths: [log]}", "artifacts"),
        json!({"paths": ["log", "site"]})
    );
    assert_eq!(job_with("pages: {expire_in: 1 day}, publish: out", "artifacts"), json!({"paths": ["out"]}));
    assert_eq!(job_with("pages: false", "artifacts"), Value::Null);
    let listing =
        outcome(&[(".gitlab-ci.yml", "pages: {script: x, artifacts: {paths: [public], expire_in: 1 day}}\n")]);
    let artifacts = &listing.expect("must be planned")["jobs"][0]["artifacts"];
    assert_eq!(*artifacts, json!({"paths": ["public"], "expire_in": "1 day"}));
    let listing = outcome(&[(".gitlab-ci.yml", "pages: {script: x, pages: false}\n")]).expect("must be planned");
    assert_eq!(listing["jobs"][0]["artifacts"], Value::Null);
}

#[test]
fn a_job_that_needs_only_a_pipeline_mirrors_it() {
    let listing = outcome(&[(".gitlab-ci.yml", "j: {needs: {pipeline: team/lib}}\n")]).expect("must be planned");
    assert_eq!(listing["jobs"][0]["trigger"], json!({"project": "team/lib"}));
    assert_eq!(outcome(&[(".gitlab-ci.yml", "j: {needs: [o]}\no: {script: x}\n")]), Err(vec![Class::MissingScript]));
}

#[test]
fn computes_cache_keys_from_files() {
    let text = "a: {script: x, cache: {key: {files: [lock], prefix: p}, paths: [c]}}\nb: {script: x, cache: {key: {files: [gone]}, paths: [c]}}\nc: {script: x, cache: [{paths: [c]}, {key: $CI_JOB_NAME, paths: [d]}]}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", text), ("lock", "1")]);
    let plan = plan(&memory.request()).expect("the pipeline must be valid");
    let keys = |name: &str| job_of(&plan, name).cache_keys.clone();
    assert!(keys("a")[0].starts_with("p-") && keys("a")[0].len() == 42, "{:?}", keys("a"));
    assert_eq!(keys("b"), ["default"]);
    assert_eq!(keys("c"), ["default", "$CI_JOB_NAME"]);
}

#[test]
fn a_job_has_fewer_than_50_tags() {
    let with = |count: usize| format!("j: {{script: x, tags: [{}]}}\n", vec!["t"; count].join(", "));
    planned(&with(49));
    assert_eq!(classes(&with(50)), [Class::BadValue]);
}

#[test]
fn needs_resolve_to_the_jobs_of_a_matrix() {
    let text = "stages: [build, test]\nb: {stage: build, script: x, parallel: {matrix: [{OS: [linux, mac]}]}}\nt: {stage: test, script: x, parallel: {matrix: [{OS: [linux, mac]}]}, needs: [{job: b, parallel: {matrix: [{OS: ['$[[ matrix.OS ]]']}]}}]}\nopt: {stage: test, script: x, needs: [{job: nowhere, optional: true}]}\nother: {stage: test, script: x, needs: [{project: p/q, job: j, ref: main, artifacts: true}]}\n";
    let listing = planned(text);
    assert_eq!(job(&listing, "t: [mac]")["needs"], json!([{"job": "b: [mac]", "artifacts": true, "optional": false}]));
    assert_eq!(job(&listing, "opt")["needs"], json!([]));
    assert_eq!(job(&listing, "other")["needs"], Value::Null);
    let many: String = (0..51).map(|n| format!("j{n}: {{stage: build, script: x}}\n")).collect();
    let list: Vec<String> = (0..51).map(|n| format!("j{n}")).collect();
    assert_eq!(classes(&format!("{many}t: {{script: x, needs: [{}]}}\n", list.join(", "))), [Class::NeedsLimit]);
}

#[test]
fn an_explicit_job_replaces_a_permutation_before_it() {
    let text = "t: {script: x, parallel: {matrix: [{V: [a, b]}]}}\n't: [b]': {script: own}\n";
    let listing = planned(text);
    assert_eq!(names(&listing), ["t: [a]", "t: [b]"]);
    assert_eq!(job(&listing, "t: [b]")["script"], json!(["own"]));
}

#[test]
fn a_trigger_job_includes_artifacts_of_known_jobs_that_do_not_run_later() {
    let with = |job: &str| {
        format!(
            "make: {{stage: deploy, script: x}}\nkid: {{trigger: {{include: [{{artifact: c.yml, job: {job}}}]}}}}\nearly: {{stage: build, script: x, parallel: 2}}\nsame: {{script: x}}\n"
        )
    };
    assert_eq!(classes(&with("make")), [Class::DependenciesLaterStage]);
    assert_eq!(classes(&with("mkae")), [Class::DependenciesUnknown]);
    for job in ["early", "early 2/2", "same"] {
        planned(&with(&format!("'{job}'")));
    }
}
