//! The files of `--vars-file`: variables in the dotenv format or in YAML.

use std::path::Path;

use serde_json::Value;

use crate::pipeline::request::GivenVariable;
use crate::pipeline::syntax;

/// Reads the variables of a file, in the format that its extension names. The error does not name the file.
pub fn read(file: &Path) -> Result<Vec<GivenVariable>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let is_yaml = file.extension().is_some_and(|ending| ["yml", "yaml", "json"].iter().any(|known| ending == *known));
    match is_yaml {
        true => parse_yaml(text),
        false => parse_dotenv(text),
    }
}

/// Parses a mapping of names to values, or to mappings with `value` and attributes.
fn parse_yaml(text: &str) -> Result<Vec<GivenVariable>, String> {
    let document = syntax::parse(text, 0, &|line| line, &mut syntax::Budget::default());
    let root = document.map_err(|error| format!("line {}: {}", error.line, error.message))?.root.to_json();
    let entries = root.as_object().ok_or("not a mapping of variables")?;
    let variable = |(key, value): (&String, &Value)| {
        let mut variable = GivenVariable { key: key.clone(), ..GivenVariable::default() };
        let set = match value.as_object() {
            None => scalar(value).map(|value| variable.value = value),
            Some(attributes) => {
                attributes.iter().try_for_each(|(name, value)| set_attribute(&mut variable, name, value))
            }
        };
        set.map(|()| variable).map_err(|why| format!("`{key}`: {why}"))
    };
    entries.iter().map(variable).collect()
}

/// Sets an attribute of a variable.
fn set_attribute(variable: &mut GivenVariable, name: &str, value: &Value) -> Result<(), String> {
    let boolean = || value.as_bool().ok_or_else(|| format!("`{name}` must be true or false"));
    match name {
        "value" => variable.value = scalar(value)?,
        "type" => {
            variable.file = match value.as_str() {
                Some("file") => true,
                Some("variable" | "env_var") => false,
                _ => return Err("`type` must be `file` or `variable`".to_owned()),
            }
        }
        "masked" => variable.masked = boolean()?,
        "raw" => variable.raw = boolean()?,
        "environment_scope" => variable.environment_scope = scalar(value)?,
        other => {
            return Err(format!("unknown key `{other}`; the keys are value, type, masked, raw, environment_scope"));
        }
    }
    Ok(())
}

/// The text of a value that is not a list or a mapping.
fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => Err("write text, or a mapping with `value`".to_owned()),
    }
}

/// Parses `KEY=VALUE` lines and comments; quotes around a value are removed. A later line overrides an earlier one of
/// the same name.
fn parse_dotenv(text: &str) -> Result<Vec<GivenVariable>, String> {
    let mut variables: Vec<GivenVariable> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line
            .strip_prefix("export ")
            .unwrap_or(line)
            .split_once('=')
            .ok_or_else(|| format!("line {}: write KEY=VALUE", number + 1))?;
        let value = value.trim();
        let unquoted = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        let value = unquoted('"').or_else(|| unquoted('\'')).unwrap_or(value).to_owned();
        variables.retain(|known| known.key != key.trim());
        variables.push(GivenVariable { key: key.trim().to_owned(), value, ..GivenVariable::default() });
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_dotenv_files_with_comments_and_quotes() {
        let variables = parse_dotenv("# x\nA='one two'\nexport B=2\nA=3\n\n").expect("the variables must be valid");
        let pairs: Vec<_> = variables.iter().map(|one| (one.key.as_str(), one.value.as_str())).collect();
        assert_eq!(pairs, [("B", "2"), ("A", "3")]);
        assert!(parse_dotenv("junk").expect_err("must be refused").contains("line 1"));
    }

    #[test]
    fn parses_yaml_files_with_types_and_scopes() {
        let text = "A: 1\nB: {value: x, type: file, masked: true, environment_scope: 'review/*'}\n";
        let variables = parse_yaml(text).expect("the variables must be valid");
        assert_eq!(variables[0].value, "1");
        assert!(variables[1].file && variables[1].masked && variables[1].environment_scope == "review/*");
        assert!(parse_yaml("A: {valeu: x}").is_err() && parse_yaml("- a").is_err());
    }
}
