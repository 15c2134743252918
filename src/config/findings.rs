//! What is to be said of a configuration that can be used: keys without effect, unknown keys, who may read it.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use toml_edit::{Document, Item, TableLike};

use super::keys::{self, Support};

/// Something to tell about a line of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line of the file, from 1; `None` for the file as a whole.
    pub line: Option<usize>,
    /// What is there, and what to do about it.
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
pub fn of_keys(text: &str) -> Vec<Finding> {
    let Ok(document) = Document::parse(text) else { return Vec::new() };
    let mut findings = Vec::new();
    visit(text, "", document.as_table(), &mut findings);
    findings.sort_by_key(|finding| finding.line);
    findings
}

/// Says when others may read the file, in which the runners' tokens stand.
pub fn of_mode(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| Finding {
        line: None,
        message: format!("others can read the runners' tokens (mode {mode:04o}); run: chmod 600 {}", path.display()),
    })
}

fn visit(text: &str, path: &str, table: &dyn TableLike, findings: &mut Vec<Finding>) {
    let known = keys::of(path);
    for (name, item) in table.iter() {
        let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
        let line = span.map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let mut tell = |message: String| findings.push(Finding { line, message });
        match known.iter().find(|(key, _)| *key == name) {
            Some((_, Support::Honoured)) => {}
            Some((_, Support::NoEffect(why))) => tell(format!("`{full}` has no effect: {why}")),
            Some((_, Support::Table)) => visit_tables(text, &full, item, findings),
            None => {
                let hint = known.iter().find(|(key, _)| is_close(key, name));
                let hint = hint.map(|(key, _)| format!("; did you mean `{key}`?")).unwrap_or_default();
                tell(format!("`{full}` is unknown and has no effect{hint}"));
            }
        }
    }
}

fn visit_tables(text: &str, path: &str, item: &Item, findings: &mut Vec<Finding>) {
    if let Some(tables) = item.as_array_of_tables() {
        tables.iter().for_each(|table| visit(text, path, table, findings));
    } else if let Some(table) = item.as_table_like() {
        visit(text, path, table, findings);
    }
}

/// Same letters but for case, dashes and underscores, or one letter more or less.
fn is_close(key: &str, name: &str) -> bool {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let (key, name) = (plain(key), plain(name));
    let (longer, shorter) = if key.len() > name.len() { (&key, &name) } else { (&name, &key) };
    key == name
        || longer.len() == shorter.len() + 1
            && (0..longer.len()).any(|at| {
                longer.is_char_boundary(at) && longer.is_char_boundary(at + 1) && {
                    format!("{}{}", &longer[..at], &longer[at + 1..]) == **shorter
                }
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_key_without_effect_with_its_line() {
        let text = "concurrent = 1\nchek_interval = 3\n[[runners]]\nname = \"a\"\ntoken = \"t\"\nprivileged = true\n\
                    [runners.docker]\nimage = \"x\"\n[runners.mayfly]\nkill_grace = \"1s\"\nkillgrace = \"1s\"\n";
        let told: Vec<String> = of_keys(text).iter().map(Finding::to_string).collect();
        assert_eq!(told.len(), 4, "{told:#?}");
        assert_eq!(told[0], "line 2: `chek_interval` is unknown and has no effect; did you mean `check_interval`?");
        assert!(told[1].starts_with("line 6: `runners.privileged` is unknown"));
        assert!(told[2].starts_with("line 7: `runners.docker` has no effect"));
        assert!(told[3].starts_with("line 11: `runners.mayfly.killgrace` is unknown"));
    }
}
