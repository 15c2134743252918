//! The variables of jobs and of downstream pipelines.

use serde_json::json;

use super::memory::Memory;
use super::planning::{job, job_of, listed, names, planned};
use crate::pipeline::listing::Listing;
use crate::pipeline::problem::Class;
use crate::pipeline::request::{GivenVariable, PlanRequest};
use crate::pipeline::{JobRun, plan};

#[test]
fn the_variable_level_with_the_highest_precedence_wins() {
    let text = "variables: {A: default, B: default, C: default, P: '$A-$SECRET'}\nj: {script: x, environment: prod, variables: {B: job, C: job}}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", text)]);
    let given = |key: &str, value: &str, scope: &str| GivenVariable {
        key: key.into(),
        value: value.into(),
        environment_scope: scope.into(),
        masked: key == "SECRET",
        ..GivenVariable::default()
    };
    let mut request = memory.request();
    request.project_variables =
        vec![given("C", "any", "*"), given("C", "prod", "prod"), given("SECRET", "s3cr3t99", "")];
    request.pipeline_variables = vec![given("A", "line", "")];
    let plan = plan(&request).expect("the pipeline must be valid");
    let run =
        JobRun { dotenv: vec![("B".into(), "dotenv".into()), ("C".into(), "dotenv".into())], ..JobRun::default() };
    let env = plan.env(&plan.jobs[0], &run);
    let value = |key: &str| env.iter().find(|variable| &*variable.key == key).map(|variable| variable.value.as_str());
    assert_eq!(["A", "B", "C", "P"].map(value), [Some("line"), Some("dotenv"), Some("prod"), Some("line-s3cr3t99")]);
    let listing = serde_json::to_value(Listing { plan: &plan, run: &|_, _| run.clone() }).expect("encode as JSON");
    assert!(!listing.to_string().contains("s3cr3t99"));
}

#[test]
fn local_values_replace_tokens_and_secrets() {
    let text =
        "j: {script: x, id_tokens: {TOK: {aud: a}}, secrets: {DB: {vault: a/b@c}, KEY: {vault: a/b@c, file: false}}}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", text)]);
    let given = |key: &str| GivenVariable { key: key.into(), value: "v".into(), ..GivenVariable::default() };
    let mut request = memory.request();
    request.project_variables = vec![given("TOK"), given("DB"), given("KEY"), given("OTHER")];
    let plan = plan(&request).expect("the pipeline must be valid");
    let env = plan.env(&plan.jobs[0], &JobRun::default());
    let form =
        |key: &str| env.iter().find(|variable| &*variable.key == key).map(|variable| (variable.masked, variable.file));
    let expected = [Some((true, false)), Some((true, true)), Some((true, false)), Some((false, false))];
    assert_eq!(["TOK", "DB", "KEY", "OTHER"].map(form), expected);
}

#[test]
fn a_child_pipeline_gets_the_forwarded_variables() {
    let main = "variables: {TOP: t}\nkid: {variables: {OWN: '$TOP-o-$REPORT'}, trigger: {include: [{local: child.yml, inputs: {n: x}}]}}\nbare: {trigger: {include: child.yml, forward: {yaml_variables: false, pipeline_variables: true}}}\n";
    let child = "spec: {inputs: {n: {default: d}}}\n---\nc: {script: 'echo $[[ inputs.n ]]', rules: [{if: $CI_PIPELINE_SOURCE == 'parent_pipeline'}]}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", main), ("child.yml", child)]);
    let mut request = memory.request();
    request.pipeline_variables =
        vec![GivenVariable { key: "LINE".into(), value: "l".into(), ..GivenVariable::default() }];
    let parent = plan(&request).expect("the pipeline must be valid");
    let keys = |name: &str| {
        let child = parent
            .child_request(job_of(&parent, name), &request, vec![("REPORT".to_owned(), "r".to_owned())])
            .expect("a child");
        let listing = listed(&child).expect("the pipeline must be valid");
        let variables: Vec<(String, String)> =
            child.pipeline_variables.iter().map(|given| (given.key.clone(), given.value.clone())).collect();
        (job(&listing, "c")["script"].clone(), variables)
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(keys("kid"), (json!(["echo x"]), vec![pair("TOP", "t"), pair("OWN", "t-o-r")]));
    assert_eq!(keys("bare"), (json!(["echo d"]), vec![pair("REPORT", "r"), pair("LINE", "l")]));
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
    let child = parent.child_request(job_of(&parent, "kid"), &request, dotenv).expect("a child");
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
fn variables_that_name_each_other_many_times_are_expanded_once() {
    let value = |number: usize| format!("  V{number}: '{}'\n", format!("$V{}", number + 1).repeat(50));
    let variables: String = (0..10).map(value).collect();
    let text =
        format!("variables:\n{variables}  V10: ''\nj: {{script: x, environment: e$V0, rules: [exists: [a$V0]]}}\n");
    assert!(names(&planned(&text)).is_empty());
}
