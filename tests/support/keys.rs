//! Keys of a configuration as text, for the builders of configurations.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::mayfly::Home;

/// Adds keys on lines of their own.
pub fn append(keys: &mut String, more: &str) {
    if !keys.is_empty() && !keys.ends_with('\n') {
        keys.push('\n');
    }
    keys.push_str(more);
}

/// Keys, after those of `defaults` that they do not set.
pub fn with_defaults(keys: &str, defaults: &[&str]) -> String {
    let is_set = |default: &str| {
        let name = default.split(' ').next().unwrap_or_default();
        keys.lines().any(|line| line.starts_with(&format!("{name} =")))
    };
    let mut all: Vec<&str> = defaults.iter().copied().filter(|default| !is_set(default)).collect();
    all.push(keys);
    all.join("\n")
}

/// Replaces the configuration of a home by rename: a running program reads either the old or the new file.
pub fn write_config(home: &Home, text: &str) {
    let draft = home.path("config.draft");
    fs::write(&draft, text).expect("write a file");
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).expect("set the permissions");
    fs::rename(&draft, home.config()).expect("rename the file");
}
