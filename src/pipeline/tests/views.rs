//! What rules see of a job, and what trigger jobs pass on.

use super::memory::Memory;
use super::rules::{classes, job_of, listed, names, planned, refused};
use crate::pipeline::problem::Class;
use crate::pipeline::request::{GivenVariable, MergeRequest, PlanRequest};
use crate::pipeline::{JobRun, plan};

#[test]
fn rules_see_the_environment_of_the_job() {
    let text = "variables: {NAME: review}\n\
        a: {script: x, environment: {name: $NAME/$CI_JOB_NAME, url: 'https://$NAME'}, rules: [{if: $CI_ENVIRONMENT_NAME == 'review/a' && $CI_ENVIRONMENT_URL == 'https://$NAME'}]}\n\
        b: {script: x, environment: {name: prod, action: stop}, rules: [{if: $CI_ENVIRONMENT_ACTION == 'stop' && $CI_ENVIRONMENT_TIER == 'production'}]}\n\
        c: {script: x, environment: prod/eu, only: {variables: [$SCOPED == 'prod']}}\n\
        d: {script: x, environment: review/x, rules: [{if: $SCOPED == 'any' && $CI_ENVIRONMENT_ACTION == 'start'}]}\n\
        e: {script: x, rules: [{if: $SCOPED == 'any' && $CI_ENVIRONMENT_NAME == null}]}\n\
        f: {script: x, environment: prod, rules: [{if: $CI_ENVIRONMENT_SLUG || $SCOPED == 'any'}]}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", text)]);
    let given = |value: &str, scope: &str| GivenVariable {
        key: "SCOPED".into(),
        value: value.into(),
        environment_scope: scope.into(),
        ..Default::default()
    };
    let mut request = memory.request();
    request.project_variables = vec![given("any", "*"), given("prod", "prod*")];
    let listing = listed(&request).expect("the pipeline must be valid");
    assert_eq!(names(&listing), ["a", "b", "c", "d", "e"]);
}

#[test]
fn rules_see_that_a_job_is_manual() {
    let text =
        "a: {script: x, when: manual, rules: [{if: $CI_JOB_MANUAL}]}\nb: {script: x, rules: [{if: $CI_JOB_MANUAL}]}\n";
    assert_eq!(names(&planned(text)), ["a"]);
}

#[test]
fn paths_in_rules_may_contain_nested_variables() {
    let text = "variables: {DIR: src, FILE: '$DIR/$CI_JOB_NAME', ONE: '${DIR}/$NO*.rs', RAW: {value: $DIR/a, expand: false}, REF: no-such-$WORD, WORD: ref}\n\
        a: {script: x, rules: [{changes: [$FILE]}]}\n\
        b: {script: x, rules: [{exists: [$FILE]}]}\n\
        c: {script: x, rules: [{exists: [$ONE]}]}\n\
        d: {script: x, rules: [{exists: [$RAW]}]}\n\
        e: {script: x, rules: [{exists: [$MISSING/*]}]}\n\
        f: {script: x, parallel: {matrix: [{M: [$FILE, main.rs]}]}, rules: [{exists: [src/$M]}]}\n\
        g: {script: x, rules: [{exists: {regexp: '^$DIR/.*s$'}}]}\n\
        h: {script: x, rules: [{exists: {regexp: '^(?!$DIR/|\\.)'}}]}\n";
    let mut memory = Memory::new(&[
        (".gitlab-ci.yml", text),
        ("src/b", ""),
        ("src/main.rs", ""),
        ("$MISSING/x", ""),
        ("src/$FILE", ""),
    ]);
    memory.changed = Some(vec!["src/a".to_owned()]);
    let mut request = memory.request();
    request.facts.before = Some("abc".to_owned());
    let listing = listed(&request).expect("the pipeline must be valid");
    assert_eq!(names(&listing), ["a", "b", "c", "e", "f: [main.rs]", "g", "h"]);
    let with = |rule: &str| {
        let mut problems = refused(&[(
            ".gitlab-ci.yml",
            &format!(
                "variables: {{REF: no-such-$WORD, WORD: ref, LONG: {}}}\nj: {{script: x, rules: [{rule}]}}\n",
                "a".repeat(300)
            ),
        )]);
        problems.remove(0).class
    };
    assert_eq!(with("{changes: {paths: [a], compare_to: $REF}}"), Class::CompareTo);
    assert_eq!(with("{exists: {regexp: '$LONG'}}"), Class::BadValue);
    assert_eq!(with("{exists: {regexp: '[a'}}"), Class::BadValue);
}

#[test]
fn only_without_refs_stays_out_of_merge_requests_with_workflow_rules_too() {
    let text = "workflow: {rules: [{when: always}]}\nplain: {script: x}\nlimited: {script: x, only: {variables: [$CI]}}\nexcept: {script: x, except: {variables: [$NO]}}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", text)]);
    let mut request = memory.request();
    request.source.name = "merge_request_event".to_owned();
    request.source.merge_request =
        Some(MergeRequest { iid: 7, source: "feature".into(), target: "main".into(), ..MergeRequest::default() });
    assert_eq!(names(&listed(&request).expect("the pipeline must be valid")), ["plain", "except"]);
    assert_eq!(names(&planned(text)), ["plain", "limited", "except"]);
}

#[test]
fn a_job_has_fewer_than_50_tags() {
    let with = |count: usize| format!("j: {{script: x, tags: [{}]}}\n", vec!["t"; count].join(", "));
    planned(&with(49));
    assert_eq!(classes(&with(50)), [Class::BadValue]);
}

#[test]
fn variables_that_name_each_other_many_times_are_expanded_once() {
    let value = |number: usize| format!("  V{number}: '{}'\n", format!("$V{}", number + 1).repeat(50));
    let variables: String = (0..10).map(value).collect();
    let text =
        format!("variables:\n{variables}  V10: ''\nj: {{script: x, environment: e$V0, rules: [exists: [a$V0]]}}\n");
    assert!(names(&planned(&text)).is_empty());
}

#[test]
fn given_variables_must_not_form_a_cycle() {
    let memory = Memory::new(&[(".gitlab-ci.yml", "j: {script: x}\n")]);
    let given = |key: &str, value: &str| GivenVariable { key: key.into(), value: value.into(), ..Default::default() };
    let mut request = memory.request();
    request.pipeline_variables = vec![given("A", "$B"), given("C", "x-${A}"), given("D", "$D")];
    assert!(listed(&request).is_ok());
    request.project_variables = vec![given("B", "$C")];
    let problems = listed(&request).expect_err("must be refused");
    assert_eq!((problems.len(), problems[0].class), (1, Class::VariableCycle), "{problems:?}");
    request.project_variables[0].raw = true;
    assert!(listed(&request).is_ok());
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

#[test]
fn what_a_trigger_job_passes_is_expanded_once_and_ordered_by_precedence() {
    let main = "variables: {A: $CI_JOB_NAME, B: '$A-$FILE-$NO', RAW: {value: $A, expand: false}, SAME: yaml}\nkid: {trigger: {include: child.yml, forward: {pipeline_variables: true}}}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", main), ("child.yml", "c: {script: x}\n")]);
    let mut request = memory.request();
    let given = |key: &str, value: &str| GivenVariable { key: key.into(), value: value.into(), ..Default::default() };
    request.project_variables = vec![GivenVariable { file: true, ..given("FILE", "content") }];
    request.pipeline_variables = vec![given("SAME", "line-$CI_COMMIT_BRANCH")];
    let parent = plan(&request).expect("the pipeline must be valid");
    let dotenv = vec![("REPORT".to_owned(), "r".to_owned()), ("SAME".to_owned(), "dotenv".to_owned())];
    let child = parent.child(job_of(&parent, "kid"), &request, dotenv).expect("a child");
    let child = plan(&PlanRequest { project_variables: vec![], ..child }).expect("the pipeline must be valid");
    let env = child.env(&child.jobs[0], &JobRun::default());
    let value = |key: &str| {
        let variable = env.iter().find(|variable| &*variable.key == key).expect(key);
        (variable.value.as_str(), variable.file)
    };
    assert_eq!(
        ["A", "B", "RAW", "SAME", "REPORT", "FILE"].map(value),
        [("kid", false), ("c-$FILE-", false), ("$A", false), ("line-main", false), ("r", false), ("content", true)]
    );
}
