//! The Terraform module and the Packer template below `docs/fleet`: they parse, every name is declared and used, and
//! they agree with the CloudFormation templates. `terraform validate` would need the providers; these tests do not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::documents::{files, lint, root};

/// Parses files with python-hcl2, which `tests/setup.sh` installs.
fn parse(paths: &[PathBuf]) -> Vec<Value> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"));
    let script = "import hcl2, json, sys; print(json.dumps([hcl2.load(open(f)) for f in sys.argv[1:]]))";
    let output = Command::new(cache.join("mayfly-tests/hcl2/bin/python")).args(["-c", script]).args(paths).output();
    let output = output.expect("python with hcl2");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("must be JSON")
}

/// The blocks of one type, by their labels, such as `aws_iam_role.agent`.
fn blocks(documents: &[Value], kind: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for block in documents.iter().filter_map(|document| document[kind].as_array()).flatten() {
        for (first, inner) in block.as_object().expect("a block") {
            let first = first.trim_matches('"');
            match inner.as_object().map(|inner| inner.keys().filter(|key| key.starts_with('"')).collect::<Vec<_>>()) {
                Some(labels) if !labels.is_empty() => {
                    found.extend(labels.iter().map(|label| format!("{first}.{}", label.trim_matches('"'))));
                }
                _ => {
                    found.insert(first.to_owned());
                }
            }
        }
    }
    found
}

/// The names that follow `prefix` in a text.
fn names(text: &str, prefix: &str, parts: usize) -> BTreeSet<String> {
    let is_own = |at: usize| !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "_-.".contains(c));
    let found = text.match_indices(prefix).filter(|(at, _)| is_own(*at)).map(|(at, _)| {
        let rest = &text[at + prefix.len()..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_-.".contains(c)).unwrap_or(rest.len());
        rest[..end].split('.').take(parts).collect::<Vec<_>>().join(".")
    });
    found.filter(|name| !name.is_empty()).collect()
}

fn text(paths: &[PathBuf]) -> String {
    let lines = paths.iter().map(|path| fs::read_to_string(path).expect("a file"));
    let text: String = lines.collect();
    text.lines().filter(|line| !line.trim_start().starts_with('#')).map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_name_in_the_module_and_the_image_template_is_declared_and_used() {
    for (directory, ending) in
        [("docs/fleet/terraform", "tf"), ("docs/fleet/terraform-manager", "tf"), ("docs/fleet/packer", "hcl")]
    {
        let paths = files(directory, ending);
        let (documents, text) = (parse(&paths), text(&paths));
        assert_eq!(names(&text, "var.", 1), blocks(&documents, "variable"), "variables of {directory}");
        let locals = documents.iter().filter_map(|document| document["locals"].as_array()).flatten();
        let locals = locals.flat_map(|block| block.as_object().expect("a table of locals").keys().cloned());
        let locals: BTreeSet<String> = locals.filter(|name| !name.starts_with("__")).collect();
        assert_eq!(names(&text, "local.", 1), locals, "locals of {directory}");
        let sources: BTreeSet<String> = names(&text, "source.", 2);
        assert!(sources.is_subset(&blocks(&documents, "source")), "{sources:?}");
        assert_eq!(names(&text, "data.", 2), blocks(&documents, "data"), "data of {directory}");
        let resources = blocks(&documents, "resource");
        let used: BTreeSet<String> = names(&text, "aws_", 2).iter().map(|name| format!("aws_{name}")).collect();
        let used: BTreeSet<String> = used.into_iter().filter(|name| name.contains('.')).collect();
        assert!(used.is_subset(&resources), "{:?}", used.difference(&resources));
        for variable in documents.iter().filter_map(|document| document["variable"].as_array()).flatten() {
            let (name, block) = variable.as_object().and_then(|block| block.iter().next()).expect("a variable");
            assert!(block["type"].is_string(), "{name} has no type");
            assert!(directory.ends_with("packer") || block["description"].is_string(), "{name} is not described");
        }
    }
}

#[test]
fn templates_get_exactly_the_values_that_they_use() {
    for directory in ["docs/fleet/terraform", "docs/fleet/terraform-manager"] {
        let mut number = 0;
        let module = text(&files(directory, "tf"));
        for (at, _) in module.match_indices("templatefile(\"${path.module}/") {
            let rest = &module[at + "templatefile(\"${path.module}/".len()..];
            let (file, rest) = rest.split_once("\", {").expect("a file and its values");
            // The values contain no braces except those of `${…}`, and no line of a value ends with `${…}`.
            let values = &rest[..rest.find("})").expect("the end of the values")];
            let given: BTreeSet<String> = values
                .split(['\n', ','])
                .filter_map(|value| value.split_once('=').map(|(name, _)| name.trim().to_owned()))
                .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
                .collect();
            let template = fs::read_to_string(root().join(directory).join(file)).expect(file);
            let used: BTreeSet<String> = words_in_expressions(&template);
            assert_eq!(used, given, "{directory}/{file}");
            number += 1;
        }
        assert_eq!(number, files(directory, "tftpl").len(), "a template without values in {directory}");
    }
}

/// The names in `${…}` and `%{…}` of a template, except functions and key words.
fn words_in_expressions(template: &str) -> BTreeSet<String> {
    let expressions = template.split(['$', '%']).skip(1).filter_map(|rest| rest.strip_prefix('{')?.split('}').next());
    let mut found = BTreeSet::new();
    for expression in expressions {
        let outside_quotes: String = expression.split('"').step_by(2).collect();
        for word in outside_quotes.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let is_name = word.starts_with(|c: char| c.is_ascii_alphabetic());
            let is_call = outside_quotes.contains(&format!("{word}("));
            if is_name
                && !is_call
                && !["if", "endif", "else", "null", "for", "in", "endfor", "true", "false"].contains(&word)
            {
                found.insert(word.to_owned());
            }
        }
    }
    found
}

/// The permissions in a text, such as `ssm:GetParameter`.
pub fn actions(text: &str) -> BTreeSet<String> {
    let services = ["autoscaling", "ssm", "ssmmessages", "kms", "cloudwatch", "ec2", "logs"];
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != ':');
    let of_service = |word: &&str| {
        word.split_once(':').is_some_and(|(service, action)| {
            services.contains(&service) && action.starts_with(|c: char| c.is_ascii_uppercase()) && !action.contains(':')
        })
    };
    words.filter(of_service).map(str::to_owned).collect()
}

#[test]
fn the_module_grants_the_permissions_of_the_templates() {
    let expected = actions(&fs::read_to_string(root().join("docs/fleet/one-job.yaml")).expect("a template"));
    assert!(expected.len() > 15, "{expected:?}");
    assert_eq!(actions(&text(&files("docs/fleet/terraform", "tf"))), expected);
    for path in files("docs/fleet", "yaml") {
        assert_eq!(actions(&fs::read_to_string(&path).expect("a template")), expected, "{}", path.display());
    }
}

/// Renders a template with these values; evaluates its conditions.
fn render(template: &str, values: &[(&str, &str)]) -> String {
    let (mut lines, mut shown) = (String::new(), true);
    for line in template.lines() {
        match line.strip_prefix("%{ if ").and_then(|rest| rest.strip_suffix(" ~}")) {
            Some(condition) => {
                let (name, other) = condition.split_once(" != ").expect("a condition");
                let value = values.iter().find(|(known, _)| *known == name).map_or("null", |(_, value)| *value);
                shown = value != other;
            }
            None if line == "%{ endif ~}" => shown = true,
            None if shown => lines += &format!("{line}\n"),
            None => {}
        }
    }
    values.iter().fold(lines, |text, (name, value)| text.replace(&format!("${{{name}}}"), value))
}

#[test]
fn the_module_writes_the_user_data_of_cloud_init() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect(path);
    let values = [
        ("concurrent", "1"),
        ("max_builds", "0"),
        ("idle_timeout", "10m"),
        ("max_age", "24h"),
        ("name", "spot"),
        ("gitlab_url", "https://gitlab.example.com"),
        ("token_parameter", "/ci/runner-token"),
    ];
    let template = read("docs/fleet/terraform/config.toml.tftpl");
    let configuration = render(&template, &values);
    let indented = configuration.trim_end().replace('\n', "\n      ");
    let user_data = read("docs/fleet/terraform/user-data.yaml.tftpl");
    let user_data = user_data.replace("${indent(6, trimspace(configuration))}", &indented);
    let example = read("cloud-init/spot.yaml");
    let (first, rest) = example.split_once('\n').expect("the text must have two lines");
    let rest = rest.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n"));
    assert_eq!(user_data, format!("{first}\n{}", rest.collect::<String>()));
    // With all options, and with the minimum.
    let more = [("concurrent", "4"), ("max_builds", "20")];
    let of_more = [&more[..], &values[2..]].concat();
    lint("the module's configuration", &render(&template, &of_more));
    let fewer: Vec<(&str, &str)> = values.iter().copied().filter(|(name, _)| *name != "max_age").collect();
    lint("the module's configuration", &render(&template, &fewer));
    assert!(!render(&template, &fewer).contains("${"));
}

#[test]
fn terraform_validates_the_module_if_installed() {
    let Ok(version) = Command::new("terraform").arg("version").env_remove("TF_CLI_CONFIG_FILE").output() else {
        eprintln!("terraform is not installed: its formatting and its templates are not tried");
        return;
    };
    assert!(version.status.success(), "{}", String::from_utf8_lossy(&version.stderr));
    let terraform = |arguments: &[&str], directory: &Path, input: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), input).expect("write a file");
        let output = Command::new("terraform")
            .args(arguments)
            .current_dir(directory)
            .env_remove("TF_CLI_CONFIG_FILE")
            .stdin(fs::File::open(file.path()).expect("open a file"))
            .output();
        let output = output.expect("run terraform");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let module = root().join("docs/fleet/terraform");
    assert_eq!(terraform(&["fmt", "-check", "-diff", "-recursive"], &module, ""), "");
    let empty = tempfile::tempdir().expect("a directory");
    let template = module.join("config.toml.tftpl");
    let call = format!(
        "templatefile(\"{}\", {{concurrent = 4, max_builds = 0, idle_timeout = \"10m\", max_age = null, name = \"n\", \
         gitlab_url = \"https://gitlab.example.com\", token_parameter = \"/t\"}})",
        template.display()
    );
    let shown = terraform(&["console"], empty.path(), &call);
    let configuration = shown.trim().trim_start_matches("<<EOT\n").trim_end_matches("EOT");
    lint("terraform's configuration", configuration);
    assert!(configuration.contains("concurrent = 4\n") && !configuration.contains("max_age"), "{configuration}");
}
