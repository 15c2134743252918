//! Tests that the documentation of `config.toml` agrees with the table of keys.
//!
//! A key with an effect is described by hand, in the section of its table. The table of keys without effect is
//! generated: after a change of a reason, run `UPDATE_DOCS=1 cargo test --bin mayfly reference_page`.

use std::collections::BTreeSet;
use std::fs;

use super::feature_flags::{FLAGS, Support as Effect};
use super::keys::{Support, TABLES};

const CONFIGURATION: &str = "docs/reference/configuration.md";
const DOCKER: &str = "docs/reference/docker.md";
/// The start of the generated part of [`CONFIGURATION`]; it ends at an empty line.
const GENERATED: &str = "| Key | Table | Why |\n|---|---|---|\n";

fn page(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).expect(name)
}

/// The names in the first cells of the rows of a section.
fn described(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The heading of the section for a table.
fn heading(table: &str) -> String {
    match table {
        "" => "Top level".to_owned(),
        "runners" | "runners.docker.services" | "runners.machine.autoscaling" | "runners.autoscaler.policy" => {
            format!("`[[{table}]]`")
        }
        table => format!("`[{table}]`"),
    }
}

#[test]
fn reference_pages_describe_every_key_with_an_effect_and_no_other() {
    let pages = [page(CONFIGURATION), page(DOCKER)];
    for (table, keys) in TABLES {
        let (name, text) = match table.starts_with("runners.docker") {
            true => (DOCKER, &pages[1]),
            false => (CONFIGURATION, &pages[0]),
        };
        let known =
            keys.iter().filter(|(_, support)| !matches!(support, Support::NoEffect(_) | Support::ManagerOnly(_)));
        let known = known.map(|(key, _)| *key);
        let flags = FLAGS.iter().filter(|(_, _, effect)| matches!(effect, Effect::Honoured | Effect::InContainers));
        let known: BTreeSet<String> = match *table {
            "runners.feature_flags" => flags.map(|(flag, ..)| (*flag).to_owned()).collect(),
            _ => known.map(str::to_owned).collect(),
        };
        let section = heading(table);
        assert_eq!(described(text, &section), known, "{name}, section {section}");
    }
}

#[test]
fn the_reference_page_lists_the_keys_without_effect() {
    let mut expected = GENERATED.to_owned();
    // Keys of fleets are documented in the migration guide.
    let is_of_fleets = |table: &str| table.starts_with("runners.machine") || table.starts_with("runners.autoscaler");
    for (table, keys) in TABLES.iter().filter(|(table, _)| !is_of_fleets(table)) {
        for (key, support) in *keys {
            if let Support::NoEffect(why) = support {
                let table = if table.is_empty() { "top level".to_owned() } else { heading(table) };
                expected += &format!("| `{key}` | {table} | {why} |\n");
            }
        }
    }
    let text = page(CONFIGURATION);
    let begin = text.find(GENERATED).expect("the generated table");
    let end = text[begin..].find("\n\n").map_or(text.len(), |end| begin + end + 1);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = format!("{}/{CONFIGURATION}", env!("CARGO_MANIFEST_DIR"));
        fs::write(path, text[..begin].to_owned() + &expected + &text[end..]).expect("written");
    } else {
        assert_eq!(&text[begin..end], expected, "run UPDATE_DOCS=1 cargo test --bin mayfly reference_page");
    }
}
