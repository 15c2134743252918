//! Keywords and their values: what GitLab accepts, and what it refuses.

use serde_json::{Value, json};

use super::memory::Memory;
use crate::pipeline::listing::Listing;
use crate::pipeline::problem::Class;
use crate::pipeline::{JobRun, plan};

fn planned(files: &[(&str, &str)]) -> Result<Value, Vec<Class>> {
    let memory = Memory::new(files);
    match plan(&memory.request()) {
        Ok(plan) => {
            Ok(serde_json::to_value(Listing { plan: &plan, run: &|_, _| JobRun::default() }).expect("encode as JSON"))
        }
        Err(problems) => {
            assert!(problems.iter().all(|problem| problem.line > 0), "without a line: {problems:?}");
            Err(problems.iter().map(|problem| problem.class).collect())
        }
    }
}

/// A file with the given lines in a job, beside another job `o`.
fn with_job(lines: &str) -> String {
    format!("o: {{script: build}}\nj: {{script: x, {lines}}}\n")
}

fn job(lines: &str, keyword: &str) -> Value {
    let text = with_job(lines);
    let listing = planned(&[(".gitlab-ci.yml", &text)]).unwrap_or_else(|classes| panic!("{text}: {classes:?}"));
    let jobs = listing["jobs"].as_array().expect("a list");
    jobs.iter().find(|job| job["name"] == "j").expect("the job")[keyword].clone()
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
        assert_eq!(job(lines, keyword), expected, "{lines}");
    }
}

#[test]
fn a_job_with_pages_uploads_the_published_directory() {
    assert_eq!(job("pages: true", "artifacts"), json!({"paths": ["public"]}));
    assert_eq!(
        job("pages: {publish: site}, artifacts: {paths: [log]}", "artifacts"),
        json!({"paths": ["log", "site"]})
    );
    assert_eq!(job("pages: {expire_in: 1 day}, publish: out", "artifacts"), json!({"paths": ["out"]}));
    assert_eq!(job("pages: false", "artifacts"), Value::Null);
    let listing =
        planned(&[(".gitlab-ci.yml", "pages: {script: x, artifacts: {paths: [public], expire_in: 1 day}}\n")]);
    let artifacts = &listing.expect("must be planned")["jobs"][0]["artifacts"];
    assert_eq!(*artifacts, json!({"paths": ["public"], "expire_in": "1 day"}));
    let listing = planned(&[(".gitlab-ci.yml", "pages: {script: x, pages: false}\n")]).expect("must be planned");
    assert_eq!(listing["jobs"][0]["artifacts"], Value::Null);
}

#[test]
fn a_job_that_needs_only_a_pipeline_mirrors_it() {
    let listing = planned(&[(".gitlab-ci.yml", "j: {needs: {pipeline: team/lib}}\n")]).expect("must be planned");
    assert_eq!(listing["jobs"][0]["trigger"], json!({"project": "team/lib"}));
    assert_eq!(planned(&[(".gitlab-ci.yml", "j: {needs: [o]}\no: {script: x}\n")]), Err(vec![Class::MissingScript]));
}

#[test]
fn values_are_refused_as_on_gitlab() {
    for lines in [
        "only: main",
        "except: /x/",
        "only: {}",
        "only: {refs: main}",
        "only: {variables: $A}",
        "only: [[main]]",
        "rules: []",
        "rules: [{}]",
        "rules: [{variables: {A: {value: b}}}]",
        "rules: [{exists: {paths: [a], project: [b]}}]",
        "image: {name: ''}",
        "image: {name: i, entrypoint: sh}",
        "image: {name: i, pull_policy: $POLICY}",
        "image: {name: i, pull_policy: []}",
        "image: {name: i, docker: {user: 1000}}",
        "image: {name: i, docker: {platform: ''}}",
        "services: [{name: i, entrypoint: sh}]",
        "artifacts: {paths: [[a]]}",
        "artifacts: {paths: [a], name: 1}",
        "artifacts: {paths: [a], expire_in: 30}",
        "artifacts: {paths: [a], access: nobody}",
        "artifacts: {paths: [a], access: all, public: true}",
        "artifacts: {expose_as: files}",
        "artifacts: {paths: ['a*'], expose_as: files}",
        "artifacts: {paths: [a], expose_as: a/b}",
        "artifacts: {reports: {junit: 1}}",
        "artifacts: {reports: {junit: [[a]]}}",
        "artifacts: {reports: {coverage_report: a.xml}}",
        "artifacts: {reports: {coverage_report: {coverage_format: lcov, path: a}}}",
        "artifacts: {reports: {coverage_report: {coverage_format: jacoco}}}",
        "cache: {key: 1}",
        "cache: {key: {files: [a], prefix: a/b}}",
        "environment: {name: 'a:b'}",
        "environment: a/",
        "environment: {name: a, url: 1}",
        "environment: {name: a, action: $ACTION}",
        "environment: {name: a, auto_stop_in: 1}",
        "environment: {name: a, kubernetes: {}}",
        "environment: {name: a, kubernetes: {agent: 1}}",
        "environment: {name: a, kubernetes: {agent: a, flux_resource_path: p}}",
        "environment: {name: a, kubernetes: {dashboard: {namespace: n}}}",
        "parallel: {matrix: [{V: [3.10]}]}",
        "parallel: {matrix: [{V: [true]}]}",
        "release: {tag_name: 1, description: d}",
        "release: {tag_name: v, description: d, milestones: 1}",
        "release: {tag_name: v, description: d, assets: {links: []}}",
        "release: {tag_name: v, description: d, assets: {links: [{name: n}]}}",
        "pages: {publish: 1}",
        "pages: {expire_in: soon}",
        "publish: out",
        "pages: {publish: a}, publish: b",
        "inputs: {a: {type: string}}",
        "timeout: 3600",
        "timeout: 2 months",
        "when: delayed, start_in: 5",
        "needs: [{pipeline: 1, job: o}]",
        "needs: [null, o]",
        "tags: [[a]]",
        "tags: [a, null]",
        "dependencies: [[o]]",
        "rules: [{changes: [[a]]}]",
        "rules: [{exists: {paths: [[a]]}}]",
        "rules: [null, {when: always}]",
        "retry: {max: 1, when: [[always]]}",
        "inherit: {variables: [[A]]}",
        "before_script: [x, null]",
        "parallel: {matrix: [{V: [[a]]}]}",
        "parallel: {matrix: [[{V: a}]]}",
    ] {
        assert_eq!(planned(&[(".gitlab-ci.yml", &with_job(lines))]), Err(vec![Class::BadValue]), "{lines}");
    }
    for (text, class) in [
        ("image: {name: i, ports: [80]}", Class::UnknownKeyword),
        ("artifacts: {reports: {dotnet: a}}", Class::UnknownKeyword),
        ("pages: {path: a}", Class::UnknownKeyword),
        ("release: {tag_name: v, description: d, notes: n}", Class::UnknownKeyword),
        ("artifacts: {paths: [a], when: $WHEN}", Class::BadWhen),
        ("cache: {paths: [a], when: $WHEN}", Class::BadWhen),
        ("when: delayed, start_in: 1 day, rules: [{when: always}]", Class::StartIn),
    ] {
        assert_eq!(planned(&[(".gitlab-ci.yml", &with_job(text))]), Err(vec![class]), "{text}");
    }
}

#[test]
fn jobs_of_other_kinds_are_refused_as_on_gitlab() {
    for (text, class) in [
        ("j: {trigger: a/b, start_in: 1 day}\n", Class::UnknownKeyword),
        ("j: {trigger: a/b, manual_confirmation: Sure?}\n", Class::UnknownKeyword),
        ("j: {trigger: a/b, parallel: 2}\n", Class::BadValue),
        ("j: {trigger: a/b, when: delayed}\n", Class::BadWhen),
        ("j: {trigger: a/b, allow_failure: {exit_codes: 1}}\n", Class::BadValue),
        ("j: {trigger: ''}\n", Class::BadValue),
        ("j: {trigger: {project: a/b, branch: 1}}\n", Class::BadValue),
        ("j: {trigger: {project: a/b, inputs: [1]}}\n", Class::BadValue),
        ("j: {trigger: {project: a/b, strategy: $S}}\n", Class::BadValue),
        ("j: {trigger: {include: [{project: a/b}]}}\n", Class::BadValue),
        ("j: {trigger: {include: [{artifact: a.yml, job: gone}]}}\n", Class::DependenciesUnknown),
        ("j: {run: [{name: n, script: x}], before_script: [y]}\n", Class::ScriptAndTrigger),
        ("j: {script: '  '}\n", Class::MissingScript),
        (".t:\nj: {script: x}\n", Class::BadValue),
        (".t: {}\nj: {script: x}\n", Class::BadValue),
        ("workflow: {rules: []}\nj: {script: x}\n", Class::BadValue),
        ("workflow: {rules: [null, {when: always}]}\nj: {script: x}\n", Class::BadValue),
        ("stages: [test, null]\nj: {script: x}\n", Class::BadValue),
        ("workflow: {rules: [{variables: {A: {value: b}}}]}\nj: {script: x}\n", Class::BadValue),
        ("workflow: {auto_cancel: {on_job_failure: $A}}\nj: {script: x}\n", Class::BadValue),
        ("variables: {A: {value: 1, options: [1]}}\nj: {script: x}\n", Class::BadValue),
    ] {
        assert_eq!(planned(&[(".gitlab-ci.yml", text)]), Err(vec![class]), "{text}");
    }
}

const HEADER: &str = "spec: {description: Builds, inputs: {jobs: {type: array}, stage: {}}}\n---\n";

#[test]
fn inputs_stand_for_values_and_not_for_text() {
    let body = "stages: [a, \"$[[ inputs.stage ]]\"]\n$[[ inputs.jobs[0].name ]]:\n  stage: $[[ inputs.stage ]]\n  variables: {LIST: '=$[[ inputs.jobs ]]'}\n  needs: [{job: first, artifacts: false}, $[[ inputs.jobs[1] ]]]\n  script:\n    - echo $[[ inputs.jobs[0].say ]] # $[[ inputs.unknown ]]\nfirst: {stage: a, script: x}\nsecond: {stage: a, script: x}\n";
    let main = "include:\n- local: t.yml\n  inputs: {stage: 'on', jobs: [{name: build, say: 'a: \"b\"'}, [second]]}\n";
    let template = format!("{HEADER}{body}");
    let listing = planned(&[(".gitlab-ci.yml", main), ("t.yml", &template)]).expect("must be planned");
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
            planned(&[(".gitlab-ci.yml", main), ("t.yml", header), ("i.yml", inputs)]),
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
        assert_eq!(planned(&files), Err(vec![Class::IncludeSyntax]), "{include}");
    }
}
