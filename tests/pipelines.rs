//! The cases of tests/data/ci-yaml with the real program: plans by `--list --json`, refused configurations, and runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ci-yaml");
    let mut cases: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("expect.json").is_file())
        .collect();
    cases.sort();
    cases
}

#[test]
fn every_case_has_the_same_result_as_on_gitlab() {
    let cases = cases();
    assert!(cases.len() >= 121, "only {} cases", cases.len());
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let name = case.file_name().expect("a name").to_string_lossy().into_owned();
                    if let Err(why) = check(case) {
                        wrong.lock().expect("no thread may panic").push(format!("{name}: {why}"));
                    }
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().expect("no thread may panic");
    wrong.sort();
    assert!(wrong.is_empty(), "{} of {} cases are wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn check(case: &Path) -> Result<(), String> {
    let text = fs::read_to_string(case.join("expect.json")).map_err(|error| error.to_string())?;
    let expect: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let checkout = CaseCheckout::set_up(case, &expect);
    let before = checkout.state();
    let outcome = match expect["mode"].as_str() {
        Some("plan") => checkout.check_plan(&expect["expect"]),
        Some("error") => checkout.check_refusal(&expect["expect"]["error"]),
        Some("run") => checkout.check_run(&expect["expect"]["run"]),
        other => Err(format!("mode {other:?}")),
    };
    match checkout.state() == before {
        true => outcome,
        false => outcome.and(Err("the checkout was changed".to_owned())),
    }
}

/// The checkout of a case, with the command line and the environment for mayfly.
struct CaseCheckout {
    directory: tempfile::TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl CaseCheckout {
    fn set_up(case: &Path, expect: &Value) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut checkout = Self { directory, arguments: Vec::new(), environment: Vec::new() };
        fs::create_dir_all(checkout.root()).expect("create the directory");
        checkout.make_repository(case, &expect["git"], &expect["pipeline"]);
        checkout.set_arguments(case, expect);
        checkout
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("app")
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .arg("-C")
            .arg(self.root())
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .expect("run git");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Follows README.md of the cases, section "How a harness sets a case up".
    fn make_repository(&self, case: &Path, git: &Value, pipeline: &Value) {
        let text = |key: &str| git[key].as_str();
        let default = text("default_branch").unwrap_or("main");
        copy(case, &self.root(), &|name| name != "expect.json" && !name.starts_with('_'));
        if self.root().join("dot-gitignore").exists() {
            fs::rename(self.root().join("dot-gitignore"), self.root().join(".gitignore")).expect("rename the file");
        }
        self.git(&["init", "-q", "-b", default]);
        self.git(&["config", "user.name", "Dev"]);
        self.git(&["config", "user.email", "dev@example.test"]);
        self.git(&["remote", "add", "origin", text("remote").unwrap_or("https://git.example.test/team/app.git")]);
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", text("initial_message").unwrap_or("Initial commit")]);
        if let Some(branch) = text("branch").filter(|branch| *branch != default) {
            self.git(&["checkout", "-q", "-b", branch]);
        }
        for commit in git["commits"].as_array().into_iter().flatten() {
            if let Some(overlay) = commit["overlay"].as_str() {
                copy(&case.join(overlay), &self.root(), &|_| true);
            }
            for path in commit["delete"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let path = self.root().join(path);
                let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
            self.git(&["add", "-A"]);
            self.git(&["commit", "-q", "--allow-empty", "-m", commit["message"].as_str().expect("a message")]);
        }
        if let Some(tag) = text("tag") {
            self.git(&["tag", tag]);
        }
        let tip = pipeline["before"].as_str().unwrap_or(default);
        let tip = self.git(&["rev-parse", tip]);
        let remote = format!("refs/remotes/origin/{default}");
        self.git(&["update-ref", &remote, &tip]);
        self.git(&["symbolic-ref", "refs/remotes/origin/HEAD", &remote]);
        for folder in ["dirty", "untracked"].iter().filter_map(|key| text(key)) {
            copy(&case.join(folder), &self.root(), &|_| true);
        }
    }

    /// Sets the command line and the environment for a case.
    fn set_arguments(&mut self, case: &Path, expect: &Value) {
        let pipeline = &expect["pipeline"];
        let mut arguments: Vec<String> = Vec::new();
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if let Some(source) = pipeline["source"].as_str() {
            option("--source", source.to_owned());
        }
        if let Some(tag) = expect["git"]["tag"].as_str() {
            option("--tag", tag.to_owned());
        }
        if let Some(before) = pipeline["before"].as_str() {
            option("--before", before.to_owned());
        }
        let request = &pipeline["merge_request"];
        if let (Some(source), Some(target)) = (request["source"].as_str(), request["target"].as_str()) {
            option("--mr", format!("{source}:{target}:{}", request["iid"].as_i64().unwrap_or(1)));
        }
        let temporary = self.directory.path().join("tmp");
        fs::create_dir_all(&temporary).expect("create the directory");
        for (key, value) in pipeline["variables"].as_object().into_iter().flatten() {
            let value = text_of(value).replace("@TMP@", &temporary.display().to_string());
            option("--var", format!("{key}={value}"));
        }
        for (key, value) in pipeline["inputs"].as_object().into_iter().flatten() {
            option("--input", format!("{key}={}", text_of(value)));
        }
        if pipeline["project_variables"].is_object() {
            let file = self.directory.path().join("variables.yml");
            fs::write(&file, pipeline["project_variables"].to_string()).expect("write a file");
            option("--vars-file", file.display().to_string());
        }
        for name in pipeline["manual"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            option("--manual", name.to_owned());
        }
        for provided in expect["provides"].as_array().into_iter().flatten() {
            if let Some((name, value)) = map_option(case, provided) {
                option(name, value);
            }
        }
        for (key, value) in pipeline["host_env"].as_object().into_iter().flatten() {
            self.environment.push((key.clone(), text_of(value)));
        }
        if pipeline["with_needs"] == json!(true) {
            arguments.push("--needs".to_owned());
        }
        arguments.extend(pipeline["select"].as_array().into_iter().flatten().map(text_of));
        self.arguments = arguments;
    }

    fn exec(&self, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mayfly"))
            .arg("exec")
            .args(more)
            .args(&self.arguments)
            .current_dir(self.root())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("XDG_CACHE_HOME", self.directory.path().join("cache"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs(self.environment.iter().cloned())
            .output()
            .expect("run mayfly")
    }

    /// Every file of the checkout with its content.
    fn state(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut waiting = vec![self.root()];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(directory).expect("list the directory") {
                let path = entry.expect("an entry").path();
                match path.symlink_metadata().expect("the file must exist").is_dir() {
                    true => waiting.push(path),
                    false => found.push((path.clone(), fs::read(&path).unwrap_or_default())),
                }
            }
        }
        found.sort();
        found
    }

    fn check_plan(&self, expect: &Value) -> Result<(), String> {
        let output = self.exec(&["--list", "--json"]);
        let text = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{}: {stderr}", output.status));
        }
        let plan: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let created = expect["created"].as_bool().unwrap_or(true);
        if plan["created"] != json!(created) {
            return Err(format!("created: {}", plan["created"]));
        }
        if !created {
            return Ok(());
        }
        for key in ["pipeline_name", "stages"] {
            same(key, expect.get(key), &plan[key])?;
        }
        let none = Vec::new();
        let jobs = plan["jobs"].as_array().unwrap_or(&none);
        let names = |jobs: &[Value]| jobs.iter().map(|job| text_of(&job["name"])).collect::<BTreeSet<_>>();
        let wanted = expect["jobs"].as_array().unwrap_or(&none);
        if names(jobs) != names(wanted) {
            return Err(format!("jobs: {:?} instead of {:?}", names(jobs), names(wanted)));
        }
        for absent in expect["absent"].as_array().into_iter().flatten() {
            if names(jobs).contains(&text_of(absent)) {
                return Err(format!("{absent} is not absent"));
            }
        }
        for wanted in wanted {
            let job = jobs.iter().find(|job| job["name"] == wanted["name"]).expect("the job must be in both plans");
            compare_job(wanted, job).map_err(|why| format!("job {}: {why}", wanted["name"]))?;
        }
        Ok(())
    }

    fn check_refusal(&self, expect: &Value) -> Result<(), String> {
        let output = self.exec(&["--list", "--json"]);
        let (text, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.code() != Some(2) {
            return Err(format!("not refused: {} {stderr}", output.status));
        }
        let listing: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let none = Vec::new();
        let errors = listing["errors"].as_array().unwrap_or(&none);
        let first = errors.first().ok_or("no error")?;
        if first["class"] != expect["class"] {
            return Err(format!("class {} instead of {}: {stderr}", first["class"], expect["class"]));
        }
        for word in expect["mentions"].as_array().into_iter().flatten().map(text_of) {
            if !stderr.to_lowercase().contains(&word.to_lowercase()) {
                return Err(format!("`{word}` is not mentioned: {stderr}"));
            }
        }
        if first["line"].as_u64().unwrap_or(0) == 0 {
            return Err(format!("no line: {first}"));
        }
        Ok(())
    }

    fn check_run(&self, expect: &Value) -> Result<(), String> {
        let report = self.directory.path().join("report.json");
        let began = Instant::now();
        let output = self.exec(&["--shell", "--report", &report.display().to_string()]);
        let seconds = began.elapsed().as_secs_f64();
        let (text, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let output_text = || format!("{text}{stderr}");
        let written = fs::read_to_string(&report).map_err(|error| format!("no report: {error}; {}", output_text()))?;
        let report: Value = serde_json::from_str(&written).map_err(|error| error.to_string())?;
        same("status", expect.get("status"), &report["status"]).map_err(|why| format!("{why}; {}", output_text()))?;
        let code = match expect["status"].as_str() {
            Some("success") => 0,
            Some("failed") => 1,
            _ => 3,
        };
        if output.status.code() != Some(code) {
            return Err(format!("{} instead of exit status {code}", output.status));
        }
        if expect["max_seconds"].as_f64().is_some_and(|most| seconds > most) {
            return Err(format!("the run took {seconds:.1} s"));
        }
        for (name, wanted) in expect["jobs"].as_object().into_iter().flatten() {
            compare_result(wanted, report["jobs"].get(name))
                .map_err(|why| format!("job {name}: {why}; {}", output_text()))?;
        }
        for pair in expect["order"].as_array().into_iter().flatten() {
            let end = |job: &Value| text.find(&format!("== {}: ", text_of(job)));
            if end(&pair[0]) >= end(&pair[1]) {
                return Err(format!("{pair} ended in another order: {}", output_text()));
            }
        }
        Ok(())
    }
}

/// The option that maps another project, a remote file or a component to files of a case.
fn map_option(case: &Path, provided: &Value) -> Option<(&'static str, String)> {
    let path = |key: &str| case.join(provided[key].as_str().expect("a path")).display().to_string();
    if let Some(project) = provided["project"].as_str() {
        let reference = provided["ref"].as_str().map(|name| format!("@{name}")).unwrap_or_default();
        return Some(("--map-project", format!("{project}{reference}={}", path("dir"))));
    }
    if let Some(url) = provided["remote"].as_str() {
        return Some(("--map-remote", format!("{url}={}", path("file"))));
    }
    let mut map = format!("{}={}", provided["component_project"].as_str()?, path("dir"));
    for key in ["version", "sha"] {
        if let Some(value) = provided[key].as_str() {
            map.push_str(&format!(",{key}={value}"));
        }
    }
    let names: Vec<String> = match &provided["refs"] {
        Value::Object(names) => names.keys().cloned().collect(),
        other => other.as_array().into_iter().flatten().map(text_of).collect(),
    };
    names.iter().for_each(|name| map.push_str(&format!(",ref={name}")));
    Some(("--map-component", map))
}

/// Compares the result of a job with the expected one.
fn compare_result(wanted: &Value, job: Option<&Value>) -> Result<(), String> {
    let Some(job) = job else {
        return if wanted["status"] == json!("absent") { Ok(()) } else { Err("the report lacks the job".to_owned()) };
    };
    for key in ["status", "exit_code", "coverage"] {
        same(key, wanted.get(key), &job[key])?;
    }
    let log = match job["log"].as_str() {
        Some(path) => fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?,
        None => String::new(),
    };
    let mut lines = log.lines().filter(|line| !line.starts_with("$ "));
    for line in wanted["log"].as_array().into_iter().flatten().map(text_of) {
        if !lines.any(|found| found == line) {
            return Err(format!("`{line}` is not in the log of the job (in this order): {log}"));
        }
    }
    for line in wanted["log_lacks"].as_array().into_iter().flatten().map(text_of) {
        if log.lines().any(|found| found == line) {
            return Err(format!("`{line}` is in the log of the job: {log}"));
        }
    }
    Ok(())
}

/// Compares a planned job with the expected one.
fn compare_job(wanted: &Value, job: &Value) -> Result<(), String> {
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let found = &job[key];
        match key.as_str() {
            "env" => part_of(wanted, &job["env"]).map_err(|why| format!("env {why}"))?,
            "variables_include" => part_of(wanted, &job["variables"]).map_err(|why| format!("variables {why}"))?,
            "needs" => same("needs", Some(&sorted(wanted)), &sorted(found))?,
            _ => same(key, Some(wanted), found)?,
        }
    }
    Ok(())
}

fn part_of(wanted: &Value, found: &Value) -> Result<(), String> {
    for (key, value) in wanted.as_object().into_iter().flatten() {
        same(key, Some(value), found.get(key).unwrap_or(&Value::Null))?;
    }
    Ok(())
}

fn sorted(list: &Value) -> Value {
    let mut items = list.as_array().cloned().unwrap_or_default();
    items.sort_by_key(Value::to_string);
    if list.is_null() { Value::Null } else { Value::Array(items) }
}

fn same(what: &str, wanted: Option<&Value>, found: &Value) -> Result<(), String> {
    match wanted {
        Some(wanted) if wanted != found => Err(format!("{what}: {found} instead of {wanted}")),
        _ => Ok(()),
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Copies the content of a directory over another one; `is_wanted` selects top-level entries by name.
fn copy(from: &Path, to: &Path, is_wanted: &dyn Fn(&str) -> bool) {
    fs::create_dir_all(to).expect("create the directory");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_wanted(&name) {
            continue;
        }
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &to.join(&name), &|_| true),
            false => drop(fs::copy(entry.path(), to.join(&name)).expect("copy the file")),
        }
    }
}
