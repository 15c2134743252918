//! Rules of the reference that the shared cases do not cover.

use serde_json::{Value, json};

use super::memory::Memory;
use crate::pipeline::listing::Listing;
use crate::pipeline::plan::{Job, Plan};
use crate::pipeline::problem::{Class, Problem};
use crate::pipeline::request::{GivenInput, GivenVariable, InputValue, MergeRequest, PlanRequest};
use crate::pipeline::{JobRun, plan};

pub fn listed(request: &PlanRequest<'_>) -> Result<Value, Vec<Problem>> {
    let plan = plan(request)?;
    Ok(serde_json::to_value(Listing { plan: &plan, run: &|_, _| JobRun::default() }).expect("encode as JSON"))
}

pub fn planned(text: &str) -> Value {
    let memory = Memory::new(&[(".gitlab-ci.yml", text)]);
    listed(&memory.request()).unwrap_or_else(|problems| panic!("{text}: {problems:?}"))
}

pub fn refused(files: &[(&str, &str)]) -> Vec<Problem> {
    listed(&Memory::new(files).request()).expect_err(files[0].1)
}

pub fn classes(text: &str) -> Vec<Class> {
    refused(&[(".gitlab-ci.yml", text)]).iter().map(|problem| problem.class).collect()
}

pub fn job<'a>(listing: &'a Value, name: &str) -> &'a Value {
    let mut jobs = listing["jobs"].as_array().into_iter().flatten();
    jobs.find(|job| job["name"] == name).unwrap_or_else(|| panic!("no {name} in {listing}"))
}

pub fn job_of<'a>(plan: &'a Plan, name: &str) -> &'a Job {
    plan.jobs.iter().find(|job| &*job.name == name).expect("the job")
}

pub fn names(listing: &Value) -> Vec<&str> {
    listing["jobs"].as_array().into_iter().flatten().filter_map(|job| job["name"].as_str()).collect()
}

#[test]
fn problems_have_the_right_class() {
    for (text, class) in [
        ("", Class::NotAMapping),
        ("# nothing\n", Class::NotAMapping),
        ("- a\n", Class::NotAMapping),
        ("just text", Class::NotAMapping),
        ("a: [1\n", Class::YamlSyntax),
        ("a: {script: x}\n---\nb: {script: x}\n---\nc: 1\n", Class::YamlSyntax),
        (".a: {script: x}\n", Class::NoVisibleJob),
        ("variables: {A: b}\n", Class::NoVisibleJob),
        ("j: text\n", Class::NotAMapping),
        ("stagse: [a]\nj: {script: x}\n", Class::UnknownKeyword),
        ("default: {imgae: x}\nj: {script: x}\n", Class::UnknownKeyword),
        ("j: {script: x, image: {nmae: y}}\n", Class::UnknownKeyword),
        ("j: {script: x, artifacts: {path: [a]}}\n", Class::UnknownKeyword),
        ("j: {script: []}\n", Class::MissingScript),
        ("j: {script: [1]}\n", Class::BadValue),
        ("j: {script: ['a', {b: c}]}\n", Class::BadValue),
        ("j: {script: x, when: sometimes}\n", Class::BadWhen),
        ("j: {script: x, rules: [{when: sometimes}]}\n", Class::BadWhen),
        ("j: {script: x, artifacts: {when: never}}\n", Class::BadWhen),
        ("j: {script: x, when: delayed}\n", Class::StartIn),
        ("j: {script: x, when: delayed, start_in: 2 weeks}\n", Class::StartIn),
        ("j: {script: x, rules: [{when: delayed}]}\n", Class::StartIn),
        ("j: {script: x, rules: [{start_in: '5'}]}\n", Class::StartIn),
        ("j: {script: x, except: [main], rules: [{when: always}]}\n", Class::RulesWithOnly),
        ("j: {script: x, parallel: 201}\n", Class::MatrixTooBig),
        ("j: {script: x, parallel: 0}\n", Class::BadValue),
        ("j: {script: x, retry: {max: 1, when: [bad_luck]}}\n", Class::BadValue),
        ("j: {script: x, retry: {max: 5}}\n", Class::RetryRange),
        ("j: {script: x, cache: [{key: a}, {key: b}, {key: c}, {key: d}, {key: e}]}\n", Class::CacheLimit),
        ("j: {script: x, timeout: soon}\n", Class::BadValue),
        ("j: {script: x, artifacts: {paths: [a], expire_in: soon}}\n", Class::BadValue),
        ("j: {script: x, coverage: abc}\n", Class::BadValue),
        ("j: {script: x, needs: [j]}\n", Class::NeedsCycle),
        ("a: {script: x, needs: [b]}\nb: {script: x, needs: [a]}\n", Class::NeedsCycle),
        ("a: {script: x, rules: [{needs: [ghost]}]}\n", Class::NeedsUnknown),
        ("j: {script: x, environment: {name: e, on_stop: gone}}\n", Class::OnStop),
        ("j: {script: x, environment: {name: e, on_stop: k}}\nk: {script: x}\n", Class::OnStop),
        ("variables: {A: $B, B: $A}\nj: {script: x}\n", Class::VariableCycle),
        ("include: x.txt\nj: {script: x}\n", Class::IncludeSyntax),
        ("include: {locla: x.yml}\nj: {script: x}\n", Class::UnknownKeyword),
        ("include: {remote: 'https://gone.test/x.yml'}\nj: {script: x}\n", Class::IncludeMissing),
        ("workflow: {rules: [{when: manual}]}\nj: {script: x}\n", Class::BadWhen),
        ("workflow: {rules: [{if: $A =}]}\nj: {script: x}\n", Class::IfSyntax),
        ("j: {script: x, trigger: p/q}\n", Class::ScriptAndTrigger),
        ("j: {image: x, trigger: p/q}\n", Class::UnknownKeyword),
        ("j: {trigger: {include: a.yml, project: b}}\n", Class::BadValue),
        ("j: {script: x, inherit: {default: [imgae]}}\n", Class::BadValue),
        ("j: {script: x, only: [/(/]}\n", Class::BadValue),
        ("j: {script: x, needs: [{project: g/p, ref: main}]}\n", Class::BadValue),
        ("j: {script: x, script: !reference .a}\n", Class::ReferenceUnknown),
        (": {script: x}\nj: {script: x}\n", Class::YamlSyntax),
    ] {
        assert_eq!(classes(text).first(), Some(&class), "{text}");
    }
}

#[test]
fn reports_all_problems_and_each_cause_once() {
    let text = "default: {retry: 7}\na: {script: x, stage: nowhere}\nb: {script: x, needs: [a, ghost]}\nc: {extends: .gone, script: x}\nd: {script: x, needs: [c], colour: red}\n";
    let problems = refused(&[(".gitlab-ci.yml", text)]);
    let told: Vec<(Class, usize)> = problems.iter().map(|problem| (problem.class, problem.line)).collect();
    let expected = [
        (Class::ExtendsUnknown, 4),
        (Class::RetryRange, 1),
        (Class::UnknownStage, 2),
        (Class::UnknownKeyword, 5),
        (Class::NeedsUnknown, 3),
    ];
    assert_eq!(told, expected, "{problems:?}");
    assert!(problems[4].message.contains("ghost") && problems[4].job.as_deref() == Some("b"));
}

#[test]
fn a_misspelled_keyword_is_the_only_problem_of_its_mapping() {
    for keyword in ["exists", "changes"] {
        assert_eq!(
            classes(&format!("j: {{script: x, rules: [{{{keyword}: {{path: [a]}}}}]}}\n")),
            [Class::UnknownKeyword]
        );
    }
}

#[test]
fn a_quoted_block_that_is_a_whole_value_keeps_its_type() {
    let spec = "spec:\n  inputs:\n    n: {type: number, default: 2}\n    l: {type: array, default: [{if: $A}, {when: manual}]}\n    e: {type: array, default: []}\n    f: {type: boolean, default: true}\n---\n";
    let body = "j:\n  script:\n  - 'x'\n  - echo \"$[[ inputs.n ]]\" '$[[ inputs.e ]]'\n  - |\n    f: \"$[[ inputs.f ]]\"\n  parallel: \"$[[ inputs.n ]]\"\n  interruptible: '$[[ inputs.f ]]'\n  rules:\n  - \"$[[ inputs.l ]]\"\n  - \"$[[ inputs.e ]]\"\n";
    let listing = planned(&format!("{spec}{body}"));
    assert_eq!(names(&listing), ["j 1/2", "j 2/2"]);
    let job = job(&listing, "j 2/2");
    assert_eq!((&job["when"], &job["interruptible"]), (&json!("manual"), &json!(true)));
    assert_eq!(job["script"], json!(["x", "echo \"2\" '[]'", "f: \"true\"\n"]));
}

#[test]
fn rules_do_not_see_what_the_server_sets_after_them() {
    let text = "j: {script: x, rules: [{if: $CI_PIPELINE_ID}]}\nk: {script: x, rules: [{if: $CI_PIPELINE_IID}]}\n";
    let listing = planned(text);
    assert_eq!(names(&listing), ["k"]);
    assert_eq!(job(&listing, "k")["env"]["CI_PIPELINE_ID"], "1");
}

#[test]
fn unknown_keywords_are_warnings_when_lax() {
    let memory = Memory::new(&[(".gitlab-ci.yml", "j: {script: x, artefacts: {}}\n")]);
    let listing = listed(&PlanRequest { lax: true, ..memory.request() }).expect("the pipeline must be valid");
    assert!(listing["warnings"][0]["message"].as_str().is_some_and(|text| text.contains("did you mean `artifacts`")));
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
fn resolves_includes_of_all_kinds() {
    let main = "include:\n- component: $CI_SERVER_FQDN/team/tools/lint@1\n  inputs: {level: high}\n- template: Base.yml\n- remote: https://x.test/r.yml\n  integrity: sha256-rSvs0zFvqBdcXjxa3FtxGJ/1iyOu4kXGRUbJOnMVd8c=\n- project: team/lib\n  file: a.yml\nown: {script: x}\n";
    let component = "spec: {component: [name, sha, version, reference], inputs: {level: }}\n---\nlint: {script: 'echo $[[ inputs.level ]] $[[ component.name ]] $[[ component.sha ]] $[[ component.version ]] $[[ component.reference ]]'}\n";
    let files = [
        (".gitlab-ci.yml", main),
        ("team/tools@1/templates/lint/template.yml", component),
        ("template:Base.yml", "t: {script: x}\n"),
        ("https://x.test/r.yml", "r: {script: x}\n"),
        ("team/lib@HEAD/a.yml", "include: b.yml\np: {script: x}\n"),
        ("team/lib@HEAD/b.yml", "q: {script: x}\n"),
    ];
    let hash = ring::digest::digest(&ring::digest::SHA256, files[3].1.as_bytes());
    use base64::Engine as _;
    let hash = base64::engine::general_purpose::STANDARD.encode(hash);
    let main = main.replace("rSvs0zFvqBdcXjxa3FtxGJ/1iyOu4kXGRUbJOnMVd8c=", &hash);
    let mut right = files;
    right[0].1 = &main;
    let listing = listed(&Memory::new(&right).request()).expect("the pipeline must be valid");
    assert_eq!(names(&listing), ["lint", "t", "r", "q", "p", "own"]);
    assert_eq!(job(&listing, "lint")["script"], json!(["echo high lint c0ffee 1.2.3 1"]));
    let wrong = refused(&files);
    assert_eq!((wrong[0].class, wrong[0].line), (Class::IncludeIntegrity, 5), "{wrong:?}");
}

#[test]
fn limits_includes() {
    let cycle = [
        (".gitlab-ci.yml", "include: a.yml\n"),
        ("a.yml", "include: b.yml\n"),
        ("b.yml", "j: {script: x}\ninclude: a.yml\n"),
    ];
    let problems = refused(&cycle);
    assert_eq!(
        (problems[0].class, &*problems[0].file, problems[0].line, problems.len()),
        (Class::IncludeLimit, "b.yml", 2, 1)
    );
    let many: String = (0..151).map(|_| "- a.yml\n").collect();
    let problems = refused(&[(".gitlab-ci.yml", &format!("include:\n{many}")), ("a.yml", "j: {script: x}\n")]);
    assert_eq!((problems[0].class, problems.len()), (Class::IncludeLimit, 1));
    assert_eq!(
        refused(&[(".gitlab-ci.yml", "include: a.yml\nj: {script: x}\n"), ("a.yml", "")])[0].class,
        Class::IncludeMissing
    );
    let remote = [(".gitlab-ci.yml", "include: https://x.test/r.yml\n"), ("https://x.test/r.yml", "include: l.yml\n")];
    assert_eq!(refused(&remote)[0].class, Class::IncludeSyntax);
    let large = "x".repeat(3 << 20);
    assert_eq!(refused(&[(".gitlab-ci.yml", &large)])[0].class, Class::TooBig);
}

#[test]
fn inputs_that_grow_with_each_include_are_bounded() {
    let growing = |value: &str| -> Vec<(String, String)> {
        let file = |n: usize| {
            let next = format!("include: [{{local: f{}.yml, inputs: {{x: [{value}]}}}}]\n", n + 1);
            (format!("f{n}.yml"), format!("spec: {{inputs: {{x: {{type: array}}}}}}\n---\n{next}"))
        };
        let main = (".gitlab-ci.yml".to_owned(), "include: [{local: f0.yml, inputs: {x: [1]}}]\n".to_owned());
        (0..140).map(file).chain([main, ("f140.yml".to_owned(), "j: {script: x}\n".to_owned())]).collect()
    };
    for value in ["$[[ inputs.x ]], $[[ inputs.x ]]", "{k: $[[ inputs.x ]]}"] {
        let files = growing(value);
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
        let problems = refused(&files);
        assert_eq!((problems[0].class, problems.len()), (Class::TooBig, 1), "{problems:?}");
    }
}

#[test]
fn resolves_inputs_of_the_first_file_and_shared_definitions() {
    let main = "spec:\n  include: [{local: shared.yml}]\n  inputs: {own: {default: 1, type: number}}\n---\nj: {script: 'echo $[[ inputs.own ]] $[[ inputs.shared ]]'}\n";
    let memory = Memory::new(&[(".gitlab-ci.yml", main), ("shared.yml", "inputs: {shared: {options: [a, b]}}\n")]);
    let given = |key: &str, value: &str| GivenInput { key: key.into(), value: InputValue::Text(value.into()) };
    let listing = listed(&PlanRequest { inputs: vec![given("own", "7"), given("shared", "b")], ..memory.request() });
    assert_eq!(job(&listing.expect("the pipeline must be valid"), "j")["script"], json!(["echo 7 b"]));
    let problems =
        listed(&PlanRequest { inputs: vec![given("shared", "c")], ..memory.request() }).expect_err("must be refused");
    assert_eq!(problems[0].class, Class::InputOption);
}

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
            .child(job_of(&parent, name), &request, vec![("REPORT".to_owned(), "r".to_owned())])
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
fn warns_once_of_keywords_that_only_a_server_acts_on() {
    let text = "a: {script: x, release: {tag_name: v, description: d}}\nb: {script: x, release: {tag_name: v, description: d}}\n";
    assert_eq!(planned(text)["warnings"].as_array().map(Vec::len), Some(1));
}
