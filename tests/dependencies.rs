//! The lock file follows the policy of `deny.toml`, as far as a check without a network can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::documents::root;

/// The packages of a build for musl, including build scripts and tests.
fn packages() -> Vec<Value> {
    let arguments = [
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--offline",
        "--filter-platform",
        "x86_64-unknown-linux-musl",
    ];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("run cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("must be JSON");
    let nodes = metadata["resolve"]["nodes"].as_array().expect("a list of nodes");
    let used: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().expect("a list of packages").iter();
    packages.filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id))).cloned().collect()
}

fn policy() -> toml::Table {
    fs::read_to_string(root().join("deny.toml")).expect("the policy").parse().expect("must be TOML")
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

/// Whether these licences satisfy an SPDX expression. `AND` binds stronger than `OR`; the deprecated `/` means `OR`.
fn may_be_used(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = expression.split_whitespace().peekable();
    let result = either(&mut words, allowed);
    assert!(words.next().is_none(), "{expression}");
    result
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut result = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        result |= both(words, allowed);
    }
    result
}

fn both(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut result = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let word = words.next().expect("a licence");
    if word == "(" {
        let result = either(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return result;
    }
    // An exception counts as a licence of its own, which the policy must list.
    let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
    let name = exception.map_or_else(|| word.to_owned(), |exception| format!("{word} WITH {exception}"));
    allowed.contains(&name.as_str())
}

#[test]
fn evaluates_licence_expressions_as_spdx_defines() {
    let allowed = ["MIT", "ISC"];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("(GPL-3.0 OR MIT) AND Zlib", false),
        ("MIT WITH X-exception", false),
    ] {
        assert_eq!(may_be_used(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn dependencies_have_allowed_licences_and_known_sources() {
    let policy = policy();
    let allowed = policy["licenses"]["allow"].as_array().expect("a list of licences");
    let allowed: Vec<&str> = allowed.iter().filter_map(toml::Value::as_str).collect();
    for package in packages() {
        let (name, licence) = (text(&package, "name"), text(&package, "license"));
        assert!(may_be_used(licence, &allowed), "{name} has the licence `{licence}`, which deny.toml does not allow");
        let source = package["source"].as_str().unwrap_or("this checkout");
        let is_known = source.starts_with("registry+") || name == "mayfly";
        assert!(is_known, "{name} is from {source}");
    }
}

#[test]
fn no_dependency_has_two_versions_unless_the_policy_gives_a_reason() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(text(&package, "name").to_owned()).or_default().insert(text(&package, "version").to_owned());
    }
    let policy = policy();
    let skipped = policy["bans"]["skip"].as_array().expect("a list").iter();
    let skipped: Vec<(&str, &str)> = skipped
        .map(|skip| {
            skip["crate"].as_str().and_then(|it| it.split_once('@')).expect("an entry must have the form crate@version")
        })
        .collect();
    for (name, version) in &skipped {
        let is_there = |other: &String| other == version || other.starts_with(&format!("{version}."));
        let is_needed = versions.get(*name).is_some_and(|versions| versions.len() > 1 && versions.iter().any(is_there));
        assert!(is_needed, "deny.toml skips {name}@{version}, which is not there twice");
    }
    for (name, versions) in versions {
        let is_skipped = |version: &&String| {
            skipped.iter().any(|(skip, of)| *skip == name && version.starts_with(&format!("{of}.")))
        };
        let left = versions.iter().filter(|version| !is_skipped(version)).count();
        assert!(left <= 1, "{name} is there in several versions: {versions:?}; see `cargo tree --duplicates`");
    }
}

/// The targets for fuzzing are built from the agent's sources, as a package of their own.
#[test]
fn fuzzing_uses_the_agents_dependencies() {
    let dependencies = |manifest: &str| {
        let manifest: toml::Table =
            fs::read_to_string(root().join(manifest)).expect("a manifest").parse().expect("must be TOML");
        manifest["dependencies"].as_table().expect("a table").clone()
    };
    let (agent, mut fuzz) = (dependencies("Cargo.toml"), dependencies("fuzz/Cargo.toml"));
    assert!(fuzz.remove("libfuzzer-sys").is_some());
    assert_eq!(fuzz, agent, "copy [dependencies] of Cargo.toml to fuzz/Cargo.toml");
}
