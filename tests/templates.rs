//! The templates below `docs/fleet` are valid, and agree with the user data in `cloud-init` and with the metrics.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::documents::{files, lint, root};
use crate::metrics::{documented, documented_of_manager};
use crate::support::output_text;

/// The program of a Python package that `tests/setup.sh` installs.
pub fn cfn_lint() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"));
    cache.join("mayfly-tests/cfn-lint/bin/cfn-lint")
}

#[test]
fn fleet_templates_are_valid() {
    let output = Command::new(cfn_lint()).args(files("docs/fleet", "yaml")).output().expect("run cfn-lint");
    let findings = output_text(&output);
    assert!(output.status.success() && findings.trim().is_empty(), "{findings}");
}

/// The user data of a template, with the default values of its parameters.
fn user_data(template: &str) -> String {
    let default = |parameter: &str| {
        let rest = template.split(&format!("  {parameter}:\n")).nth(1).expect("a parameter");
        rest.split("Default: ").nth(1).and_then(|rest| rest.lines().next()).expect("a default").to_owned()
    };
    let values = ["GitLabUrl", "TokenParameter"].map(|name| (name, default(name)));
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    user_data_with(template, &values)
}

/// The user data of a template with these values of parameters.
pub fn user_data_with(template: &str, values: &[(&str, &str)]) -> String {
    let text = template.split("Fn::Base64: !Sub |\n").nth(1).expect("user data");
    let lines = text.lines().take_while(|line| line.starts_with("            "));
    let data: String = lines.map(|line| format!("{}\n", &line[12..])).collect();
    values.iter().fold(data, |data, (name, value)| data.replace(&format!("${{{name}}}"), value))
}

/// The configuration that user data writes.
pub fn configuration(user_data: &str) -> String {
    let text = user_data.split("    content: |\n").nth(1).expect("a file");
    text.lines().map_while(|line| line.strip_prefix("      ")).map(|line| format!("{line}\n")).collect()
}

/// The lines that are not comments, and the first line.
pub fn without_comments(text: &str) -> String {
    let (first, rest) = text.split_once('\n').expect("the text must have two lines");
    let lines = rest.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n"));
    format!("{first}\n{}", lines.collect::<String>())
}

#[test]
fn fleet_templates_have_the_user_data_of_cloud_init() {
    let example = |name: &str| {
        let text = fs::read_to_string(root().join("cloud-init").join(name)).expect("user data");
        without_comments(&text)
    };
    let spot = fs::read_to_string(root().join("docs/fleet/spot.yaml")).expect("a template");
    assert_eq!(user_data(&spot), example("spot.yaml"));
    // The other templates set a different lifetime of the instance, and nothing else.
    let of_the_runner = |data: &str| {
        let (frame, configuration) = data.split_once("    content: |\n").expect("a file");
        let (_, runner) = configuration.split_once("[[runners]]\n").expect("a runner");
        (frame.to_owned(), runner.to_owned())
    };
    let expected = of_the_runner(&example("token-from-parameter-store.yaml"));
    for name in ["one-job.yaml", "recycle.yaml", "schedule.yaml"] {
        let template = fs::read_to_string(root().join("docs/fleet").join(name)).expect("a template");
        assert_eq!(of_the_runner(&user_data(&template)), expected, "{name}");
    }
}

#[test]
fn fleet_templates_write_valid_configurations() {
    for path in files("docs/fleet", "yaml") {
        let data = user_data(&fs::read_to_string(&path).expect("a template"));
        lint(&path.display().to_string(), &configuration(&data));
    }
}

/// The output of a program, which must succeed.
fn output_of(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output().expect(program);
    let text = output_text(&output);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// The names of mayfly's metrics in a query; those of histograms without their suffixes.
fn metrics(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours =
        words.filter(|word| ["mayfly_", "gitlab_runner_", "process_"].iter().any(|begin| word.starts_with(begin)));
    ours.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

#[test]
fn alert_rules_are_valid_fire_correctly_and_use_existing_metrics() {
    let directory = root().join("docs/fleet/monitoring");
    output_of("promtool", &["check", "rules", "alerts.yaml"], &directory);
    output_of("promtool", &["test", "rules", "alerts.test.yaml"], &directory);
    let rules = fs::read_to_string(directory.join("alerts.yaml")).expect("read the file");
    let cases = fs::read_to_string(directory.join("alerts.test.yaml")).expect("read the file");
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(cases.contains(&format!("alertname=\"{alert}\"")), "no case has {alert} fire");
    }
    let known: BTreeSet<String> = documented().union(&documented_of_manager()).cloned().collect();
    let unknown: Vec<String> = metrics(&rules).difference(&known).cloned().collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_dashboard_uses_existing_metrics_in_valid_queries() {
    let text = fs::read_to_string(root().join("docs/fleet/monitoring/grafana.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("must be JSON");
    let panels = dashboard["panels"].as_array().expect("a list of panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<&str> = targets.map(|target| target["expr"].as_str().expect("a query")).collect();
    assert!(queries.len() >= 15, "{queries:?}");
    for query in &queries {
        let used = metrics(query);
        assert!(!used.is_empty() && used.is_subset(&documented()), "{query}");
    }
    let labels = dashboard["templating"]["list"].as_array().expect("a list of variables");
    for query in labels.iter().filter_map(|variable| variable["definition"].as_str()) {
        assert!(metrics(query).is_subset(&documented()), "{query}");
    }
    // Replaces Grafana's variables by values that Prometheus would get.
    let directory = tempfile::tempdir().expect("a directory");
    let rule = |(number, query): (usize, &&str)| {
        let query = query.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$runner", ".*");
        serde_json::json!({"record": format!("query:{number}"), "expr": query})
    };
    let rules: Vec<Value> = queries.iter().enumerate().map(rule).collect();
    let groups = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    fs::write(directory.path().join("rules.yaml"), groups.to_string()).expect("write a file");
    output_of("promtool", &["check", "rules", "rules.yaml"], directory.path());
}
