//! Values and jobs that GitLab refuses.

use super::planning::{outcome, with_job};
use crate::pipeline::problem::Class;

/// Lines of a job with a value that is refused as [`Class::BadValue`].
const REFUSED_VALUES: &[&str] = &[
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
];

/// Lines of a job with a value that is refused as another class.
const REFUSED_VALUES_OF_OTHER_CLASSES: &[(&str, Class)] = &[
    ("image: {name: i, ports: [80]}", Class::UnknownKeyword),
    ("artifacts: {reports: {dotnet: a}}", Class::UnknownKeyword),
    ("pages: {path: a}", Class::UnknownKeyword),
    ("release: {tag_name: v, description: d, notes: n}", Class::UnknownKeyword),
    ("artifacts: {paths: [a], when: $WHEN}", Class::BadWhen),
    ("cache: {paths: [a], when: $WHEN}", Class::BadWhen),
    ("when: delayed, start_in: 1 day, rules: [{when: always}]", Class::StartIn),
];

#[test]
fn values_are_refused_as_on_gitlab() {
    for lines in REFUSED_VALUES {
        assert_eq!(outcome(&[(".gitlab-ci.yml", &with_job(lines))]), Err(vec![Class::BadValue]), "{lines}");
    }
    for (text, class) in REFUSED_VALUES_OF_OTHER_CLASSES {
        assert_eq!(outcome(&[(".gitlab-ci.yml", &with_job(text))]), Err(vec![*class]), "{text}");
    }
}

/// Configurations with a job that is refused.
const REFUSED_JOBS: &[(&str, Class)] = &[
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
];

#[test]
fn jobs_of_other_kinds_are_refused_as_on_gitlab() {
    for (text, class) in REFUSED_JOBS {
        assert_eq!(outcome(&[(".gitlab-ci.yml", text)]), Err(vec![*class]), "{text}");
    }
}
