//! Includes and inputs.

use serde_json::json;

use super::memory::Memory;
use super::planning::{job, listed, names, outcome, planned, refused};
use crate::pipeline::problem::Class;
use crate::pipeline::request::{GivenInput, InputValue, PlanRequest};

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

const HEADER: &str = "spec: {description: Builds, inputs: {jobs: {type: array}, stage: {}}}\n---\n";

#[test]
fn inputs_stand_for_values_and_not_for_text() {
    let body = "stages: [a, \"$[[ inputs.stage ]]\"]\n$[[ inputs.jobs[0].name ]]:\n  stage: $[[ inputs.stage ]]\n  variables: {LIST: '=$[[ inputs.jobs ]]'}\n  needs: [{job: first, artifacts: false}, $[[ inputs.jobs[1] ]]]\n  script:\n    - echo $[[ inputs.jobs[0].say ]] # $[[ inputs.unknown ]]\nfirst: {stage: a, script: x}\nsecond: {stage: a, script: x}\n";
    let main = "include:\n- local: t.yml\n  inputs: {stage: 'on', jobs: [{name: build, say: 'a: \"b\"'}, [second]]}\n";
    let template = format!("{HEADER}{body}");
    let listing = outcome(&[(".gitlab-ci.yml", main), ("t.yml", &template)]).expect("must be planned");
    let job = &listing["jobs"].as_array().expect("a list")[0];
    assert_eq!(job["name"], "build");
    assert_eq!(job["stage"], "on");
    assert_eq!(job["script"], json!(["echo a: \"b\""]));
    assert_eq!(job["variables"]["LIST"], r#"=[{"name": "build", "say": "a: \"b\""}, ["second"]]"#);
    let needs = json!([
        {"job": "first", "artifacts": false, "optional": false},
        {"job": "second", "artifacts": true, "optional": false},
    ]);
    assert_eq!(job["needs"], needs);
}

#[test]
fn included_inputs_are_declared_once_and_included_plainly() {
    let main = "include: [{local: t.yml, inputs: {}}]\n";
    let inputs = "inputs: {a: {default: x}}\n";
    for (header, class) in [
        ("spec: {inputs: {a: {default: y}}, include: [{local: i.yml}]}\n---\nj: {script: x}\n", Class::InputSpec),
        ("spec: {include: [{local: i.yml, inputs: {a: b}}]}\n---\nj: {script: x}\n", Class::UnknownKeyword),
        ("spec: {component: name}\n---\nj: {script: x}\n", Class::InputSpec),
        ("spec: {description: [x]}\n---\nj: {script: x}\n", Class::InputSpec),
    ] {
        assert_eq!(
            outcome(&[(".gitlab-ci.yml", main), ("t.yml", header), ("i.yml", inputs)]),
            Err(vec![class]),
            "{header}"
        );
    }
    for include in [
        "{local: t.yml, inputs: [a]}",
        "{local: t.yml, integrity: sha256-abc}",
        "{remote: 'https://h/t.yml', integrity: md5-abc}",
    ] {
        let text = format!("include: [{include}]\nj: {{script: x}}\n");
        let files =
            [(".gitlab-ci.yml", text.as_str()), ("t.yml", "k: {script: x}\n"), ("https://h/t.yml", "k: {script: x}\n")];
        assert_eq!(outcome(&files), Err(vec![Class::IncludeSyntax]), "{include}");
    }
}
