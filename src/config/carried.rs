//! Configuration that outlives `config.toml`: the settings that a job and the agent need when the file is missing or
//! invalid.
//!
//! The journal contains the table of each job's runner, as a `config.toml` with only that runner. The agent keeps its
//! own settings, everything except `[[runners]]`, in the state directory. Neither contains a runner's token.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::keys::TOKEN_KEYS;
use super::{Config, Runner, state_dir};
use crate::sys;

/// The file with the agent's own settings in the state directory.
const SETTINGS: &str = "settings.toml";

/// Splits a file, without tokens, into the agent's own settings and the tables of `[[runners]]`.
pub(super) fn split(text: &str) -> (Table, Vec<Table>) {
    let Ok(mut settings) = text.parse::<Table>() else { return Default::default() };
    let runners = match settings.remove("runners") {
        Some(Value::Array(runners)) => runners,
        _ => Vec::new(),
    };
    let table = |runner: Value| match runner {
        Value::Table(mut table) => {
            TOKEN_KEYS.iter().for_each(|key| drop(table.remove(*key)));
            table
        }
        _ => Table::new(),
    };
    (settings, runners.into_iter().map(table).collect())
}

/// The configuration for the journal of a job: it runs as `user`, with these directories, in one of `concurrent` slots.
pub fn write_job_settings(
    runner: &Runner,
    user: Option<&str>,
    concurrent: u32,
    [builds, caches]: [&Path; 2],
) -> String {
    let mut table = runner.written.clone();
    let text = |text: &str| Value::String(text.to_owned());
    // The values are stored expanded, because a later agent may have other environment variables.
    table.insert("url".to_owned(), text(&runner.url));
    table.insert("token".to_owned(), text(&runner.token.short()));
    // A relative directory is relative to the working directory of the agent that accepted the job.
    let directories = [("builds_dir", builds), ("cache_dir", caches)];
    let directories = directories.map(|(key, path)| (key.to_owned(), Value::String(path.display().to_string())));
    if runner.executor.has_containers() {
        let own_keys = table.entry("mayfly").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(own_keys) = own_keys {
            own_keys.extend(directories);
        }
    } else {
        table.extend(directories);
    }
    let mut file = Table::new();
    file.insert("concurrent".to_owned(), Value::Integer(concurrent.into()));
    if let Some(user) = user {
        file.insert("user".to_owned(), text(user));
    }
    file.insert("runners".to_owned(), Value::Array(vec![Value::Table(table)]));
    file.to_string()
}

/// The runner from the journal of a job; `None` if the journal has none, or this version cannot read it. `path` is the
/// configuration file; certificate files may be beside it.
pub fn read_job_settings(path: &Path, text: &str) -> Option<(Config, Runner)> {
    let config = Config::parse(path, text).ok()?;
    let runner = config.runners.first()?.clone();
    Some((config, runner))
}

/// Stores the agent's own settings for a start without a usable file. Fails if the state directory cannot be written.
pub fn keep_settings(config: &Config) -> std::io::Result<()> {
    let path = state_dir(config).join(SETTINGS);
    let text = config.settings.to_string();
    if fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    sys::replace_file(&path, text.as_bytes())
}

/// The agent's own settings if the file at `path` is unusable: the last settings in use, without runners, or else the
/// defaults. Fails if neither can be read.
pub fn last_settings(path: &Path) -> Result<Config, super::ConfigError> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut defaults = Config::parse(path, "")?;
    defaults.mayfly.state_dir = salvaged_state_dir(&text).or_else(|| remembered_state_dir(path));
    let kept = fs::read_to_string(state_dir(&defaults).join(SETTINGS)).unwrap_or_default();
    let Ok(mut settings) = Config::parse(path, &kept) else { return Ok(defaults) };
    settings.mayfly.state_dir = defaults.mayfly.state_dir;
    Ok(settings)
}

/// The symbolic link beside a configuration file that names the state directory in use. Agents whose files are in one
/// directory have a record each.
fn state_dir_record(config: &Path) -> PathBuf {
    let name = config.file_name().unwrap_or_default().to_string_lossy();
    config.with_file_name(format!(".{name}.state_dir"))
}

/// Records beside the configuration file which state directory is in use, so that an agent finds the jobs there even if
/// the file is deleted, emptied or unreadable. For the default directory, removes an older record instead.
pub fn remember_state_dir(config: &Path, state: &Path) -> std::io::Result<()> {
    let record = state_dir_record(config);
    let state = std::path::absolute(state)?;
    let is_default = Config::parse(config, "").is_ok_and(|defaults| state_dir(&defaults) == state);
    match fs::read_link(&record) {
        Ok(before) if before == state => Ok(()),
        Err(_) if is_default => Ok(()),
        _ => {
            match fs::remove_file(&record) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            if is_default { Ok(()) } else { std::os::unix::fs::symlink(state, record) }
        }
    }
}

/// The state directory that the last agent with this configuration file used, if it was recorded.
pub fn remembered_state_dir(config: &Path) -> Option<PathBuf> {
    let record = state_dir_record(config);
    let owner = fs::symlink_metadata(&record).ok()?.uid();
    // A record of another user could name a directory with forged jobs.
    let is_own = owner == 0 || owner == Uid::effective().as_raw();
    is_own.then(|| fs::read_link(record).ok()).flatten()
}

/// `state_dir` from a text that is not valid TOML: from the readable part of its table, or from its line.
fn salvaged_state_dir(text: &str) -> Option<PathBuf> {
    let in_lines = || {
        let mut own = text.lines().skip_while(|line| line.trim() != "[mayfly]").skip(1);
        let mut own = own.by_ref().take_while(|line| !line.trim_start().starts_with('['));
        own.find_map(|line| line.parse::<Table>().ok()?.get("state_dir")?.as_str().map(str::to_owned))
    };
    let in_table = || {
        let (table, _) = DeTable::parse_recoverable(text);
        let DeValue::Table(own) = table.get_ref().get("mayfly")?.get_ref() else { return None };
        let DeValue::String(directory) = own.get("state_dir")?.get_ref() else { return None };
        Some(directory.to_string())
    };
    in_table().or_else(in_lines).filter(|directory| !directory.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExecutorKind;

    const TEXT: &str = "concurrent = 3\nuser = \"ci\"\n[mayfly]\nmax_builds = 5\n\
        [[runners]]\nname = \"first\"\nurl = \"https://h\"\ntoken = \"glrt-first-token\"\nexecutor = \"shell\"\n\
        environment = [\"A=1\"]\n[runners.machine]\nMaxBuilds = 7\n\
        [[runners]]\nname = \"second\"\nurl = \"https://h\"\ntoken = \"glrt-second-token\"\nexecutor = \"docker\"\n\
        token_expires_at = 2030-01-01T00:00:00Z\n[runners.docker]\nimage = \"i\"\nmemory = \"1g\"\n\
        [runners.mayfly]\nconfined_uid = 777\n";

    fn config() -> Config {
        Config::parse(Path::new("/etc/x/config.toml"), TEXT).expect("a configuration")
    }

    #[test]
    fn a_job_carries_its_runner_without_the_token() {
        let config = config();
        for (index, name) in ["first", "second"].into_iter().enumerate() {
            let runner = &config.runners[index];
            let text = write_job_settings(runner, Some("ci"), 3, [Path::new("/w/builds"), Path::new("/w/cache")]);
            assert!(!text.contains(runner.token.reveal()), "{text}");
            let (carried, same) =
                read_job_settings(&config.path, &text).expect("the settings of the job must be readable");
            assert_eq!((same.name.as_str(), &same.url, same.token.short()), (name, &runner.url, runner.token.short()));
            assert_eq!((carried.concurrent, carried.user.as_deref()), (3, Some("ci")));
            assert_eq!((same.environment.clone(), same.confined), (runner.environment.clone(), runner.confined));
            assert_eq!((&same.docker_text, same.token_life), (&runner.docker_text, None));
            let directories = match same.executor {
                ExecutorKind::Docker => [same.container_builds_dir, same.container_cache_dir],
                _ => [same.builds_dir, same.cache_dir],
            };
            assert_eq!(directories, [Some("/w/builds".into()), Some("/w/cache".into())]);
        }
        assert!(read_job_settings(&config.path, "").is_none());
    }

    #[test]
    fn the_agents_own_settings_outlive_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, state) = (directory.path().join("config.toml"), directory.path().join("state"));
        fs::create_dir(&state).expect("create the directory");
        let own = format!("[mayfly]\nstate_dir = {:?}\n", state.display().to_string());
        let text = TEXT.replace("[mayfly]\n", &own);
        keep_settings(&Config::parse(&path, &text).expect("a configuration")).expect("keep the settings");
        assert!(!fs::read_to_string(state.join(SETTINGS)).expect("read the file").contains("token"));
        for broken in [
            text.replace("concurrent = 3", "concurrent = \"many\""),
            text.replace("concurrent = 3", "concurrent = = 3"),
            format!("{text}\n[runners.docker\nx"),
            format!("[[runners]\n{text}"),
        ] {
            assert!(Config::parse(&path, &broken).is_err(), "{broken}");
            fs::write(&path, &broken).expect("write the file");
            let settings = last_settings(&path).expect("settings must be kept");
            assert_eq!(settings.mayfly.state_dir.as_ref(), Some(&state), "{broken}");
            assert_eq!((settings.lifetime.max_builds, settings.runners.len()), (Some(5), 0), "{broken}");
        }
        fs::remove_file(&path).expect("remove the file");
        assert_eq!(last_settings(&path).expect("settings must be kept").lifetime.max_builds, None);
        remember_state_dir(&path, &state).expect("record the directory");
        assert_eq!(last_settings(&path).expect("settings must be found").lifetime.max_builds, Some(5));
        assert_eq!(remembered_state_dir(&path.with_file_name("other.toml")), None, "another agent's file");
        let default = state_dir(&Config::parse(&path, "").expect("an empty file is valid"));
        remember_state_dir(&path, &default).expect("remove the record");
        assert_eq!(remembered_state_dir(&path), None);
    }
}
