//! The new runner as a table of the configuration.

use std::fs;
use std::path::Path;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::options::RegisterArgs;
use crate::config::edit::time;
use crate::config::keys::TOKEN_KEYS;
use crate::config::show_error;
use crate::coordinator::gitlab::Registration;
use crate::token::Token;

/// The value for a time that is not set, such as the expiry of a token that does not expire.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The table for the flags; the token is added later.
pub fn new_runner(options: &RegisterArgs, name: &str, url: &str, executor: &str) -> Table {
    let mut table = Table::new();
    table["name"] = value(name);
    table["url"] = value(url);
    table["id"] = value(0);
    table["token"] = value("");
    table["token_obtained_at"] = time(NEVER);
    table["token_expires_at"] = time(NEVER);
    table["executor"] = value(executor);
    options.others.write(&mut table);
    table
}

/// Adds the server's data of the runner.
pub fn identify(table: &mut Table, registration: &Registration, token: &Token) {
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default();
    table["id"] = value(registration.id);
    table["token"] = value(token.reveal());
    table["token_obtained_at"] = time(&now.to_string());
    table["token_expires_at"] = time(registration.token_expires_at.as_deref().unwrap_or(NEVER));
}

/// A complete configuration with only this runner.
pub fn document(runner: &Table) -> String {
    let mut document = DocumentMut::new();
    let mut runners = ArrayOfTables::new();
    runners.push(runner.clone());
    document["runners"] = Item::ArrayOfTables(runners);
    document.to_string()
}

/// A string value of a table.
pub fn text(table: &Table, key: &str) -> Option<String> {
    table.get(key).and_then(Item::as_str).map(str::to_owned)
}

/// The only runner of a template. Fails if the file is unreadable or does not have exactly one.
pub fn template(path: &Path) -> Result<Table, String> {
    let describe = |why: String| format!("template {}: {why}", path.display());
    let text = fs::read_to_string(path).map_err(|error| describe(error.to_string()))?;
    let document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| describe(show_error(&text, error.span(), error.message())))?;
    let runners = document.get("runners").and_then(Item::as_array_of_tables);
    match runners.map(|runners| (runners.len(), runners.get(0))) {
        Some((1, Some(table))) => Ok(without_positions(table.clone())),
        _ => Err(describe("it must have exactly one [[runners]]".to_owned())),
    }
}

/// Removes the positions of a table and its subtables. `toml_edit` keeps the position of a table in its file, and would
/// write the table at the same position in another file.
fn without_positions(mut table: Table) -> Table {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(inner) => *inner = without_positions(std::mem::take(inner)),
            Item::ArrayOfTables(tables) => {
                tables.iter_mut().for_each(|inner| *inner = without_positions(std::mem::take(inner)));
            }
            _ => {}
        }
    }
    table
}

/// Adds missing keys from a template, also in nested tables; never those that the server provides.
pub fn fill_from(table: &mut Table, template: &Table) {
    let is_from_server = |key: &str| key == "id" || TOKEN_KEYS.contains(&key);
    for (key, item) in template.iter().filter(|(key, _)| !is_from_server(key)) {
        match (table.get_mut(key), item) {
            (Some(Item::Table(inner)), Item::Table(template)) => fill_from(inner, template),
            (Some(_), _) => {}
            (None, _) => {
                table.insert(key, item.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_provides_only_missing_keys() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("template.toml");
        let text = "[[runners]]\ntoken = \"template\"\nlimit = 3\nname = \"x\"\n\
                    [runners.cache]\nType = \"s3\"\nPath = \"p\"\n\
                    [runners.cache.s3]\nBucketName = \"b\"\n[[runners.docker.services]]\nname = \"db\"\n";
        fs::write(&path, text).expect("write the file");
        let config = directory.path().join("config.toml");
        let old = "[[runners]]\nname = \"one\"\n[runners.cache]\nPath = \"1\"\n\
                   [[runners]]\nname = \"two\"\n[runners.cache]\nPath = \"2\"\n";
        fs::write(&config, old).expect("write the file");

        let mut table: Table = "name = \"three\"\ntoken = \"\"\n[cache]\nPath = \"flag\"\n"
            .parse::<DocumentMut>()
            .expect("a table")
            .as_table()
            .clone();
        table = without_positions(table);
        fill_from(&mut table, &template(&path).expect("a template"));
        let mut editor = crate::config::edit::Editor::open(&config).expect("open the file");
        editor.add_runner(table).expect("add the runner");
        editor.save().expect("save the file");

        let changed: toml::Table =
            fs::read_to_string(&config).expect("read the file").parse().expect("a configuration");
        let runners = changed["runners"].as_array().expect("a list of runners");
        assert_eq!(runners.len(), 3);
        assert_eq!(runners[0]["cache"]["Path"].as_str(), Some("1"));
        assert_eq!(runners[1]["cache"].as_table().expect("a table").len(), 1);
        assert_eq!((runners[2]["token"].as_str(), runners[2]["limit"].as_integer()), (Some(""), Some(3)));
        assert_eq!(runners[2]["name"].as_str(), Some("three"));
        assert_eq!(runners[2]["cache"]["Path"].as_str(), Some("flag"));
        assert_eq!(runners[2]["cache"]["s3"]["BucketName"].as_str(), Some("b"));
        assert_eq!(runners[2]["docker"]["services"][0]["name"].as_str(), Some("db"));
    }

    #[test]
    fn a_broken_template_does_not_show_a_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("template.toml");
        fs::write(&path, "[[runners]]\ntoken = glrt-secret\n").expect("write the file");
        let why = template(&path).expect_err("must be refused");
        assert!(why.contains("line 2") && !why.contains("secret"), "{why}");
    }

    #[test]
    fn a_template_has_exactly_one_runner() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("template.toml");
        for text in ["", "[[runners]]\n[[runners]]\n"] {
            fs::write(&path, text).expect("write the file");
            assert!(template(&path).expect_err("must be refused").contains("exactly one"));
        }
    }
}
