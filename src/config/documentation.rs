//! Tests that the reference pages agree with the tables of keys and flags, from which the pages are generated. After a
//! change, run `UPDATE_DOCS=1 cargo test --bin mayfly reference_page`.

use std::fs;

use super::feature_flags::{FLAGS, FlagSupport};
use super::keys::{KeySupport, KeyTable, Row, TABLES};

const CONFIGURATION: &str = "docs/reference/configuration.md";
const DOCKER: &str = "docs/reference/docker.md";
/// The head of the table of keys without effect.
const WITHOUT_EFFECT: &str = "| Key | Table | Why |\n|---|---|---|\n";

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

fn row(names: &[&str], cells: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let cells = cells.iter().map(|cell| if cell.is_empty() { " |".to_owned() } else { format!(" {cell} |") });
    format!("| {} |{}\n", names.join(", "), cells.collect::<String>())
}

/// The rows for the keys of a table that have an effect.
fn rows(table: &KeyTable) -> String {
    if table.path == "runners.feature_flags" {
        let shown =
            FLAGS.iter().filter(|flag| matches!(flag.support, FlagSupport::Honoured | FlagSupport::InContainers));
        return shown.map(|flag| row(&[flag.name], &[&format!("`{}`", flag.default), flag.meaning])).collect();
    }
    let mut text = String::new();
    let mut keys = table.keys.iter().peekable();
    while let Some(key) = keys.next() {
        let Some(Row::Cells(second, third)) = key.row else { continue };
        let mut names = vec![key.name];
        while let Some(same) = keys.next_if(|key| key.row == Some(Row::AsAbove)) {
            names.push(same.name);
        }
        let has_two_columns = table.path == "runners.docker.services";
        text += &if has_two_columns { row(&names, &[third]) } else { row(&names, &[second, third]) };
    }
    text
}

/// The page with generated rows in the section of a table. A table whose keys have no effect has no section.
fn with_rows(page: &str, section: &str, rows: &str) -> String {
    let heading = format!("\n## {section}\n");
    if rows.is_empty() {
        assert!(!page.contains(&heading), "{section} has no key with an effect");
        return page.to_owned();
    }
    let at = page.find(&heading).unwrap_or_else(|| panic!("no section {section}"));
    let begin = at + page[at..].find("|---|").unwrap_or_else(|| panic!("no table in section {section}"));
    let begin = begin + page[begin..].find('\n').expect("the page must have rows") + 1;
    let end = page[begin..].find("\n\n").map_or(page.len(), |end| begin + end + 1);
    format!("{}{rows}{}", &page[..begin], &page[end..])
}

/// The page with the table of keys without effect. The migration guide lists those of fleets.
fn with_keys_without_effect(page: &str) -> String {
    let mut rows = String::new();
    let is_of_fleets = |table: &str| table.starts_with("runners.machine") || table.starts_with("runners.autoscaler");
    for table in TABLES.iter().filter(|table| !is_of_fleets(table.path)) {
        for key in table.keys {
            if let KeySupport::NoEffect(why) = key.support {
                let position = if table.path.is_empty() { "top level".to_owned() } else { heading(table.path) };
                rows += &row(&[key.name], &[&position, why]);
            }
        }
    }
    let begin = page.find(WITHOUT_EFFECT).expect("the table of keys without effect") + WITHOUT_EFFECT.len();
    let end = page[begin..].find("\n\n").map_or(page.len(), |end| begin + end + 1);
    format!("{}{rows}{}", &page[..begin], &page[end..])
}

#[test]
fn the_reference_pages_are_those_of_the_tables() {
    for name in [CONFIGURATION, DOCKER] {
        let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
        let page = fs::read_to_string(&path).expect(name);
        let is_of_docker = name == DOCKER;
        let of_page = TABLES.iter().filter(|table| table.path.starts_with("runners.docker") == is_of_docker);
        let mut expected =
            of_page.fold(page.clone(), |page, table| with_rows(&page, &heading(table.path), &rows(table)));
        if !is_of_docker {
            expected = with_keys_without_effect(&expected);
        }
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(path, expected).expect("write the file");
        } else {
            let differs = page.lines().zip(expected.lines()).find(|(one, other)| one != other);
            assert!(
                page == expected,
                "run UPDATE_DOCS=1 cargo test --bin mayfly reference_page; {name} differs: {differs:?}"
            );
        }
    }
}

#[test]
fn each_key_with_an_effect_is_documented() {
    for key in TABLES.iter().flat_map(|table| table.keys) {
        let has_effect = matches!(key.support, KeySupport::Honoured | KeySupport::Table);
        assert_eq!(key.row.is_some(), has_effect, "{}", key.name);
    }
}
