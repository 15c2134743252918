//! All keys of `config.toml`: the type of each key, its effect, its row in the documentation and its flag of `mayfly
//! register`. No key is ignored silently.
//!
//! The reference pages are generated from these tables: after a change, run
//! `UPDATE_DOCS=1 cargo test --bin mayfly reference_page`.

mod agent;
mod cache;
mod docker;
mod fleet;
mod runner;

/// A key of `config.toml`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: ValueType,
    pub support: KeySupport,
    /// The flag of `mayfly register` that writes the key.
    pub flag: Option<RegisterFlag>,
    /// The row of the key in the documentation; `None` for a key without effect.
    #[cfg(test)]
    pub row: Option<Row>,
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    Text,
    Number,
    Bool,
    /// A text such as `1h30m`.
    Duration,
    /// A date with time.
    Time,
    List,
    /// A table whose keys the operator chooses.
    Map,
    /// A table with its own fixed keys.
    Table,
}

/// The effect of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySupport {
    /// The key has the effect that the documentation describes.
    Honoured,
    /// The key is a table, whose keys have their own effects.
    Table,
    /// The key has no effect, for this reason.
    NoEffect(&'static str),
    /// Only `mayfly manager` honours the key; for an agent it has no effect, for this reason.
    ManagerOnly(&'static str),
}

/// A flag of `mayfly register` that writes a key to the configuration; the names are gitlab-runner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterFlag {
    pub name: &'static str,
    /// The environment variable; empty for none.
    pub variable: &'static str,
    /// The name of the value and the help text; a flag without them is not listed.
    pub help: Option<(&'static str, &'static str)>,
}

/// A row of the documentation.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// The text of the second and the third column.
    Cells(&'static str, &'static str),
    /// The key shares the row of the key before it.
    AsAbove,
}

/// A table with its keys.
#[derive(Clone, Copy, Debug)]
pub struct KeyTable {
    /// The path (`runners`, `runners.mayfly`, …; empty for the top level).
    pub path: &'static str,
    pub keys: &'static [Key],
}

use KeySupport::{Honoured, ManagerOnly, NoEffect};

const fn entry(name: &'static str, kind: ValueType, support: KeySupport) -> Key {
    Key {
        name,
        kind,
        support,
        flag: None,
        #[cfg(test)]
        row: None,
    }
}

/// A key with an effect, and the cells of its row.
const fn key(name: &'static str, kind: ValueType, second: &'static str, third: &'static str) -> Key {
    entry(name, kind, Honoured).row(second, third)
}

/// A key with an effect in the row of the key before it.
const fn as_above(name: &'static str, kind: ValueType) -> Key {
    entry(name, kind, Honoured).row_above()
}

/// A table, and the cells of its row.
const fn table(name: &'static str, second: &'static str, third: &'static str) -> Key {
    entry(name, ValueType::Table, KeySupport::Table).row(second, third)
}

/// A table in the row of the key before it.
const fn table_as_above(name: &'static str) -> Key {
    entry(name, ValueType::Table, KeySupport::Table).row_above()
}

/// A key without effect.
const fn no_effect(name: &'static str, why: &'static str) -> Key {
    entry(name, ValueType::Text, NoEffect(why))
}

/// A key that only `mayfly manager` honours.
const fn manager_only(name: &'static str, why: &'static str) -> Key {
    entry(name, ValueType::Text, ManagerOnly(why))
}

impl Key {
    #[cfg_attr(not(test), allow(unused_variables, unused_mut))]
    const fn row(mut self, second: &'static str, third: &'static str) -> Self {
        #[cfg(test)]
        {
            self.row = Some(Row::Cells(second, third));
        }
        self
    }

    #[cfg_attr(not(test), allow(unused_mut))]
    const fn row_above(mut self) -> Self {
        #[cfg(test)]
        {
            self.row = Some(Row::AsAbove);
        }
        self
    }

    /// The type of a key without effect, for its flag.
    const fn of_kind(mut self, kind: ValueType) -> Self {
        self.kind = kind;
        self
    }

    /// Adds a flag of `mayfly register` that the help of the command does not list.
    const fn flag(mut self, name: &'static str, variable: &'static str) -> Self {
        self.flag = Some(RegisterFlag { name, variable, help: None });
        self
    }

    /// Adds a flag of `mayfly register` that the help of the command lists.
    const fn shown_flag(
        mut self,
        name: &'static str,
        variable: &'static str,
        value: &'static str,
        help: &'static str,
    ) -> Self {
        self.flag = Some(RegisterFlag { name, variable, help: Some((value, help)) });
        self
    }
}

/// Why the keys of object stores other than S3 have no effect.
pub const OTHER_OBJECT_STORE: &str = "mayfly stores caches only on the instance and in S3";
const MANAGER: &str = "the Auto Scaling group creates and removes instances, not the agent";
const USAGE: &str = "mayfly sends no usage or error reports";
/// Why `[runners.docker]` has no effect if jobs do not run in containers.
pub const WITHOUT_CONTAINERS: &str = "this executor runs jobs in the instance's shell";

/// All tables with their keys.
pub const TABLES: &[KeyTable] = &[
    KeyTable { path: "", keys: agent::GLOBAL },
    KeyTable { path: "mayfly", keys: agent::MAYFLY },
    KeyTable { path: "mayfly.manager", keys: agent::MAYFLY_MANAGER },
    KeyTable { path: "mayfly.aws", keys: agent::MAYFLY_AWS },
    KeyTable { path: "mayfly.aws.raise_on_job", keys: agent::RAISE },
    KeyTable { path: "runners", keys: runner::RUNNER },
    KeyTable { path: "runners.mayfly", keys: runner::RUNNER_MAYFLY },
    KeyTable { path: "runners.custom_build_dir", keys: runner::CUSTOM_BUILD_DIR },
    // The keys of this table are in `feature_flags::FLAGS`.
    KeyTable { path: "runners.feature_flags", keys: &[] },
    KeyTable { path: "runners.docker", keys: docker::DOCKER },
    KeyTable { path: "runners.docker.services", keys: docker::DOCKER_SERVICE },
    KeyTable { path: "runners.machine", keys: fleet::MACHINE },
    KeyTable { path: "runners.machine.autoscaling", keys: fleet::MACHINE_AUTOSCALING },
    KeyTable { path: "runners.autoscaler", keys: fleet::AUTOSCALER },
    KeyTable { path: "runners.autoscaler.policy", keys: fleet::AUTOSCALER_POLICY },
    KeyTable { path: "runners.artifact", keys: runner::ARTIFACT },
    KeyTable { path: "runners.cache", keys: cache::CACHE },
    KeyTable { path: "runners.cache.s3", keys: cache::CACHE_S3 },
    KeyTable { path: "runners.cache.gcs", keys: cache::CACHE_GCS },
    KeyTable { path: "runners.cache.azure", keys: cache::CACHE_AZURE },
];

/// The keys of `[[runners]]` that describe the runner's token.
pub const TOKEN_KEYS: [&str; 3] = ["token", "token_obtained_at", "token_expires_at"];

/// The keys of `[[runners]]` for the connection to the runner's server. A manager does not send its own ones to agents,
/// and those of an agent are for its manager, not for GitLab.
pub const CONNECTION_KEYS: [&str; 8] =
    ["url", "id", TOKEN_KEYS[0], TOKEN_KEYS[1], TOKEN_KEYS[2], "tls-ca-file", "tls-cert-file", "tls-key-file"];

/// The keys with periods, and their tables.
pub const PERIODS: [&str; 2] = ["runners.machine.autoscaling.Periods", "runners.autoscaler.policy.periods"];

/// The keys of the table at `path` (`runners`, `runners.mayfly`, …; empty for the top level).
pub fn keys_of(path: &str) -> &'static [Key] {
    TABLES.iter().find(|table| table.path == path).map_or(&[], |table| table.keys)
}

/// Where the keys of a table belong in the file, in words.
pub fn describe_position(path: &str) -> String {
    match path {
        "" => "at the top level, before all tables".to_owned(),
        "runners" | "runners.docker.services" | "runners.machine.autoscaling" | "runners.autoscaler.policy" => {
            format!("below [[{path}]]")
        }
        path => format!("below [{path}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migration_guide_lists_every_fleet_setting() {
        let page = include_str!("../../../docs/guides/migration.md");
        let fleet = |path: &str| ["runners.machine", "runners.autoscaler"].iter().any(|table| path.starts_with(table));
        let keys = TABLES.iter().filter(|table| fleet(table.path)).flat_map(|table| table.keys);
        let missing: Vec<&str> =
            keys.map(|key| key.name).filter(|key| !page.contains(&format!("\n| `{key}` |"))).collect();
        assert!(missing.is_empty(), "not in docs/guides/migration.md: {missing:?}");
    }

    /// A document in which the key has a value of its type.
    fn sample(path: &str, key: &Key) -> String {
        let value = match key.kind {
            ValueType::Text => "\"\"",
            ValueType::Number => "1",
            ValueType::Bool => "true",
            ValueType::Duration => "\"1s\"",
            ValueType::Time => "2026-01-01T00:00:00Z",
            ValueType::List => "[]",
            ValueType::Map | ValueType::Table => "{}",
        };
        let line = format!("{} = {value}\n", key.name);
        let heading =
            describe_position(path).strip_prefix("below ").map(|heading| format!("{heading}\n")).unwrap_or_default();
        // `[[runners]]` is an array of tables, so a table below it needs an element of that array.
        let above = |list: &str| path.starts_with(list) && path != list.trim_end_matches('.');
        let runner = if above("runners.") { "[[runners]]\n" } else { "" };
        format!("{runner}{heading}{line}")
    }

    #[test]
    fn keys_have_the_type_of_the_table() {
        let mut wrong = Vec::new();
        for table in TABLES {
            let honoured = table.keys.iter().filter(|key| key.support == Honoured);
            for key in honoured {
                let text = sample(table.path, key);
                let error = crate::config::Config::parse(std::path::Path::new("config.toml"), &text).err();
                wrong.extend(error.map(|error| error.to_string()).filter(|why| why.contains("invalid type")));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn each_flag_of_register_writes_one_key() {
        let flags = TABLES.iter().flat_map(|table| table.keys).filter_map(|key| key.flag);
        let mut names: Vec<&str> = flags.map(|flag| flag.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}
