//! Which jobs rules include, and which variables they see.

use serde_json::{Value, json};

use super::memory::Memory;
use super::planning::{job, listed, names, planned, refused};
use crate::pipeline::problem::Class;
use crate::pipeline::request::{GivenVariable, MergeRequest};

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
fn rules_do_not_see_what_the_server_sets_after_them() {
    let text = "j: {script: x, rules: [{if: $CI_PIPELINE_ID}]}\nk: {script: x, rules: [{if: $CI_PIPELINE_IID}]}\n";
    let listing = planned(text);
    assert_eq!(names(&listing), ["k"]);
    assert_eq!(job(&listing, "k")["env"]["CI_PIPELINE_ID"], "1");
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
fn jobs_without_rules_stay_out_of_merge_requests() {
    let text = "plain: {script: x}\nmr: {script: x, only: [merge_requests]}\nruled: {script: x, rules: [{if: $CI_MERGE_REQUEST_IID == '7'}]}\nbranch: {script: x, rules: [{if: $CI_COMMIT_BRANCH}]}\nbad: {script: x, only: {variables: [$CI]}}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", text)]);
    let mut request = memory.request();
    request.source.name = "merge_request_event".to_owned();
    request.source.merge_request =
        Some(MergeRequest { iid: 7, source: "feature".into(), target: "main".into(), ..MergeRequest::default() });
    let listing = listed(&request).expect("the pipeline must be valid");
    assert_eq!(names(&listing), ["mr", "ruled"]);
    assert_eq!(job(&listing, "mr")["env"]["CI_COMMIT_REF_NAME"], "feature");
    assert_eq!(job(&listing, "mr")["env"]["CI_COMMIT_BRANCH"], Value::Null);
    assert_eq!(names(&planned(text)), ["plain", "branch", "bad"]);
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
fn changes_compare_by_kind_of_pipeline() {
    let text = "a: {script: x, rules: [{changes: [src/*]}]}\nb: {script: x}\n";
    let with = |source: &str, before: Option<&str>, changed: &str| {
        let mut memory = Memory::new(&[(".gitlab-ci.yml", text)]);
        memory.changed = Some(vec![changed.to_owned()]);
        let mut request = memory.request();
        request.source.name = source.to_owned();
        request.facts.before = before.map(str::to_owned);
        names(&listed(&request).expect("the pipeline must be valid")).contains(&"a")
    };
    assert!(with("push", Some("abc"), "src/x"));
    assert!(!with("push", Some("abc"), "doc/x"));
    assert!(with("push", None, "doc/x"));
    assert!(with("schedule", Some("abc"), "doc/x"));
}

#[test]
fn a_rule_overrides_only_the_keywords_that_it_has() {
    let text = "a: {script: x, when: manual, allow_failure: {exit_codes: 3}, rules: [{if: $CI, when: always, interruptible: true}]}\nc: {script: x, parallel: {matrix: [{V: [a, b]}]}, variables: {V: j}, rules: [{if: $V == 'b', variables: {V: r}}]}\n";
    let listing = planned(text);
    let a = job(&listing, "a");
    assert_eq!(
        (&a["when"], &a["allow_failure"], &a["interruptible"]),
        (&json!("always"), &json!({"exit_codes": [3]}), &json!(true))
    );
    assert_eq!(job(&listing, "c: [b]")["variables"], json!({"V": "r"}));
    assert_eq!(listing["absent"], json!(["c: [a]"]));
}
