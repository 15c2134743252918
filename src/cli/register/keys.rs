//! Flags of `register` that only write keys to the configuration; the tables of keys name them.

use std::collections::BTreeMap;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use toml_edit::{Array, InlineTable, Item, Table, Value};

use crate::cli::boolean;
use crate::config::keys::{Key, RegisterFlag, TABLES, ValueType};
use crate::decode;

/// The keys with a flag, each with its table below `[[runners]]` (empty for the runner itself).
fn keys_with_flags() -> impl Iterator<Item = (&'static str, &'static Key, RegisterFlag)> {
    let of_runners = TABLES.iter().filter_map(|table| {
        let section = table.path.strip_prefix("runners")?;
        Some((section.strip_prefix('.').unwrap_or(section), table.keys))
    });
    of_runners.flat_map(|(section, keys)| keys.iter().filter_map(move |key| Some((section, key, key.flag?))))
}

/// The values of these flags.
#[derive(Default)]
pub struct OtherKeys(Vec<(&'static str, &'static str, Value)>);

impl OtherKeys {
    /// Writes the keys to the table of a runner.
    pub fn write(&self, runner: &mut Table) {
        for (section, key, value) in &self.0 {
            let mut table = &mut *runner;
            for part in section.split('.').filter(|part| !part.is_empty()) {
                let inner = table.entry(part).or_insert_with(|| Item::Table(Table::new()));
                let Item::Table(inner) = inner else { return };
                table = inner;
            }
            table[key] = Item::Value(value.clone());
        }
    }
}

impl Args for OtherKeys {
    fn augment_args(command: Command) -> Command {
        keys_with_flags().fold(command, |command, (_, key, flag)| command.arg(argument(key.kind, &flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OtherKeys {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |(section, key, flag): (_, &Key, RegisterFlag)| {
            Some((section, key.name, given_value(matches, key.kind, flag.name)?))
        };
        Ok(Self(keys_with_flags().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument(kind: ValueType, flag: &RegisterFlag) -> Arg {
    let argument = Arg::new(flag.name).long(flag.name);
    let argument = if flag.variable.is_empty() { argument } else { argument.env(flag.variable) };
    let argument = match flag.help {
        Some((value, help)) => argument.value_name(value).help(help),
        None => argument.hide(true),
    };
    let argument = match flag.name {
        // gitlab-runner spells these two with underscores.
        "cache-max-uploaded-archive-size" => argument.alias("cache-max_uploaded_archive_size"),
        "cache-s3-authentication-type" => argument.alias("cache-s3-authentication_type"),
        _ => argument,
    };
    match kind {
        ValueType::Bool => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(ValueParser::new(boolean)),
        ValueType::Number => argument.value_parser(value_parser!(i64)).allow_negative_numbers(true),
        ValueType::Map | ValueType::Table => argument.value_parser(ValueParser::new(table)),
        ValueType::List => argument.action(ArgAction::Append),
        ValueType::Text | ValueType::Duration | ValueType::Time => argument,
    }
}

fn given_value(matches: &ArgMatches, kind: ValueType, flag: &str) -> Option<Value> {
    match kind {
        ValueType::Text | ValueType::Duration | ValueType::Time => {
            matches.get_one::<String>(flag).filter(|text| !text.is_empty()).map(Value::from)
        }
        ValueType::Number => matches.get_one::<i64>(flag).map(|number| Value::from(*number)),
        ValueType::Bool => matches.get_one::<bool>(flag).map(|on| Value::from(*on)),
        ValueType::List => matches.get_many::<String>(flag).map(|items| Value::from(items.collect::<Array>())),
        ValueType::Map | ValueType::Table => {
            matches.get_one::<InlineTable>(flag).map(|table| Value::from(table.clone()))
        }
    }
}

/// Parses a table: a JSON object (`{"FF_A": true}`), or pairs of a name and a boolean (`FF_A:true,FF_B:false`).
fn table(text: &str) -> Result<InlineTable, String> {
    let wrong = |_| "write FF_NAME:true, or a JSON object".to_owned();
    if text.trim_start().starts_with('{') {
        let entries: BTreeMap<String, serde_json::Value> =
            decode::json(text.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        return entries
            .into_iter()
            .map(|(name, value)| Ok((name, toml_value(&value).ok_or_else(|| wrong(String::new()))?)))
            .collect();
    }
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, on) = pair.split_once([':', '=']).ok_or_else(|| wrong(String::new()))?;
        Ok((name.trim().to_owned(), Value::from(boolean(on).map_err(wrong)?)))
    };
    pairs.map(pair).collect()
}

/// The value as in the configuration file: a boolean, a text, or a list of texts.
fn toml_value(value: &serde_json::Value) -> Option<Value> {
    match value {
        serde_json::Value::Bool(on) => Some(Value::from(*on)),
        serde_json::Value::String(text) => Some(Value::from(text.as_str())),
        serde_json::Value::Array(items) => {
            let texts = items.iter().map(serde_json::Value::as_str).collect::<Option<Vec<&str>>>()?;
            Some(Value::from(texts.into_iter().collect::<Array>()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(arguments: &[&str]) -> Result<String, clap::Error> {
        let command = OtherKeys::augment_args(Command::new("register").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments)?;
        let mut table = Table::new();
        OtherKeys::from_arg_matches(&matches)?.write(&mut table);
        Ok(toml_edit::DocumentMut::from(table).to_string())
    }

    #[test]
    fn writes_each_type_of_flag_to_its_table() {
        let text = register(&[
            "--docker-volumes=/cache",
            "--docker-volumes",
            "/certs",
            "--docker-privileged",
            "--docker-services-limit=-1",
            "--cache-type=s3",
            "--cache-s3-bucket-name",
            "b",
            "--cache-shared=false",
            "--cache-s3-authentication_type=iam",
            "--unhealthy-requests-limit=5",
            "--feature-flags",
            "FF_A:true,FF_B=0",
            r#"--docker-services-devices={"test/*": ["/dev/kvm"]}"#,
        ]);
        let table: toml::Table = text.expect("must parse").parse().expect("must be TOML");
        assert_eq!(table["docker"]["volumes"].as_array().map(Vec::len), Some(2));
        assert_eq!(table["docker"]["privileged"].as_bool(), Some(true));
        assert_eq!(table["docker"]["services_limit"].as_integer(), Some(-1));
        assert_eq!(table["cache"]["Type"].as_str(), Some("s3"));
        assert_eq!(table["cache"]["s3"]["BucketName"].as_str(), Some("b"));
        assert_eq!(table["cache"]["Shared"].as_bool(), Some(false));
        assert_eq!(table["docker"]["services_devices"]["test/*"][0].as_str(), Some("/dev/kvm"));
        assert_eq!(table["unhealthy_requests_limit"].as_integer(), Some(5));
        assert_eq!(table["feature_flags"]["FF_A"].as_bool(), Some(true));
        assert_eq!(table["feature_flags"]["FF_B"].as_bool(), Some(false));
        assert_eq!(register(&[]).expect("must parse"), "");
    }

    #[test]
    fn refuses_a_value_of_another_type() {
        for flag in
            ["--docker-shm-size=big", "--docker-privileged=maybe", "--feature-flags=FF_A", "--docker-colour=red"]
        {
            assert!(register(&[flag]).is_err(), "{flag}");
        }
    }
}
