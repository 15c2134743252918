//! `exec.toml`: sets options of `mayfly exec` by their long names, in the user's configuration directory or in the
//! project. The command line overrides these files; values of repeatable options are added.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::options::Options;
use crate::executor::user;

/// A parser for the options alone, to parse arguments that come from files.
#[derive(Parser)]
#[command(name = "mayfly exec", disable_help_flag = true)]
struct Whole {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    logging: crate::cli::logging::Options,
}

/// The settings files of the user and of the project.
fn files(root: &Path) -> [PathBuf; 2] {
    let home = || user::current().home.join(".config");
    let given = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    [given.unwrap_or_else(home).join("mayfly/exec.toml"), root.join(".mayfly/exec.toml")]
}

/// Merges the options with the settings files. The error names the file.
pub fn complete(options: &Options, root: &Path) -> Result<Options, String> {
    let mut arguments = vec![OsString::from("mayfly exec")];
    let mut used = Vec::new();
    for file in files(root) {
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        let own = of_file(&text).map_err(|why| format!("{}: {why}", file.display()))?;
        let check = [OsString::from("mayfly exec")].into_iter().chain(own.iter().map(OsString::from));
        Whole::try_parse_from(check).map_err(|error| {
            let text = error.to_string();
            let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            format!("{}: {why}; use the long names of the options of `mayfly exec`", file.display())
        })?;
        if own.iter().any(|argument| argument == "--shell") {
            eprintln!(
                "mayfly: warning: {}: `shell` is set: jobs with `image:` run in the shell instead of in a container",
                file.display()
            );
        }
        arguments.extend(own.into_iter().map(OsString::from));
        used.push(file);
    }
    if used.is_empty() {
        return Ok(options.clone());
    }
    arguments.extend(std::env::args_os().skip_while(|argument| argument != "exec").skip(1));
    Whole::try_parse_from(arguments).map(|whole| whole.options).map_err(|error| {
        let names: Vec<String> = used.iter().map(|file| file.display().to_string()).collect();
        format!("{} (with {})", error.to_string().trim_end(), names.join(", "))
    })
}

/// Converts a settings file to arguments: `true` sets a switch, a list repeats an option, a table gives KEY=VALUE
/// pairs.
fn of_file(text: &str) -> Result<Vec<String>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let mut arguments = Vec::new();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        if name == "jobs" {
            return Err("`jobs`: name jobs on the command line".to_owned());
        }
        let option = format!("--{name}");
        add(&option, value, &mut arguments).map_err(|why| format!("`{key}`: {why}"))?;
    }
    Ok(arguments)
}

fn add(option: &str, value: &toml::Value, arguments: &mut Vec<String>) -> Result<(), String> {
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(value) => Ok(value.to_string()),
        _ => Err("expected a string or a number".to_owned()),
    };
    match value {
        toml::Value::Boolean(true) => arguments.push(option.to_owned()),
        toml::Value::Boolean(false) => {}
        toml::Value::Array(items) => {
            for item in items {
                arguments.push(format!("{option}={}", scalar(item)?));
            }
        }
        toml::Value::Table(entries) => {
            for (key, value) in entries {
                arguments.push(format!("{option}={key}={}", scalar(value)?));
            }
        }
        other => arguments.push(format!("{option}={}", scalar(other)?)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_a_file_to_arguments() {
        let text = "parallel = 4\nshell = true\nkeep = false\nmap_project = [\"a/b=/x\"]\n[var]\nA = 1\nB = \"x y\"\n";
        let mut arguments = of_file(text).expect("the arguments must be valid");
        arguments.sort();
        assert_eq!(arguments, ["--map-project=a/b=/x", "--parallel=4", "--shell", "--var=A=1", "--var=B=x y"]);
        assert!(of_file("x = [[1]]").is_err() && of_file("= 1").is_err() && of_file("jobs = [\"a\"]").is_err());
    }
}
