//! The templates of a manager and of its pool: they are valid, and grant and write the same; and the systemd unit.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::documents::{files, root};
use crate::support::output_text;
use crate::templates::{cfn_lint, configuration, user_data_with, without_comments};
use crate::terraform::actions;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The parameters of a CloudFormation template that have a default, and those defaults.
fn defaults(template: &str) -> Vec<(String, String)> {
    let section = template.split("\nParameters:\n").nth(1).and_then(|rest| rest.split("\nResources:\n").next());
    let mut found = Vec::new();
    let mut name = String::new();
    for line in section.expect("the section must end").lines() {
        if let Some(parameter) = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')) {
            name = parameter.trim_end_matches(':').to_owned();
        } else if let Some(default) = line.trim().strip_prefix("Default: ") {
            found.push((name.clone(), default.to_owned()));
        }
    }
    found
}

#[test]
fn the_templates_of_a_manager_are_valid() {
    let output = Command::new(cfn_lint()).args(files("docs/fleet/manager", "yaml")).output().expect("run cfn-lint");
    let findings = output_text(&output);
    assert!(output.status.success() && findings.trim().is_empty(), "{findings}");
}

#[test]
fn all_recipes_write_the_same_user_data() {
    for (template, example, module) in [
        ("manager.yaml", "cloud-init/manager.yaml", "manager.yaml.tftpl"),
        ("pool.yaml", "cloud-init/manager-agent.yaml", "agent.yaml.tftpl"),
    ] {
        let text = read(&format!("docs/fleet/manager/{template}"));
        let defaults = defaults(&text);
        let values: Vec<(&str, &str)> = defaults.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected = without_comments(&read(example));
        assert_eq!(user_data_with(&text, &values), expected, "{template}");
        let variables = [
            ("gitlab_url", "https://gitlab.example.com"),
            ("token_parameter", "/ci/runner-token"),
            ("fleet_token_parameter", "/ci/fleet-token"),
            ("certificate_parameter", "/ci/manager-certificate"),
            ("key_parameter", "/ci/manager-key"),
            ("max_instances", "20"),
            ("group", "ci-pool"),
            ("manager_url", "https://manager.example.com:9253"),
            ("fleet_token", "fleet-token"),
        ];
        let of_module = read(&format!("docs/fleet/terraform-manager/{module}"));
        let of_module =
            variables.iter().fold(of_module, |text, (name, value)| text.replace(&format!("${{{name}}}"), value));
        assert_eq!(of_module, expected, "{module}");
        assert!(configuration(&expected).contains("[[runners]]"), "{expected}");
    }
}

/// The permissions that the CloudFormation template grants to a manager.
pub fn granted() -> BTreeSet<String> {
    actions(&read("docs/fleet/manager/manager.yaml"))
}

#[test]
fn both_recipes_and_the_guide_grant_the_same_permissions() {
    let granted = granted();
    assert_eq!(granted.len(), 12, "{granted:?}");
    assert_eq!(actions(&read("docs/fleet/terraform-manager/iam.tf")), granted);
    let guide = read("docs/guides/manager.md");
    let section = guide.split("\n## Permissions\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    assert_eq!(actions(section.expect("a section")), granted);
    // Instances that run jobs have no role.
    assert!(!read("docs/fleet/manager/pool.yaml").contains("AWS::IAM"));
}

#[test]
fn systemd_accepts_the_unit() {
    let directory = tempfile::tempdir().expect("a directory");
    let unit = directory.path().join("mayfly-manager.service");
    let text = read("systemd/mayfly-manager.service").replace("/usr/bin/mayfly", env!("CARGO_BIN_EXE_mayfly"));
    fs::write(&unit, text).expect("write a file");
    let output =
        Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&unit).output().expect("run systemd-analyze");
    let findings = output_text(&output);
    let ours: Vec<&str> = findings.lines().filter(|line| line.contains("mayfly-manager")).collect();
    assert!(ours.is_empty(), "{findings}");
}

/// The program makes a call for each permission of the recipes. `fleet_from_zero` and `manager_check` show that the
/// permissions suffice: there, moto refuses what the recipes do not grant.
#[test]
fn the_recipes_grant_nothing_that_the_program_does_not_call() {
    let mut calls = String::new();
    for directory in ["src/manager/engine/aws", "src/instance/aws"] {
        for file in files(directory, "rs") {
            calls.push_str(&fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())));
        }
    }
    calls.push_str(&read("src/manager/engine/aws.rs"));
    for permission in granted() {
        let action = permission.split(':').nth(1).expect("an action");
        assert!(calls.contains(&format!("\"{action}\"")), "{permission}");
    }
}
