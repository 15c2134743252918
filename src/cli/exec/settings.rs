//! `exec.toml`: sets options of `mayfly exec` by their long names, in the user's configuration directory or in the
//! project. The command line overrides these files; values of repeatable options are added.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{ArgAction, CommandFactory, Parser};

use super::args::ExecArgs;
use super::{terminal, values};
use crate::config::show_error_without_line;
use crate::executor::user;
use crate::pipeline::suggest::did_you_mean;

/// A parser for the options alone, for arguments that come from files.
#[derive(Parser)]
#[command(name = "mayfly exec", disable_help_flag = true)]
struct OptionsParser {
    #[command(flatten)]
    options: ExecArgs,
    #[command(flatten)]
    logging: crate::cli::logging::LoggingArgs,
}

/// The settings files of the user and of the project.
pub fn files(root: &Path) -> [PathBuf; 2] {
    let home = || user::current().home.join(".config");
    let given = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    [given.unwrap_or_else(home).join("mayfly/exec.toml"), root.join(".mayfly/exec.toml")]
}

/// Groups of options that exclude each other. If a stronger source sets one of them, the whole group in weaker sources
/// is ignored.
const EXCLUSIVE: [&[&str]; 2] = [&["--branch", "--tag", "--mr"], &["--shell", "--docker"]];

/// The options of the command line and of the settings files.
pub struct MergedOptions {
    pub options: ExecArgs,
    /// About the settings files.
    warnings: Vec<String>,
}

impl MergedOptions {
    pub fn print_warnings(&self) {
        self.warnings.iter().for_each(|warning| terminal::print_error(&format!("mayfly: warning: {warning}\n")));
    }
}

/// Merges the options of the command line with the settings files. The error names the file.
pub fn merge(options: &ExecArgs, root: &Path) -> Result<MergedOptions, String> {
    // The strongest source is the last.
    let mut sources: Vec<Vec<OsString>> =
        vec![std::env::args_os().skip_while(|argument| argument != "exec").skip(1).collect()];
    let mut used = Vec::new();
    let mut warnings = Vec::new();
    for file in files(root).into_iter().rev() {
        let Some(arguments) = read(&file, root).map_err(|why| format!("{}: {why}", file.display()))? else { continue };
        let arguments: Vec<OsString> = arguments.into_iter().filter(|one| !is_overridden(one, &sources)).collect();
        if arguments.iter().any(|argument| argument == "--shell") {
            let file = file.display();
            warnings
                .push(format!("{file}: `shell` is set: jobs with `image:` run in the shell instead of in a container"));
        }
        sources.insert(0, arguments);
        used.push(file.display().to_string());
    }
    if used.is_empty() {
        return Ok(MergedOptions { options: options.clone(), warnings });
    }
    let parsed = parse(sources.into_iter().flatten());
    let options = parsed.map_err(|error| format!("{} (with {})", error.to_string().trim_end(), used.join(", ")))?;
    Ok(MergedOptions { options, warnings })
}

/// The arguments in a settings file; `None` if there is no file. Fails if they are not valid on their own.
fn read(file: &Path, root: &Path) -> Result<Option<Vec<OsString>>, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let arguments: Vec<OsString> = arguments_of(&text, root)?.into_iter().map(OsString::from).collect();
    let options = parse(arguments.iter().cloned()).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })?;
    values::check(&options)?;
    Ok(Some(arguments))
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<ExecArgs, clap::Error> {
    let arguments = [OsString::from("mayfly exec")].into_iter().chain(arguments);
    OptionsParser::try_parse_from(arguments).map(|parsed| parsed.options)
}

/// Whether a stronger source has an option of the same exclusive group.
fn is_overridden(argument: &OsString, stronger: &[Vec<OsString>]) -> bool {
    let group = EXCLUSIVE.iter().find(|group| group.iter().any(|option| is_option(argument, option)));
    group.is_some_and(|group| {
        let arguments = stronger.iter().flatten().take_while(|argument| *argument != "--");
        arguments.into_iter().any(|given| group.iter().any(|option| is_option(given, option)))
    })
}

/// Whether an argument is `--option` or `--option=value`.
fn is_option(argument: &OsString, option: &str) -> bool {
    let text = argument.to_string_lossy();
    text.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// Options whose value is a path, and options whose value contains one after the first or the last `=`.
const PATHS: [&str; 5] = ["vars-file", "map-template", "artifacts", "report", "junit"];
const PATHS_AFTER_FIRST: [&str; 2] = ["map-project", "map-component"];
const PATHS_AFTER_LAST: [&str; 1] = ["map-remote"];

/// Converts a settings file to arguments: `true` sets a switch, a list repeats an option, a table gives KEY=VALUE
/// pairs. Relative paths start at `root`, the top of the checkout.
fn arguments_of(text: &str, root: &Path) -> Result<Vec<String>, String> {
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| show_error_without_line(text, error.span(), error.message()))?;
    let command = OptionsParser::command();
    let is_named = |argument: &clap::Arg, name: &str| {
        argument.get_long() == Some(name) || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    };
    let known = |name: &str| command.get_arguments().find(|argument| is_named(argument, name));
    let mut arguments = Vec::new();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        if name == "jobs" {
            return Err("`jobs`: name jobs on the command line".to_owned());
        }
        let Some(option) = known(&name).filter(|option| !option.is_hide_set()) else {
            let names: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
            return Err(format!(
                "unknown option `{key}`{}; the options are the long names of the options of `mayfly exec`",
                did_you_mean(&name, &names)
            ));
        };
        let is_repeatable = matches!(option.get_action(), ArgAction::Append);
        if !is_repeatable && matches!(value, toml::Value::Array(_) | toml::Value::Table(_)) {
            return Err(format!("`{key}`: the option takes one value"));
        }
        add_arguments(&name, value, root, &mut arguments).map_err(|why| format!("`{key}`: {why}"))?;
    }
    Ok(arguments)
}

/// The value of an option in which a relative path starts at `root`.
fn with_root(name: &str, value: String, root: &Path) -> String {
    let joined = |path: &str| root.join(path).display().to_string();
    let pair = match name {
        _ if PATHS.contains(&name) => return joined(&value),
        _ if PATHS_AFTER_FIRST.contains(&name) => value.split_once('='),
        _ if PATHS_AFTER_LAST.contains(&name) => value.rsplit_once('='),
        _ => None,
    };
    match pair {
        Some((key, path)) => format!("{key}={}", joined(path)),
        None => value,
    }
}

fn add_arguments(name: &str, value: &toml::Value, root: &Path, arguments: &mut Vec<String>) -> Result<(), String> {
    let option = format!("--{name}");
    let given = |value: String| format!("{option}={}", with_root(name, value, root));
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(value) => Ok(value.to_string()),
        _ => Err("expected a string or a number".to_owned()),
    };
    match value {
        toml::Value::Boolean(true) => arguments.push(option),
        toml::Value::Boolean(false) => {}
        toml::Value::Array(items) => {
            for item in items {
                arguments.push(given(scalar(item)?));
            }
        }
        toml::Value::Table(entries) => {
            for (key, value) in entries {
                arguments.push(given(format!("{key}={}", scalar(value)?)));
            }
        }
        other => arguments.push(given(scalar(other)?)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stronger_source_overrides_all_options_of_a_group() {
        let stronger = [vec![OsString::from("--tag=v1"), "--".into(), "--docker".into()]];
        let overridden = |argument: &str| is_overridden(&argument.into(), &stronger);
        assert!(overridden("--branch=x") && overridden("--mr=a:b") && overridden("--tag=v0"));
        assert!(!overridden("--shell") && !overridden("--var=A=1") && !overridden("--branches=x"));
    }

    #[test]
    fn converts_a_file_to_arguments() {
        let text = "parallel = 4\nshell = true\nkeep = false\nmap_project = [\"a/b=/x\"]\n[var]\nA = 1\nB = \"x y\"\n";
        let arguments_of = |text: &str| arguments_of(text, Path::new("/project"));
        let mut arguments = arguments_of(text).expect("the arguments must be valid");
        arguments.sort_unstable();
        assert_eq!(arguments, ["--map-project=a/b=/x", "--parallel=4", "--shell", "--var=A=1", "--var=B=x y"]);
        for (text, why) in [
            ("var = [[1]]", "string or a number"),
            ("\n= 1", "line 2: "),
            ("jobs = [\"a\"]", "command line"),
            ("paralel = 1", "did you mean `parallel`?"),
            ("parallel = [1, 2]", "one value"),
            ("complete_jobs = true", "unknown option"),
        ] {
            let error = arguments_of(text).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn an_error_does_not_show_the_line() {
        for line in [
            "\"glpat-secret\"",
            "glpat-secret",
            "A = glpat-secret",
            "A = \"glpat-secret",
            "A = 1\nA = \"glpat-secret\"",
        ] {
            let error = arguments_of(&format!("[var]\n{line}\n"), Path::new("/project")).expect_err(line);
            assert!(error.starts_with("line ") && !error.contains("glpat-secret"), "{error}");
        }
    }

    #[test]
    fn paths_in_a_file_start_at_the_top_of_the_checkout() {
        let text = "report = \"r.json\"\nvars_file = [\"a.yml\", \"/b.yml\"]\nmap_project = [\"g/p@v1=../p\"]\n\
            map_component = [\"g/c=c,version=1\"]\nfile = \"ci.yml\"\n[map-remote]\n\"https://x/?a=b\" = \"x.yml\"\n";
        let mut arguments = arguments_of(text, Path::new("/project")).expect("the arguments must be valid");
        arguments.sort_unstable();
        let expected = [
            "--file=ci.yml",
            "--map-component=g/c=/project/c,version=1",
            "--map-project=g/p@v1=/project/../p",
            "--map-remote=https://x/?a=b=/project/x.yml",
            "--report=/project/r.json",
            "--vars-file=/b.yml",
            "--vars-file=/project/a.yml",
        ];
        assert_eq!(arguments, expected);
    }
}
