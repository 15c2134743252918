//! The examples in the documentation work, and what the documentation names exists.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mayfly::Home;
use crate::support::output_text;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `directory` with this extension; at least one.
pub fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let found: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|other| other == ending)).collect();
    assert!(!found.is_empty(), "nothing in {directory} ends in {ending}");
    found
}

/// All documentation pages: those below `docs` and those in the root directory.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => directories.push(path),
                false if path.extension().is_some_and(|ending| ending == "md") => pages.push(path),
                false => {}
            }
        }
    }
    pages.sort();
    pages
}

/// The anchors that GitHub and GitLab create for the headings of a page.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Asserts that `lint` reports no finding for a configuration.
pub fn lint(what: &str, configuration: &str) {
    let home = Home::empty();
    fs::write(home.config(), configuration).expect("write a file");
    fs::set_permissions(home.config(), fs::Permissions::from_mode(0o600)).expect("set the permissions");
    let output = home.call(&["lint", "--config", &home.config().display().to_string()]);
    let findings = output_text(&output);
    assert!(output.status.success() && !findings.contains("warning"), "{what}: {findings}\n{configuration}");
}

/// The code blocks in this language, with the indentation of list items removed.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let (begin, mut found) = (format!("```{language}"), Vec::new());
    let mut lines = text.lines();
    while let Some(first) = lines.next() {
        if first.trim_start() == begin {
            let indentation = first.len() - first.trim_start().len();
            let inner = lines.by_ref().take_while(|line| line.trim() != "```");
            found.push(inner.map(|line| format!("{}\n", line.get(indentation..).unwrap_or_default())).collect());
        }
    }
    found
}

/// Runs `mayfly exec --list` in a project with these settings.
fn list_jobs_with(settings: &str) {
    let project = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = project.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("create the directory");
        fs::write(path, text).expect("write a file");
    };
    write(".gitlab-ci.yml", "hello:\n  script: [echo hello]\n");
    write(".mayfly/exec.toml", settings);
    write("ci/local.yml", "{}\n");
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=Dev", "-c", "user.email=dev@example.test"];
        let ran = Command::new("git").args(identity).args(arguments).current_dir(project.path()).output();
        assert!(ran.expect("run git").status.success(), "{arguments:?}");
    };
    git(&["init", "--quiet"]);
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message", "Initial commit"]);
    let listed = Home::empty().command(&["exec", "--list"]).current_dir(project.path()).output().expect("run mayfly");
    let list = output_text(&listed);
    assert!(listed.status.success() && list.contains("hello"), "{list}");
}

#[test]
fn configurations_in_the_documentation_are_valid() {
    let mut count = 0;
    for path in pages() {
        for block in blocks(&fs::read_to_string(&path).expect("a document"), "toml") {
            match block.starts_with("# .mayfly/exec.toml\n") {
                true => list_jobs_with(&block),
                false => lint(&path.display().to_string(), &block),
            }
            count += 1;
        }
    }
    assert!(count >= 14, "only {count} examples were found");
}

#[test]
fn links_in_the_documentation_resolve() {
    for path in pages() {
        let text = fs::read_to_string(&path).expect("a document");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = if file.is_empty() { path.clone() } else { path.parent().expect("a directory").join(file) };
            assert!(there.exists(), "{} has a link to {target}", path.display());
            if !anchor.is_empty() {
                let known = anchors(&fs::read_to_string(&there).expect("a document"));
                assert!(known.contains(&anchor.to_owned()), "{}: no {anchor} in {known:?}", path.display());
            }
        }
    }
}

#[test]
fn the_index_names_every_page() {
    let index = fs::read_to_string(root().join("docs/README.md")).expect("the index");
    let docs = root().join("docs");
    for page in pages().iter().filter_map(|page| page.strip_prefix(&docs).ok()) {
        let link = format!("]({})", page.display());
        assert!(page == Path::new("README.md") || index.contains(&link), "docs/README.md has no link to {link}");
    }
}

/// All Rust files below a directory.
fn rust_files(directory: &str) -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![root().join(directory)]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("list the directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => directories.push(path),
                false if path.extension().is_some_and(|ending| ending == "rs") => files.push(path),
                false => {}
            }
        }
    }
    files
}

/// The text of all Rust files below a directory.
fn rust_text(directory: &str) -> String {
    rust_files(directory).iter().map(|path| fs::read_to_string(path).expect("read the file")).collect()
}

/// The source text of the program, with multi-line string literals joined.
fn source() -> String {
    let mut joined = String::new();
    for (at, part) in rust_text("src").split("\\\n").enumerate() {
        joined += if at == 0 { part } else { part.trim_start() };
    }
    joined
}

#[test]
fn log_lines_in_the_documentation_are_written_by_the_agent() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).expect("the page");
    let (_, section) = page.split_once("\n## By log line of the agent\n").expect("the section");
    let lines: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(lines.len() >= 15, "{lines:?}");
    let source = source();
    for line in lines {
        assert!(source.contains(line), "docs/troubleshooting.md explains `{line}`, which no source contains");
    }
}

/// The events of the log lines at a level: the literal text before the first fact.
fn events(source: &str, level: &str) -> Vec<String> {
    let call = format!("log::{level}!(");
    let literals = source.split(call.as_str()).skip(1).filter_map(|text| text.trim_start().strip_prefix('"'));
    literals
        .filter_map(|text| text.split(['"', '{']).next())
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_warning_and_error_of_the_log_is_in_the_documentation() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).expect("read the file");
    let documented: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let source = source();
    let all = [events(&source, "warn"), events(&source, "error")].concat();
    assert!(all.len() >= 150, "{all:#?}");
    let missing: Vec<_> = all.iter().filter(|event| !documented.iter().any(|line| event.starts_with(line))).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md does not explain these lines: {missing:#?}");
}

/// The pages that name files, functions and tests.
const PAGES_FOR_DEVELOPERS: [&str; 3] = ["docs/architecture.md", "CONTRIBUTING.md", "bench/README.md"];

/// The code of a page: the text between backticks, and the blocks.
fn code(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(page)).expect("a page");
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn paths_in_the_pages_for_developers_exist() {
    let tops = ["src/", "tests/", "docs/", "packages/", "bench/", "fuzz/", ".ci/", ".cargo/"];
    for page in PAGES_FOR_DEVELOPERS {
        for path in code(page).iter().filter_map(|code| code.split(' ').next()) {
            // A part in capitals stands for any name; `fuzz/run` creates `fuzz/artifacts`.
            let parts = path.split('/').take_while(|part| !part.chars().all(|c| c.is_ascii_uppercase()));
            let known = parts.collect::<Vec<_>>().join("/");
            let known = known.trim_end_matches("*.rs");
            let is_path = tops.iter().any(|top| path.starts_with(top)) && known != "fuzz/artifacts";
            assert!(!is_path || root().join(known).exists(), "{page} names {path}, which does not exist");
        }
    }
}

#[test]
fn the_table_of_retries_names_each_file_with_a_delay_or_a_number_of_attempts() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    let (_, section) = page.split_once("\n## What is retried, how often, and how long\n").expect("the section");
    let table = section.split("\n## ").next().unwrap_or_default();
    let is_policy = |line: &str| {
        let is_delay = line.contains("RETRY") && line.contains(": Duration = ");
        line.contains("Backoff::new(") || is_delay || line.contains("ATTEMPTS: u")
    };
    let mut count = 0;
    for path in rust_files("src") {
        let text = fs::read_to_string(&path).expect("read the file");
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let name = path.strip_prefix(root()).expect("a path below the root").display().to_string();
        if name.ends_with("tests.rs") || name == "src/backoff.rs" || !code.lines().any(is_policy) {
            continue;
        }
        assert!(table.contains(&format!("`{name}`")), "{name} has a policy of retries, but the table does not name it");
        count += 1;
    }
    assert!(count >= 20, "only {count} files with policies were found");
}

#[test]
fn names_in_the_pages_for_developers_exist() {
    let defined = ["src", "tests", "bench"].map(rust_text).concat();
    let mut count = 0;
    for page in PAGES_FOR_DEVELOPERS {
        for code in code(page) {
            // Names of functions, tests, keys and variables have an underscore, types have `::` behind them.
            let before = code.match_indices("::").map(|(at, _)| &code[..at]);
            let types = before.filter_map(|text| text.rsplit(|c: char| !c.is_alphanumeric()).next());
            let types = types.filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()));
            let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            for name in words.filter(|word| word.trim_matches('_').contains('_')).chain(types) {
                assert!(defined.contains(name), "{page} names `{name}`, which the sources do not contain");
                count += 1;
            }
        }
    }
    assert!(count >= 30, "only {count} names were found");
    let modules = fs::read_to_string(root().join("tests/main.rs")).expect("a file");
    for code in code("CONTRIBUTING.md") {
        if let Some(module) = code.strip_prefix("cargo test --test system ").and_then(|code| code.strip_suffix("::")) {
            assert!(modules.contains(&format!("mod {module};")), "CONTRIBUTING.md names the tests `{module}::`");
        }
    }
}
