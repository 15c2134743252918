//! Messages about a usable configuration: keys without effect, unknown keys, the mode of the file.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml_edit::{Document, Item, TableLike};

use super::docker::Contradiction;
use super::feature_flags;
use super::keys::{self, KeySupport};
use super::location::{KeyLocation, line_number};
use super::meaning::is_of_containers;
use super::period::{CronForm, Period, Zone};
use super::{ExecutorKind, Role, Runner, Unusable, expand};

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
pub fn of_keys(text: &str, role: Role) -> Vec<Finding> {
    let Ok(document) = Document::parse(text) else { return Vec::new() };
    let mut findings = Vec::new();
    visit(text, "", "", document.as_table(), role, &mut findings);
    findings.sort_by_key(|finding| finding.line);
    findings
}

/// Finds runners that mayfly cannot use.
pub fn of_unusable(text: &str, unusable: &[Unusable]) -> Vec<Finding> {
    let finding = |unusable: &Unusable| Finding {
        severity: Severity::UnusableRunner,
        line: KeyLocation { runner: Some(unusable.position), key: "executor" }.line(text),
        message: unusable.why.clone(),
    };
    unusable.iter().map(finding).collect()
}

/// Reports runners without an executor: a runner of a manager gets it with each job.
pub fn of_executors(text: &str, runners: &[Runner]) -> Vec<Finding> {
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
pub fn of_containers(text: &str, runners: &[Runner]) -> Vec<Finding> {
    let of_runner = |runner: &Runner| {
        let place = |key| KeyLocation { runner: Some(runner.position), key };
        let told = runner.docker.contradictions().into_iter().map(move |Contradiction { key, why }| (place(key), why));
        let idle = (!runner.docker.tls_verify && runner.docker.tls_cert_path.is_some())
            .then(|| (place("docker.tls_cert_path"), "it has no effect without `tls_verify = true`".to_owned()));
        let policy = (!runner.docker.permits_a_default_policy()).then(|| {
            let why =
                "no policy of `pull_policy` is in the list, so every job must name a policy (`image: pull_policy`)";
            (place("docker.allowed_pull_policies"), why.to_owned())
        });
        told.chain(idle)
            .chain(policy)
            .map(|(place, why)| Finding {
                severity: Severity::Warning,
                line: place.line(text),
                message: format!("`runners.{}`: {why}", place.key),
            })
            .collect::<Vec<_>>()
    };
    runners.iter().flat_map(of_runner).collect()
}

/// Warns if other users can read the file, which contains runner tokens.
pub fn of_mode(path: &Path) -> Option<Finding> {
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

fn visit(text: &str, path: &str, executor: &str, table: &dyn TableLike, role: Role, findings: &mut Vec<Finding>) {
    let executor = match path {
        "runners" => table.get("executor").and_then(Item::as_str).unwrap_or_default(),
        _ => executor,
    };
    let known = keys::of(path);
    if path == "runners.machine.autoscaling" && !table.contains_key("IdleTime") {
        let first =
            table.iter().find_map(|(name, item)| table.key(name).and_then(toml_edit::Key::span).or(item.span()));
        let message = "`runners.machine.autoscaling` has no `IdleTime`, so it is 0 there and not inherited: the \
                       instance leaves as soon as no job waits";
        let line = first.map(|span| line_number(text, span.start));
        findings.push(Finding { severity: Severity::Warning, line, message: message.to_owned() });
    }
    for (name, item) in table.iter() {
        let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
        let line = span.map(|span| line_number(text, span.start));
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        if path == "runners.feature_flags" {
            let has_containers = is_of_containers(executor);
            findings.extend(of_flag(name, item.as_bool(), has_containers).map(|(severity, why)| Finding {
                severity,
                line,
                message: format!("`{full}` {why}"),
            }));
            continue;
        }
        let mut tell = |message: String| findings.push(Finding { severity: Severity::Warning, line, message });
        match known.iter().find(|key| key.name == name).map(|key| key.support) {
            Some(KeySupport::Honoured) if full == "runners.cache.Type" => {
                let other = item.as_str().filter(|kind| !matches!(*kind, "" | "s3"));
                other.iter().for_each(|kind| tell(format!("`{full} = \"{kind}\"` has no effect: {}", keys::KIND)));
            }
            Some(KeySupport::Honoured) if full == "runners.docker.environment" => {
                tell(format!("`{full}` has an effect, but belongs below [[runners]]; move it there"));
            }
            Some(KeySupport::Honoured) if keys::PERIODS.contains(&full.as_str()) => {
                check_periods(text, path, item, findings);
            }
            Some(KeySupport::Honoured) => {
                let expanded = matches!(full.as_str(), "runners.url" | "runners.token");
                let names = item.as_str().filter(|_| expanded).map(expand::unset).unwrap_or_default();
                for name in names {
                    tell(format!("`{full}` uses the environment variable `${name}`, which is not set"));
                }
            }
            Some(KeySupport::ManagerOnly(_)) if name == "IdleScaleFactor" && item.is_integer() => {
                tell(format!(
                    "`{full}` is an integer, with which gitlab-runner does not start; write a decimal point, for example 1.0"
                ));
            }
            Some(KeySupport::ManagerOnly(_)) if role == Role::Manager => {}
            Some(KeySupport::ManagerOnly(why)) => {
                tell(format!("`{full}` has no effect for an agent (`mayfly manager` honours it): {why}"));
            }
            Some(KeySupport::NoEffect(why)) => tell(format!("`{full}` has no effect: {why}")),
            Some(KeySupport::Table) if full == "runners.docker" && !is_of_containers(executor) => {
                tell(format!("`{full}` has no effect: {}", keys::WITHOUT_CONTAINERS));
            }
            Some(KeySupport::Table) => visit_tables(text, &full, executor, item, role, findings),
            None => findings.push(Finding {
                severity: Severity::UnknownKey,
                line,
                message: format!("`{full}` is unknown and has no effect{}", hint(path, name)),
            }),
        }
    }
}

/// Why a feature flag has no effect, and how severe that is; `None` if the flag has an effect.
fn of_flag(name: &str, value: Option<bool>, has_containers: bool) -> Option<(Severity, String)> {
    let Some(flag) = feature_flags::find(name) else {
        let near = nearest(name, feature_flags::FLAGS.iter().map(|flag| flag.name));
        let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        return Some((Severity::UnknownKey, format!("is unknown and has no effect{hint}")));
    };
    let reason = feature_flags::idle_reason(flag, value?, has_containers)?;
    Some((Severity::Warning, format!("has no effect: {reason}")))
}

/// Finds periods that never match or are misleading, in a policy or in a section of docker+machine.
fn check_periods(text: &str, path: &str, periods: &Item, findings: &mut Vec<Finding>) {
    let today = Zone::default().clock(jiff::Timestamp::now()).date();
    let form = match path {
        "runners.machine.autoscaling" => CronForm::WithSeconds,
        _ => CronForm::WithoutSeconds,
    };
    for value in periods.as_array().into_iter().flatten() {
        let period = value.as_str().and_then(|text| Period::read(text).ok());
        let warning = period.and_then(|period| period.warning(today, form));
        let line = value.span().map(|span| line_number(text, span.start));
        findings.extend(warning.map(|message| Finding { severity: Severity::Warning, line, message }));
    }
}

fn visit_tables(text: &str, path: &str, executor: &str, item: &Item, role: Role, findings: &mut Vec<Finding>) {
    if let Some(tables) = item.as_array_of_tables() {
        tables.iter().for_each(|table| visit(text, path, executor, table, role, findings));
    } else if let Some(table) = item.as_table_like() {
        visit(text, path, executor, table, role, findings);
    }
}

/// A suggestion for an unknown key: a similar key of the same table, or the same key of another table.
fn hint(path: &str, name: &str) -> String {
    if let Some(key) = nearest(name, keys::of(path).iter().map(|key| key.name)) {
        return format!("; did you mean `{key}`?");
    }
    let home = keys::TABLES.iter().find(|table| table.keys.iter().any(|key| key.name == name));
    home.map(|table| format!("; it belongs {}", keys::place_of(table.path))).unwrap_or_default()
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
        let told: Vec<String> = of_keys(text, Role::Agent).iter().map(Finding::to_string).collect();
        assert_eq!(told.len(), 4, "{told:#?}");
        assert!(told[1].ends_with("it belongs below [runners.docker]"), "{told:#?}");
        assert!(told[3].ends_with("did you mean `kill_grace`?"), "{told:#?}");
        assert_eq!(told[0], "line 2: `chek_interval` is unknown and has no effect; did you mean `check_interval`?");
        assert!(told[1].starts_with("line 6: `runners.privileged` is unknown"));
        assert!(told[2].starts_with("line 7: `runners.docker` has no effect"));
        assert!(told[3].starts_with("line 11: `runners.mayfly.killgrace` is unknown"));
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
            let told = of_keys(text, Role::Agent);
            assert!(told[0].message.ends_with(hint), "{told:?}");
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
        let told: Vec<String> =
            of_keys(&text("docker-autoscaler"), Role::Agent).iter().map(Finding::to_string).collect();
        assert_eq!(told.len(), 4, "{told:#?}");
        assert!(told[0].starts_with("line 4: `runners.docker.helper_image` has no effect"), "{told:#?}");
        assert!(told[1].ends_with("did you mean `image`?"), "{told:#?}");
        assert!(told[2].starts_with("line 6") && told[2].contains("belongs below [[runners]]"), "{told:#?}");
        assert!(told[3].starts_with("line 9: `runners.docker.services.ports` is unknown"), "{told:#?}");
        let told = of_keys(&text("shell"), Role::Agent);
        assert!(told.len() == 1 && told[0].message.starts_with("`runners.docker` has no effect"), "{told:#?}");
    }

    #[test]
    fn reports_unused_certificates() {
        let text = |verify: &str| {
            format!(
                "[[runners]]\nurl = \"https://h\"\ntoken = \"t\"\nexecutor = \"docker\"\n[runners.docker]\n{verify}\
                 tls_cert_path = \"/certs\"\n"
            )
        };
        let told = |text: &str| {
            let config = super::super::Config::parse(Path::new("config.toml"), text).expect("a configuration");
            of_containers(text, &config.runners).iter().map(Finding::to_string).collect::<Vec<_>>()
        };
        let expected = "line 6: `runners.docker.tls_cert_path`: it has no effect without `tls_verify = true`";
        assert_eq!(told(&text("")), [expected]);
        assert!(told(&text("tls_verify = true\n")).is_empty());
    }

    #[test]
    fn names_an_unsupported_object_store() {
        for (kind, told) in [("s3", 0), ("gcs", 1)] {
            assert_eq!(
                of_keys(&format!("[[runners]]\n[runners.cache]\nType = \"{kind}\"\n"), Role::Agent).len(),
                told,
                "{kind}"
            );
        }
    }

    #[test]
    fn names_flags_without_effect_and_unset_variables() {
        let text = "[[runners]]\ntoken = \"$NO_SUCH_NAME_HERE\"\nurl = \"https://h\"\n[runners.feature_flags]\n\
                    FF_TIMESTAMPS = false\nFF_USE_GIT_NATIVE_CLONE = true\n";
        let told: Vec<String> = of_keys(text, Role::Agent).iter().map(Finding::to_string).collect();
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[0].starts_with("line 2") && told[0].contains("$NO_SUCH_NAME_HERE"), "{told:#?}");
        assert!(told[1].starts_with("line 6: `runners.feature_flags.FF_USE_GIT_NATIVE_CLONE`"), "{told:#?}");
    }
}
