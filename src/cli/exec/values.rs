//! Parses variables, inputs and maps from the command line.

use std::path::PathBuf;

use super::args::ExecArgs;
use super::vars_file;
use crate::local::facts::RequestedPipeline;
use crate::local::sources::{MappedComponent, MappedProject, Maps};
use crate::pipeline::request::{GivenInput, GivenVariable, InputValue};

/// Splits `KEY=VALUE` at the first `=`; `None` if there is no key.
fn split_key(text: &str) -> Option<(&str, &str)> {
    text.split_once('=').filter(|(key, _)| !key.is_empty())
}

/// Splits the pair of an option. `form` is the expected form, for the error.
fn split_pair<'a>(option: &str, text: &'a str, form: &str) -> Result<(&'a str, &'a str), String> {
    split_key(text).ok_or_else(|| format!("{option} {text}: write {form}"))
}

/// Splits `KEY=VALUE` of a variable or an input. The error shows only the name at the start of `text`: the rest may be a
/// secret.
fn split_value<'a>(option: &str, text: &'a str) -> Result<(&'a str, &'a str), String> {
    split_key(text).ok_or_else(|| {
        let is_part_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let name = text.split(|c| !is_part_of_name(c)).next().unwrap_or_default();
        let ellipsis = if name.len() == text.len() { "" } else { "…" };
        format!("{option} {name}{ellipsis}: write KEY=VALUE")
    })
}

/// Checks the form of all values, without reading files and the environment.
pub fn check(options: &ExecArgs) -> Result<(), String> {
    pipeline_variables(options)?;
    options.secret.iter().try_for_each(|key| check_key("--secret", key))?;
    inputs(options)?;
    requested_pipeline(options)?;
    maps(options).map(drop)
}

/// Checks the name of a variable, as GitLab does. The error does not contain the value, which may be a secret.
fn check_key(option: &str, key: &str) -> Result<(), String> {
    match !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        true => Ok(()),
        false => {
            Err(format!("{option}: `{key}` is not the name of a variable; names consist of letters, digits and `_`"))
        }
    }
}

/// Parses `--var`.
pub fn pipeline_variables(options: &ExecArgs) -> Result<Vec<GivenVariable>, String> {
    let variable = |text: &String| {
        let (key, value) = split_value("--var", text)?;
        check_key("--var", key)?;
        Ok(GivenVariable { key: key.to_owned(), value: value.to_owned(), ..GivenVariable::default() })
    };
    options.var.iter().map(variable).collect()
}

/// Parses `--vars-file` and `--secret`. A later file overrides earlier ones; secrets override all files.
pub fn project_variables(options: &ExecArgs) -> Result<Vec<GivenVariable>, String> {
    let mut variables = Vec::new();
    for key in &options.secret {
        check_key("--secret", key)?;
        let value = std::env::var(key).map_err(|_| format!("--secret {key}: the environment has no variable {key}"))?;
        variables.push(GivenVariable { key: key.clone(), value, masked: true, raw: true, ..GivenVariable::default() });
    }
    for file in options.vars_file.iter().rev() {
        let why = |why: String| format!("--vars-file {}: {why}", file.display());
        let found = vars_file::read(file).map_err(why)?;
        let option = format!("--vars-file {}", file.display());
        found.iter().try_for_each(|variable| check_key(&option, &variable.key))?;
        variables.extend(found);
    }
    Ok(variables)
}

/// Parses `--input`.
pub fn inputs(options: &ExecArgs) -> Result<Vec<GivenInput>, String> {
    let input = |text: &String| {
        let (key, value) = split_value("--input", text)?;
        Ok(GivenInput { key: key.to_owned(), value: InputValue::Text(value.to_owned()) })
    };
    options.input.iter().map(input).collect()
}

/// Parses `--branch`, `--tag`, `--mr` and `--before`.
pub fn requested_pipeline(options: &ExecArgs) -> Result<RequestedPipeline, String> {
    let merge_request = options.mr.as_deref().map(|text| {
        let wrong = || format!("--mr {text}: write SOURCE:TARGET or SOURCE:TARGET:IID");
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            [source, target] if !source.is_empty() && !target.is_empty() => {
                Ok((source.to_owned(), target.to_owned(), 1))
            }
            [source, target, iid] if !source.is_empty() && !target.is_empty() => {
                Ok((source.to_owned(), target.to_owned(), iid.parse().map_err(|_| wrong())?))
            }
            _ => Err(wrong()),
        }
    });
    Ok(RequestedPipeline {
        branch: options.branch.clone(),
        tag: options.tag.clone(),
        merge_request: merge_request.transpose()?,
        before: options.before.clone(),
    })
}

/// Parses `--map-project`, `--map-remote`, `--map-component` and `--map-template`.
pub fn maps(options: &ExecArgs) -> Result<Maps, String> {
    let mut maps = Maps { templates: options.map_template.clone(), ..Maps::default() };
    for text in &options.map_project {
        let (project, directory) = split_pair("--map-project", text, "PATH[@REF]=DIR")?;
        let (project, reference) = match project.split_once('@') {
            Some((project, reference)) => (project, Some(reference.to_owned())),
            None => (project, None),
        };
        maps.projects.push(MappedProject { project: project.to_owned(), reference, directory: directory.into() });
    }
    for text in &options.map_remote {
        // Splits at the last `=`: a URL often contains `=`, a path rarely.
        let form = || format!("--map-remote {text}: write URL=FILE");
        let (url, file) = text.rsplit_once('=').filter(|(url, _)| !url.is_empty()).ok_or_else(form)?;
        maps.remotes.insert(url.to_owned(), PathBuf::from(file));
    }
    for text in &options.map_component {
        maps.components.push(parse_component(text)?);
    }
    Ok(maps)
}

/// Parses a value of `--map-component`.
fn parse_component(text: &str) -> Result<MappedComponent, String> {
    let form = "PROJECT=DIR[,version=V][,sha=S][,ref=R]…";
    let (project, rest) = split_pair("--map-component", text, form)?;
    let mut parts = rest.split(',');
    let mut mapped = MappedComponent {
        project: project.to_owned(),
        directory: parts.next().unwrap_or_default().into(),
        version: None,
        sha: None,
        references: Vec::new(),
    };
    for part in parts {
        match part.split_once('=') {
            Some(("version", version)) => mapped.version = Some(version.to_owned()),
            Some(("sha", sha)) => mapped.sha = Some(sha.to_owned()),
            Some(("ref", reference)) => mapped.references.push(reference.to_owned()),
            _ => {
                return Err(format!("--map-component {text}: unknown part `{part}`; write {form}"));
            }
        }
    }
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_error_of_a_pair_shows_only_the_name() {
        assert_eq!(split_value("--var", "A=b=c").expect("a pair"), ("A", "b=c"));
        let error = |text| split_value("--var", text).expect_err("must be refused");
        assert_eq!(error("TOKEN: s3cret"), "--var TOKEN…: write KEY=VALUE");
        assert_eq!(error("TOKEN"), "--var TOKEN: write KEY=VALUE");
        assert_eq!(error("=s3cret"), "--var …: write KEY=VALUE");
    }

    #[test]
    fn parses_component_maps() {
        let mapped = parse_component("g/c=/dir,version=1.2.3,sha=abc,ref=1,ref=~latest").expect("a map");
        assert_eq!(mapped.references, ["1", "~latest"]);
        assert_eq!((mapped.version.as_deref(), mapped.directory.as_path()), (Some("1.2.3"), Path::new("/dir")));
        assert!(parse_component("g/c=/dir,nonsense").is_err());
    }

    #[test]
    fn names_of_variables_are_checked() {
        assert!(["A", "_b1", "1"].iter().all(|key| check_key("--var", key).is_ok()));
        assert!(["A-B", "a b", "", "\u{e9}"].iter().all(|key| check_key("--var", key).is_err()));
    }
}
