//! Problems and warnings: their class, their position, and that each is reported once.

use super::memory::Memory;
use super::planning::{classes, listed, planned, refused};
use crate::pipeline::problem::Class;
use crate::pipeline::request::{PlanRequest, UnknownKeywords};

/// Configurations with the class of their first problem.
const PROBLEMS: &[(&str, Class)] = &[
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
];

#[test]
fn problems_have_the_right_class() {
    for (text, class) in PROBLEMS {
        assert_eq!(classes(text).first(), Some(class), "{text}");
    }
}

#[test]
fn reports_all_problems_and_each_cause_once() {
    let text = "default: {retry: 7}\na: {script: x, stage: nowhere}\nb: {script: x, needs: [a, ghost]}\nc: {extends: .gone, script: x}\nd: {script: x, needs: [c], colour: red}\n";
    let problems = refused(&[(".gitlab-ci.yml", text)]);
    let reported: Vec<(Class, usize)> = problems.iter().map(|problem| (problem.class, problem.line)).collect();
    let expected = [
        (Class::ExtendsUnknown, 4),
        (Class::RetryRange, 1),
        (Class::UnknownStage, 2),
        (Class::UnknownKeyword, 5),
        (Class::NeedsUnknown, 3),
    ];
    assert_eq!(reported, expected, "{problems:?}");
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
fn unknown_keywords_are_warnings_on_request() {
    let memory = Memory::new(&[(".gitlab-ci.yml", "j: {script: x, artefacts: {}}\n")]);
    let listing = listed(&PlanRequest { unknown_keywords: UnknownKeywords::AreWarnings, ..memory.request() })
        .expect("the pipeline must be valid");
    assert!(listing["warnings"][0]["message"].as_str().is_some_and(|text| text.contains("did you mean `artifacts`")));
}

#[test]
fn warns_once_of_keywords_that_only_a_server_acts_on() {
    let text = "a: {script: x, release: {tag_name: v, description: d}}\nb: {script: x, release: {tag_name: v, description: d}}\n";
    assert_eq!(planned(text)["warnings"].as_array().map(Vec::len), Some(1));
}
