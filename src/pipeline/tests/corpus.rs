//! Runs the shared test cases; their README describes the format.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::repository::Repository;
use crate::pipeline::listing::{Listing, problems_as_json};
use crate::pipeline::problem::Problem;
use crate::pipeline::request::{
    ComponentVersion, ConfigurationStart, GivenInput, GivenVariable, InputValue, MergeRequest, PipelineSource,
    PlanRequest, SourceTree, UnknownKeywords,
};
use crate::pipeline::{JobRun, plan};

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().replace("dot-gitignore", ".gitignore");
        let target = to.join(name);
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).expect("a directory");
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy the file");
        }
    }
}

fn text<'a>(value: &'a Value, key: &str, default: &'a str) -> &'a str {
    value[key].as_str().unwrap_or(default)
}

fn set_up(case: &Path, expect: &Value) -> Repository {
    let git = &expect["git"];
    let default_branch = text(git, "default_branch", "main");
    let mut repository = Repository::new(default_branch);
    let root = repository.root.path().to_owned();
    for entry in std::fs::read_dir(case).expect("the case") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "expect.json" || name.starts_with('_') {
            continue;
        }
        let target = root.join(name.replace("dot-gitignore", ".gitignore"));
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).expect("a directory");
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy the file");
        }
    }
    repository.git(&["remote", "add", "origin", text(git, "remote", "https://git.example.test/team/app.git")]);
    repository.git(&["add", "-A"]);
    repository.git(&["commit", "-q", "--allow-empty", "-m", text(git, "initial_message", "Initial commit")]);
    if let Some(branch) = git["branch"].as_str().filter(|branch| *branch != default_branch) {
        repository.git(&["checkout", "-q", "-b", branch]);
    }
    for commit in git["commits"].as_array().into_iter().flatten() {
        if let Some(overlay) = commit["overlay"].as_str() {
            copy_tree(&case.join(overlay), &root);
        }
        for path in commit["delete"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            repository.git(&["rm", "-rq", path]);
        }
        repository.git(&["add", "-A"]);
        repository.git(&["commit", "-q", "--allow-empty", "-m", text(commit, "message", "Commit")]);
    }
    if let Some(tag) = git["tag"].as_str() {
        repository.git(&["tag", tag]);
    }
    if let Some(folder) = git["dirty"].as_str() {
        copy_tree(&case.join(folder), &root);
    }
    if let Some(folder) = git["untracked"].as_str() {
        copy_tree(&case.join(folder), &root);
    }
    for provided in expect["provides"].as_array().into_iter().flatten() {
        provide(case, provided, &mut repository);
    }
    repository
}

fn provide(case: &Path, provided: &Value, repository: &mut Repository) {
    if let Some(project) = provided["project"].as_str() {
        let key = (project.to_owned(), text(provided, "ref", "HEAD").to_owned());
        repository.projects.insert(key, case.join(text(provided, "dir", "")));
    }
    if let Some(url) = provided["remote"].as_str() {
        let body = std::fs::read(case.join(text(provided, "file", ""))).expect("the body");
        repository.remotes.insert(url.to_owned(), body);
    }
    if let Some(project) = provided["component_project"].as_str() {
        let directory = case.join(text(provided, "dir", ""));
        for reference in provided["refs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let tree = SourceTree::Commit { project: project.into(), sha: directory.to_string_lossy().into() };
            let version = ComponentVersion {
                tree,
                sha: text(provided, "sha", "").to_owned(),
                version: text(provided, "version", "").to_owned(),
            };
            repository.components.insert((project.to_owned(), reference.to_owned()), (version, directory.clone()));
        }
    }
}

fn given(key: &str, value: &Value) -> GivenVariable {
    let flag = |name: &str| value[name].as_bool().unwrap_or(false);
    GivenVariable {
        key: key.to_owned(),
        value: value.as_str().unwrap_or(text(value, "value", "")).replace("@TMP@", "/tmp/outside"),
        file: value["type"] == "file",
        masked: flag("masked"),
        raw: false,
        environment_scope: text(value, "environment_scope", "").to_owned(),
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn plan_case(case: &Path, expect: &Value) -> Result<Value, Vec<Problem>> {
    let repository = set_up(case, expect);
    let pipeline = &expect["pipeline"];
    let default_branch = text(&expect["git"], "default_branch", "main");
    let facts = repository.facts(expect["git"]["tag"].as_str(), default_branch, pipeline["before"].as_str());
    let merge_request = pipeline["merge_request"].as_object().map(|_| {
        let request = &pipeline["merge_request"];
        MergeRequest {
            iid: request["iid"].as_u64().unwrap_or(1),
            source: text(request, "source", "").to_owned(),
            target: text(request, "target", default_branch).to_owned(),
            ..MergeRequest::default()
        }
    });
    let input = |(key, value): (&String, &Value)| GivenInput {
        key: key.clone(),
        value: InputValue::Text(value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
    };
    let request = PlanRequest {
        start: ConfigurationStart::File(".gitlab-ci.yml".to_owned()),
        source: PipelineSource { name: text(pipeline, "source", "push").to_owned(), merge_request },
        facts,
        pipeline_variables: entries(&pipeline["variables"]).map(|(key, value)| given(key, value)).collect(),
        project_variables: entries(&pipeline["project_variables"]).map(|(key, value)| given(key, value)).collect(),
        predefined: Vec::new(),
        inputs: entries(&pipeline["inputs"]).map(input).collect(),
        unknown_keywords: UnknownKeywords::AreErrors,
        explains: true,
        sources: &repository,
    };
    let plan = plan(&request)?;
    Ok(serde_json::to_value(Listing { plan: &plan, run: &|_, _| JobRun::default() }).expect("encode as JSON"))
}

/// The differences between expected and actual result.
fn differences(mode: &str, expected: &Value, answer: Result<Value, Vec<Problem>>) -> Vec<String> {
    match (mode, answer) {
        ("error", Ok(_)) => vec!["it was accepted".to_owned()],
        ("error", Err(problems)) => {
            let json = problems_as_json(&problems);
            let all: String = problems.iter().map(|problem| problem.message.to_lowercase() + "\n").collect();
            let mut wrong = Vec::new();
            if json["errors"][0]["class"] != expected["error"]["class"] {
                wrong.push(format!("class {} instead of {}", json["errors"][0]["class"], expected["error"]["class"]));
            }
            for mention in expected["error"]["mentions"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !all.contains(&mention.to_lowercase()) {
                    wrong.push(format!("no mention of {mention} in {all}"));
                }
            }
            if json["errors"][0]["line"].as_u64().unwrap_or(0) == 0 || problems.len() > 1 {
                wrong.push(format!("no line, or follow-on errors: {json}"));
            }
            wrong
        }
        (_, Err(problems)) => vec![format!("refused: {}", problems_as_json(&problems))],
        (_, Ok(answer)) => plan_differences(mode, expected, &answer),
    }
}

fn plan_differences(mode: &str, expected: &Value, answer: &Value) -> Vec<String> {
    if mode == "run" {
        return Vec::new();
    }
    if answer["created"] != expected["created"] {
        return vec![format!("created: {}", answer["created"])];
    }
    if expected["created"] == false {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for key in ["pipeline_name", "stages"] {
        if !expected[key].is_null() && answer[key] != expected[key] {
            wrong.push(format!("{key}: {}", answer[key]));
        }
    }
    let names = |list: &Value| {
        let mut names: Vec<String> =
            list.as_array().into_iter().flatten().map(|job| text(job, "name", "").to_owned()).collect();
        names.sort();
        names
    };
    if names(&answer["jobs"]) != names(&expected["jobs"]) {
        wrong.push(format!("jobs: {:?}", names(&answer["jobs"])));
    }
    for name in expected["absent"].as_array().into_iter().flatten() {
        if !answer["absent"].as_array().is_some_and(|absent| absent.contains(name)) {
            wrong.push(format!("absent lacks {name}: {}", answer["absent"]));
        }
    }
    for job in expected["jobs"].as_array().into_iter().flatten() {
        let found = answer["jobs"].as_array().into_iter().flatten().find(|found| found["name"] == job["name"]);
        let Some(found) = found else { continue };
        for (key, value) in entries(job) {
            if let Some(why) = field_difference(key, value, found) {
                wrong.push(format!("{} {key}: {why}", job["name"]));
            }
        }
    }
    wrong
}

fn field_difference(key: &str, expected: &Value, found: &Value) -> Option<String> {
    let subset = |field: &str| {
        let wrong = entries(expected).find(|(name, value)| found[field][name.as_str()] != **value)?;
        Some(format!("{} is {} instead of {}", wrong.0, found[field][wrong.0.as_str()], wrong.1))
    };
    match key {
        "env" => subset("env"),
        "variables_include" => subset("variables"),
        "needs" => {
            let sorted = |value: &Value| {
                let mut list = value.as_array().cloned().unwrap_or_default();
                list.sort_by_key(|need| need["job"].to_string());
                if value.is_null() { Value::Null } else { list.into() }
            };
            (sorted(expected) != sorted(&found["needs"])).then(|| found["needs"].to_string())
        }
        _ => (*expected != found[key]).then(|| format!("{} instead of {expected}", found[key])),
    }
}

fn cases() -> Vec<PathBuf> {
    let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ci-yaml"));
    let folders = std::fs::read_dir(data).expect("the cases").map(|entry| entry.expect("an entry").path());
    let mut cases: Vec<PathBuf> = folders.filter(|path| path.join("expect.json").is_file()).collect();
    cases.sort();
    cases
}

#[test]
fn plans_and_problems_are_the_same_as_on_gitlab() {
    let mut failures = Vec::new();
    let mut counts = std::collections::BTreeMap::new();
    for case in cases() {
        let text = std::fs::read_to_string(case.join("expect.json")).expect("read the file");
        let expect: Value = serde_json::from_str(&text).expect("must be JSON");
        let mode = expect["mode"].as_str().unwrap_or_default().to_owned();
        let wrong = differences(&mode, &expect["expect"], plan_case(&case, &expect));
        let count = counts.entry(mode).or_insert((0, 0));
        count.1 += 1;
        if wrong.is_empty() {
            count.0 += 1;
        } else {
            failures.push(format!("{} {}: {}", expect["id"], expect["title"], wrong.join("\n    ")));
        }
    }
    assert!(counts.values().map(|count| count.1).sum::<i32>() >= 121, "cases are missing: {counts:?}");
    assert!(failures.is_empty(), "{counts:?}\n{}", failures.join("\n"));
}
