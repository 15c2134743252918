//! The start of a test of a manager: the configuration of one pool.
//!
//! ```ignore
//! let fleet = Pool::hold().runner("limit = 2").fleet(&gitlab);
//! let manager = fleet.start();
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::fleet::{FLEET_TOKEN, Fleet};
use super::gitlab::{GitLab, RUNNER_TOKEN};
use super::scenario::append;

/// The configuration of a manager with one pool.
#[derive(Clone)]
pub struct Pool {
    global: String,
    tls: String,
    manager: String,
    runner: String,
    autoscaler: String,
    policy: String,
}

impl Pool {
    /// A pool with these keys of its only `[[runners.autoscaler.policy]]`.
    pub fn of_policy(keys: &str) -> Self {
        Self {
            global: String::new(),
            tls: "plain_http = true".to_owned(),
            manager: String::new(),
            runner: String::new(),
            autoscaler: String::new(),
            policy: keys.to_owned(),
        }
    }

    /// Keeps idle agents, and takes jobs only for them.
    pub fn relay() -> Self {
        Self::of_policy("idle_count = 2\nidle_time = \"1h\"\npreemptive_mode = true")
    }

    /// Takes jobs before an instance exists, and keeps instances.
    pub fn hold() -> Self {
        Self::of_policy("idle_count = 0\nidle_time = \"1h\"\npreemptive_mode = false")
    }

    /// Takes jobs before an instance exists, and terminates an instance that is idle for a second.
    pub fn short_lived() -> Self {
        Self::of_policy("idle_time = \"1s\"")
    }

    /// Adds top-level keys.
    pub fn config(mut self, keys: &str) -> Self {
        append(&mut self.global, keys);
        self
    }

    /// Adds keys below `[mayfly.manager]`.
    pub fn manager(mut self, keys: &str) -> Self {
        append(&mut self.manager, keys);
        self
    }

    /// Serves agents over TLS with these keys instead of plain HTTP.
    pub fn tls(mut self, keys: &str) -> Self {
        keys.clone_into(&mut self.tls);
        self
    }

    /// Adds keys, and tables, below `[[runners]]`.
    pub fn runner(mut self, keys: &str) -> Self {
        append(&mut self.runner, keys);
        self
    }

    /// Adds keys below `[runners.autoscaler]`.
    pub fn autoscaler(mut self, keys: &str) -> Self {
        append(&mut self.autoscaler, keys);
        self
    }

    /// Writes the configuration of a new manager.
    pub fn fleet(&self, gitlab: &GitLab) -> Fleet {
        let fleet = Fleet::empty();
        self.write(&fleet, &gitlab.url);
        fleet
    }

    /// Replaces the configuration of a manager, for the GitLab at `url`.
    pub fn write(&self, fleet: &Fleet, url: &str) {
        let config = fleet.home.config();
        fs::write(&config, self.text(fleet, url)).expect("write the file");
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).expect("set the permissions");
    }

    fn text(&self, fleet: &Fleet, url: &str) -> String {
        let Self { tls, manager, policy, .. } = self;
        let directory = fleet.home.path("");
        let directory = directory.display();
        let global = with_defaults(&self.global, &["concurrent = 100", "check_interval = 1", "shutdown_timeout = 5"]);
        let runner = with_defaults(&self.runner, &["executor = \"instance\""]);
        let intervals = ["update_interval = \"1s\"", "update_interval_when_expecting = \"200ms\""];
        let sizes = ["capacity_per_instance = 1", "max_instances = 10"];
        let autoscaler = with_defaults(&self.autoscaler, &[sizes, intervals].concat());
        format!(
            "{global}\n[mayfly.manager]\nlisten = \"127.0.0.1:{port}\"\nagent_token = \"{FLEET_TOKEN}\"\n\
             state_dir = \"{directory}/manager\"\n{tls}\n{manager}\n\
             [[runners]]\nname = \"pool\"\nurl = \"{url}\"\ntoken = \"{RUNNER_TOKEN}\"\n{runner}\n\
             [runners.autoscaler]\nplugin = \"command\"\n{autoscaler}\n\
             [[runners.autoscaler.policy]]\n{policy}\n\
             [runners.autoscaler.plugin_config]\ncommand = \"/bin/sh\"\nargs = [\"{directory}/engine.sh\", \"{directory}\"]\n",
            port = fleet.port
        )
    }
}

/// Keys, after those of `defaults` that they do not set.
fn with_defaults(keys: &str, defaults: &[&str]) -> String {
    let is_set = |default: &str| {
        let name = default.split(' ').next().unwrap_or_default();
        keys.lines().any(|line| line.starts_with(&format!("{name} =")))
    };
    let mut all: Vec<&str> = defaults.iter().copied().filter(|default| !is_set(default)).collect();
    all.push(keys);
    all.join("\n")
}
