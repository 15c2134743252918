//! Messages about a usable configuration: keys without effect, unknown keys, the mode of the file.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml_edit::{Document, Item, TableLike};

use super::docker::Contradiction;
use super::feature_flags::{self, JobHost};
use super::keys::{self, KeySupport};
use super::location::{KeyLocation, line_number};
use super::period::{CronForm, Period, Zone};
use super::runner::executor_has_containers;
use super::{ExecutorKind, Role, Runner, UnusableRunner, expand};

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is wrong, but the file relies on something outside of it. `lint` and `check` print it, `run` does not.
    Note,
    /// The agent works, but a key has no effect or should be changed.
    Warning,
    /// An unknown key, probably a spelling mistake. `run` continues, `lint` fails.
    UnknownKey,
    /// An unusable runner. `run` continues with the others, `lint` and `check` fail.
    UnusableRunner,
}

/// A message about a line of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// The line in the file, from 1; `None` for the whole file.
    pub line: Option<usize>,
    /// The problem, and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Names each key that has no effect, with its line.
pub fn check_keys(text: &str, role: Role) -> Vec<Finding> {
    let Ok(document) = Document::parse(text) else { return Vec::new() };
    let mut check = KeyCheck { text, role, findings: Vec::new() };
    check.check_table("", "", document.as_table());
    check.findings.sort_by_key(|finding| finding.line);
    check.findings
}

/// Finds runners that mayfly cannot use.
pub fn unusable_runners(text: &str, unusable: &[UnusableRunner]) -> Vec<Finding> {
    let finding = |unusable: &UnusableRunner| Finding {
        severity: Severity::UnusableRunner,
        line: KeyLocation { runner: Some(unusable.position), key: "executor" }.line(text),
        message: unusable.why.clone(),
    };
    unusable.iter().map(finding).collect()
}

/// Reports runners without an executor: a runner of a manager gets it with each job.
pub fn missing_executors(text: &str, runners: &[Runner]) -> Vec<Finding> {
    let without = runners.iter().filter(|runner| runner.executor == ExecutorKind::FromManager);
    let finding = |runner: &Runner| Finding {
        severity: Severity::Note,
        line: KeyLocation { runner: Some(runner.position), key: "url" }.line(text),
        message:
            "`runners.executor` is missing, so `url` must be the address of a `mayfly manager`, which sends it; for \
                  GitLab write executor = \"shell\""
                .to_owned(),
    };
    without.map(finding).collect()
}

/// Reports contradictions below `[runners.docker]`, and keys that belong to another table.
pub fn check_containers(text: &str, runners: &[Runner]) -> Vec<Finding> {
    let of_runner = |runner: &Runner| {
        let location = |key| KeyLocation { runner: Some(runner.position), key };
        let contradictions =
            runner.docker.contradictions().into_iter().map(move |Contradiction { key, why }| (location(key), why));
        let idle = (!runner.docker.tls_verify && runner.docker.tls_cert_path.is_some())
            .then(|| (location("docker.tls_cert_path"), "it has no effect without `tls_verify = true`".to_owned()));
        let policy = (!runner.docker.permits_a_default_policy()).then(|| {
            let why =
                "no policy of `pull_policy` is in the list, so every job must name a policy (`image: pull_policy`)";
            (location("docker.allowed_pull_policies"), why.to_owned())
        });
        contradictions
            .chain(idle)
            .chain(policy)
            .map(|(location, why)| Finding {
                severity: Severity::Warning,
                line: location.line(text),
                message: format!("`runners.{}`: {why}", location.key),
            })
            .collect::<Vec<_>>()
    };
    runners.iter().flat_map(of_runner).collect()
}

/// Warns if other users can read the file, which contains runner tokens.
pub fn check_mode(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| Finding {
        severity: Severity::Warning,
        line: None,
        message: format!(
            "other users can read the runner tokens in this file (mode {mode:04o}); run: chmod 600 {}",
            path.display()
        ),
    })
}

/// Walks through the tables of a file.
struct KeyCheck<'a> {
    text: &'a str,
    role: Role,
    findings: Vec<Finding>,
}

/// A key of the file.
struct FoundKey<'a> {
    /// The path of its table (`runners.docker`; empty for the top level).
    table: &'a str,
    name: &'a str,
    value: &'a Item,
    /// The executor of its runner; empty outside of `[[runners]]`.
    executor: &'a str,
    line: Option<usize>,
}

impl FoundKey<'_> {
    /// The path of the key, such as `runners.docker.image`.
    fn path(&self) -> String {
        if self.table.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.table, self.name) }
    }
}

impl KeyCheck<'_> {
    fn warn(&mut self, line: Option<usize>, message: String) {
        self.findings.push(Finding { severity: Severity::Warning, line, message });
    }

    /// Checks the keys of a table, and the tables below it.
    fn check_table(&mut self, path: &str, executor: &str, table: &dyn TableLike) {
        let executor = match path {
            "runners" => table.get("executor").and_then(Item::as_str).unwrap_or_default(),
            _ => executor,
        };
        if path == "runners.machine.autoscaling" && !table.contains_key("IdleTime") {
            self.warn_about_idle_time(table);
        }
        for (name, value) in table.iter() {
            let line = self.line_of(table, name, value);
            let key = FoundKey { table: path, name, value, executor, line };
            match path {
                "runners.feature_flags" => self.check_flag(&key),
                _ => self.check_key(&key),
            }
        }
    }

    fn line_of(&self, table: &dyn TableLike, name: &str, value: &Item) -> Option<usize> {
        let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| value.span());
        span.map(|span| line_number(self.text, span.start))
    }

    fn warn_about_idle_time(&mut self, table: &dyn TableLike) {
        let line = table.iter().find_map(|(name, value)| self.line_of(table, name, value));
        let why = "`runners.machine.autoscaling` has no `IdleTime`, so it is 0 there and not inherited: the instance leaves \
                   as soon as no job waits";
        self.warn(line, why.to_owned());
    }

    fn check_key(&mut self, key: &FoundKey<'_>) {
        let path = key.path();
        match keys::keys_of(key.table).iter().find(|known| known.name == key.name).map(|known| known.support) {
            Some(KeySupport::Honoured) => self.check_value(key, &path),
            Some(KeySupport::Table) if path == "runners.docker" && !executor_has_containers(key.executor) => {
                self.warn(key.line, format!("`{path}` has no effect: {}", keys::WITHOUT_CONTAINERS));
            }
            Some(KeySupport::Table) => self.check_tables(key, &path),
            Some(KeySupport::NoEffect(why)) => self.warn(key.line, format!("`{path}` has no effect: {why}")),
            Some(KeySupport::ManagerOnly(why)) => self.check_manager_key(key, &path, why),
            None => self.findings.push(Finding {
                severity: Severity::UnknownKey,
                line: key.line,
                message: format!("`{path}` is unknown and has no effect{}", hint(key.table, key.name)),
            }),
        }
    }

    /// Checks the table or the list of tables of a key.
    fn check_tables(&mut self, key: &FoundKey<'_>, path: &str) {
        if let Some(tables) = key.value.as_array_of_tables() {
            tables.iter().for_each(|table| self.check_table(path, key.executor, table));
        } else if let Some(table) = key.value.as_table_like() {
            self.check_table(path, key.executor, table);
        }
    }

    /// Finds values without effect and misleading ones of a key that has an effect.
    fn check_value(&mut self, key: &FoundKey<'_>, path: &str) {
        match path {
            "runners.cache.Type" => {
                if let Some(kind) = key.value.as_str().filter(|kind| !matches!(*kind, "" | "s3")) {
                    let why = keys::OTHER_OBJECT_STORE;
                    self.warn(key.line, format!("`{path} = \"{kind}\"` has no effect: {why}"));
                }
            }
            "runners.docker.environment" => {
                self.warn(key.line, format!("`{path}` has an effect, but belongs below [[runners]]; move it there"));
            }
            "runners.url" | "runners.token" => {
                for name in key.value.as_str().map(expand::unset_variables).unwrap_or_default() {
                    let why = format!("`{path}` uses the environment variable `${name}`, which is not set");
                    self.warn(key.line, why);
                }
            }
            path if keys::PERIODS.contains(&path) => self.check_periods(key),
            _ => {}
        }
    }

    /// Finds periods that never match or are misleading, in a policy or in a section of docker+machine.
    fn check_periods(&mut self, key: &FoundKey<'_>) {
        let today = Zone::default().clock(jiff::Timestamp::now()).date();
        let form = match key.table {
            "runners.machine.autoscaling" => CronForm::WithSeconds,
            _ => CronForm::WithoutSeconds,
        };
        for value in key.value.as_array().into_iter().flatten() {
            let period = value.as_str().and_then(|text| Period::read(text).ok());
            if let Some(warning) = period.and_then(|period| period.warning(today, form)) {
                self.warn(value.span().map(|span| line_number(self.text, span.start)), warning);
            }
        }
    }

    /// Checks a key that only a manager honours; an agent ignores it because of `why`.
    fn check_manager_key(&mut self, key: &FoundKey<'_>, path: &str, why: &str) {
        if key.name == "IdleScaleFactor" && key.value.is_integer() {
            let why = format!(
                "`{path}` is an integer, with which gitlab-runner does not start; write a decimal point, for example 1.0"
            );
            self.warn(key.line, why);
        } else if self.role == Role::Agent {
            let why = format!("`{path}` has no effect for an agent (`mayfly manager` honours it): {why}");
            self.warn(key.line, why);
        }
    }

    fn check_flag(&mut self, key: &FoundKey<'_>) {
        let path = key.path();
        let Some(flag) = feature_flags::find(key.name) else {
            let near = nearest(key.name, feature_flags::FLAGS.iter().map(|flag| flag.name));
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let message = format!("`{path}` is unknown and has no effect{hint}");
            return self.findings.push(Finding { severity: Severity::UnknownKey, line: key.line, message });
        };
        let jobs = if executor_has_containers(key.executor) { JobHost::Containers } else { JobHost::Shell };
        let reason = key.value.as_bool().and_then(|value| feature_flags::no_effect_reason(flag, value, jobs));
        if let Some(reason) = reason {
            self.warn(key.line, format!("`{path}` has no effect: {reason}"));
        }
    }
}

/// A suggestion for an unknown key: a similar key of the same table, or the same key of another table.
fn hint(path: &str, name: &str) -> String {
    if let Some(key) = nearest(name, keys::keys_of(path).iter().map(|key| key.name)) {
        return format!("; did you mean `{key}`?");
    }
    let home = keys::TABLES.iter().find(|table| table.keys.iter().any(|key| key.name == name));
    home.map(|table| format!("; it belongs {}", keys::describe_position(table.path))).unwrap_or_default()
}

/// The most similar known word, if at most a third of its letters differ.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.map(|word| (distance(word, name), word));
    near.filter(|(distance, word)| *distance * 3 <= word.len().max(name.len())).min().map(|(_, word)| word)
}

/// The edit distance of two words, with swaps of adjacent letters; case, dashes and underscores are ignored.
fn distance(one: &str, other: &str) -> usize {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    strsim::osa_distance(&plain(one), &plain(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_key_without_effect_with_its_line() {
        let text = "concurrent = 1\nchek_interval = 3\n[[runners]]\nname = \"a\"\ntoken = \"t\"\nprivileged = true\n\
                    [runners.docker]\nimage = \"x\"\n[runners.mayfly]\nkill_grace = \"1s\"\nkillgrace = \"1s\"\n";
        let found: Vec<String> = check_keys(text, Role::Agent).iter().map(Finding::to_string).collect();
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[1].ends_with("it belongs below [runners.docker]"), "{found:#?}");
        assert!(found[3].ends_with("did you mean `kill_grace`?"), "{found:#?}");
        assert_eq!(found[0], "line 2: `chek_interval` is unknown and has no effect; did you mean `check_interval`?");
        assert!(found[1].starts_with("line 6: `runners.privileged` is unknown"));
        assert!(found[2].starts_with("line 7: `runners.docker` has no effect"));
        assert!(found[3].starts_with("line 11: `runners.mayfly.killgrace` is unknown"));
    }

    #[test]
    fn suggests_the_right_table_or_spelling() {
        for (text, hint) in [
            ("limit = 2\n", "it belongs below [[runners]]"),
            ("conurent = 2\n", "did you mean `concurrent`?"),
            ("check-interval = 2\n", "did you mean `check_interval`?"),
            ("[[runners]]\nconcurrent = 2\n", "it belongs at the top level, before all tables"),
            ("[[runners]]\nuotput_limit = 2\n", "did you mean `output_limit`?"),
            ("[[runners]]\nBucketName = \"x\"\n", "it belongs below [runners.cache.s3]"),
            ("wholly_other_thing = 2\n", "`wholly_other_thing` is unknown and has no effect"),
        ] {
            let found = check_keys(text, Role::Agent);
            assert!(found[0].message.ends_with(hint), "{found:?}");
        }
    }

    #[test]
    fn reports_docker_keys_only_for_executors_with_containers() {
        let text = |executor: &str| {
            format!(
                "[[runners]]\nexecutor = \"{executor}\"\n[runners.docker]\nhelper_image = \"x\"\nimgae = \"x\"\n\
                 environment = [\"A=1\"]\n[[runners.docker.services]]\nname = \"x\"\nports = []\n\
                 [runners.docker.sysctls]\n\"net.core.somaxconn\" = \"1\"\n"
            )
        };
        let found: Vec<String> =
            check_keys(&text("docker-autoscaler"), Role::Agent).iter().map(Finding::to_string).collect();
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("line 4: `runners.docker.helper_image` has no effect"), "{found:#?}");
        assert!(found[1].ends_with("did you mean `image`?"), "{found:#?}");
        assert!(found[2].starts_with("line 6") && found[2].contains("belongs below [[runners]]"), "{found:#?}");
        assert!(found[3].starts_with("line 9: `runners.docker.services.ports` is unknown"), "{found:#?}");
        let found = check_keys(&text("shell"), Role::Agent);
        assert!(found.len() == 1 && found[0].message.starts_with("`runners.docker` has no effect"), "{found:#?}");
    }

    #[test]
    fn reports_unused_certificates() {
        let text = |verify: &str| {
            format!(
                "[[runners]]\nurl = \"https://h\"\ntoken = \"t\"\nexecutor = \"docker\"\n[runners.docker]\n{verify}\
                 tls_cert_path = \"/certs\"\n"
            )
        };
        let found = |text: &str| {
            let config = super::super::Config::parse(Path::new("config.toml"), text).expect("a configuration");
            check_containers(text, &config.runners).iter().map(Finding::to_string).collect::<Vec<_>>()
        };
        let expected = "line 6: `runners.docker.tls_cert_path`: it has no effect without `tls_verify = true`";
        assert_eq!(found(&text("")), [expected]);
        assert!(found(&text("tls_verify = true\n")).is_empty());
    }

    #[test]
    fn names_an_unsupported_object_store() {
        for (kind, found) in [("s3", 0), ("gcs", 1)] {
            assert_eq!(
                check_keys(&format!("[[runners]]\n[runners.cache]\nType = \"{kind}\"\n"), Role::Agent).len(),
                found,
                "{kind}"
            );
        }
    }

    #[test]
    fn names_flags_without_effect_and_unset_variables() {
        let text = "[[runners]]\ntoken = \"$NO_SUCH_NAME_HERE\"\nurl = \"https://h\"\n[runners.feature_flags]\n\
                    FF_TIMESTAMPS = false\nFF_USE_GIT_NATIVE_CLONE = true\n";
        let found: Vec<String> = check_keys(text, Role::Agent).iter().map(Finding::to_string).collect();
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].starts_with("line 2") && found[0].contains("$NO_SUCH_NAME_HERE"), "{found:#?}");
        assert!(found[1].starts_with("line 6: `runners.feature_flags.FF_USE_GIT_NATIVE_CLONE`"), "{found:#?}");
    }
}
