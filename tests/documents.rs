//! Every example in the documentation is one that works.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mayfly::Home;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `directory` with this ending, at least one.
fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let found: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|other| other == ending)).collect();
    assert!(!found.is_empty(), "nothing in {directory} ends in {ending}");
    found
}

/// Every page: those below `docs`, and those at the top.
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

/// The anchors that GitHub and GitLab give the headings of a page.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// What `lint` says of a configuration that it has nothing to say of.
fn lint(what: &str, configuration: &str) {
    let home = Home::empty();
    fs::write(home.config(), configuration).expect("written");
    fs::set_permissions(home.config(), fs::Permissions::from_mode(0o600)).expect("closed");
    let output = home.call(&["lint", "--config", &home.config().display().to_string()]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && !said.contains("warning"), "{what}: {said}\n{configuration}");
}

/// The blocks of a document in this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("\n```{language}\n");
    text.split(&begin).skip(1).map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned() + "\n").collect()
}

#[test]
fn configurations_in_the_documentation_are_good() {
    let mut count = 0;
    for path in pages() {
        for block in blocks(&fs::read_to_string(&path).expect("a document"), "toml") {
            lint(&path.display().to_string(), &block);
            count += 1;
        }
    }
    assert!(count >= 9, "only {count} examples were found");
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
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

/// The program of a Python package that `tests/setup.sh` installs.
fn cfn_lint() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache"));
    cache.join("mayfly-tests/cfn-lint/bin/cfn-lint")
}

#[test]
fn fleet_templates_are_valid() {
    let output = Command::new(cfn_lint()).args(files("docs/fleet", "yaml")).output().expect("cfn-lint");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

/// The user data of a template, with the defaults of its parameters.
fn user_data(template: &str) -> String {
    let text = template.split("Fn::Base64: !Sub |\n").nth(1).expect("user data");
    let lines = text.lines().take_while(|line| line.starts_with("            "));
    let data: String = lines.map(|line| format!("{}\n", &line[12..])).collect();
    let default = |parameter: &str| {
        let rest = template.split(&format!("  {parameter}:\n")).nth(1).expect("a parameter");
        rest.split("Default: ").nth(1).and_then(|rest| rest.lines().next()).expect("a default").to_owned()
    };
    let names = ["GitLabUrl", "TokenParameter"];
    names.iter().fold(data, |data, name| data.replace(&format!("${{{name}}}"), &default(name)))
}

/// The configuration that user data write.
fn configuration(user_data: &str) -> String {
    let text = user_data.split("    content: |\n").nth(1).expect("a file");
    text.lines().map(|line| format!("{}\n", line.get(6..).unwrap_or_default())).collect()
}

/// Lines that are no comments, and the first.
fn without_comments(text: &str) -> String {
    let (first, rest) = text.split_once('\n').expect("lines");
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
    // The others say otherwise how long an instance lives, and no more.
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
fn fleet_templates_write_good_configurations() {
    for path in files("docs/fleet", "yaml") {
        let data = user_data(&fs::read_to_string(&path).expect("a template"));
        lint(&path.display().to_string(), &configuration(&data));
    }
}
