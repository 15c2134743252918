//! Settings that the agent reads only when it starts. If a reload changes one, the agent logs a warning, because it
//! keeps the old value.

use std::path::{Path, PathBuf};

use crate::config::aws::AwsConfig;
use crate::config::{self, Config};

/// The values of these settings when the agent started.
pub(super) struct StartSettings {
    state_dir: PathBuf,
    aws: Option<AwsConfig>,
    log_level: Option<String>,
    log_format: Option<String>,
    /// The keys in the last warning. A reload without further changes does not log it again.
    warned_of: Vec<&'static str>,
}

impl StartSettings {
    pub(super) fn new(config: &Config, state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            aws: config.mayfly.aws.clone(),
            log_level: config.log_level.clone(),
            log_format: config.log_format.clone(),
            warned_of: Vec::new(),
        }
    }

    /// Logs the changes that take effect only when the agent restarts.
    pub(super) fn warn_of_changes(&mut self, config: &Config) {
        let changed = self.changed(config);
        for key in changed.iter().filter(|key| !self.warned_of.contains(key)) {
            let state_dir = self.state_dir.display();
            match *key {
                "state_dir" => log::warn!(
                    "state_dir has changed; the agent keeps its journal in the old directory until it restarts in_use={state_dir}"
                ),
                _ => log::warn!("a changed setting takes effect when the agent restarts key={key}"),
            }
        }
        self.warned_of = changed;
    }

    fn changed(&self, config: &Config) -> Vec<&'static str> {
        let all = [
            ("state_dir", config::state_dir(config) != self.state_dir),
            ("mayfly.aws", config.mayfly.aws != self.aws),
            ("log_level", config.log_level != self.log_level),
            ("log_format", config.log_format != self.log_format),
        ];
        all.into_iter().filter(|(_, has_changed)| *has_changed).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("/c.toml"), text).expect("the configuration must be valid")
    }

    #[test]
    fn names_each_changed_setting_until_the_change_is_undone() {
        let start = config("log_level = \"info\"\n[mayfly]\nstate_dir = \"/a\"\n");
        let mut settings = StartSettings::new(&start, Path::new("/a"));
        assert!(settings.changed(&start).is_empty());
        let unrelated = config("concurrent = 9\nlog_level = \"info\"\n[mayfly]\nstate_dir = \"/a\"\n");
        assert!(settings.changed(&unrelated).is_empty());
        let other =
            config("log_level = \"debug\"\n[mayfly]\nstate_dir = \"/b\"\n[mayfly.aws]\nregion = \"eu-west-1\"\n");
        assert_eq!(settings.changed(&other), ["state_dir", "mayfly.aws", "log_level"]);
        settings.warn_of_changes(&other);
        assert_eq!(settings.warned_of.len(), 3);
        settings.warn_of_changes(&start);
        assert!(settings.warned_of.is_empty());
    }
}
