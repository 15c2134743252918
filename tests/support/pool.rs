//! The start of a test of a manager: the configuration of one pool.
//!
//! ```ignore
//! let fleet = Pool::hold().runner("limit = 2").fleet(&gitlab);
//! let manager = fleet.start();
//! ```

use super::fleet::{FLEET_TOKEN, Fleet};
use super::gitlab::{GitLab, RUNNER_TOKEN};
use super::keys::{append, with_defaults, write_config};

/// The configuration of a manager with one pool.
#[derive(Clone)]
pub struct Pool {
    name: String,
    token: String,
    global: String,
    listen: Option<String>,
    state_dir: String,
    tls: String,
    manager: String,
    runner: String,
    autoscaler: String,
    policy: String,
    engine: Option<(String, String)>,
}

impl Pool {
    /// A pool with these keys of its only `[[runners.autoscaler.policy]]`.
    pub fn with_policy(keys: &str) -> Self {
        Self {
            name: "pool".to_owned(),
            token: RUNNER_TOKEN.to_owned(),
            global: String::new(),
            listen: None,
            state_dir: "manager".to_owned(),
            tls: "plain_http = true".to_owned(),
            manager: String::new(),
            runner: String::new(),
            autoscaler: String::new(),
            policy: keys.to_owned(),
            engine: None,
        }
    }

    /// Keeps idle agents, and takes jobs only for them.
    pub fn relay() -> Self {
        Self::with_policy("idle_count = 2\nidle_time = \"1h\"\npreemptive_mode = true")
    }

    /// Takes jobs before an instance exists, and keeps instances.
    pub fn hold() -> Self {
        Self::with_policy("idle_count = 0\nidle_time = \"1h\"\npreemptive_mode = false")
    }

    /// Takes jobs before an instance exists, and terminates an instance that is idle for a second.
    pub fn short_lived() -> Self {
        Self::with_policy("idle_time = \"1s\"")
    }

    /// Sets another name of the pool.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Sets another token of the runner.
    pub fn token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    /// Sets another address for agents than `127.0.0.1` with the port of the fleet.
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        self
    }

    /// Sets another state directory below that of the fleet.
    pub fn state_dir(mut self, name: &str) -> Self {
        name.clone_into(&mut self.state_dir);
        self
    }

    /// Sets another engine, with the keys of its `plugin_config`.
    pub fn engine(mut self, plugin: &str, settings: &str) -> Self {
        self.engine = Some((plugin.to_owned(), settings.to_owned()));
        self
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
        write_config(&fleet.home, &self.text(fleet, url));
    }

    fn text(&self, fleet: &Fleet, url: &str) -> String {
        let Self { tls, manager, state_dir, .. } = self;
        let directory = fleet.home.path("");
        let global = with_defaults(&self.global, &["concurrent = 100", "check_interval = 1", "shutdown_timeout = 5"]);
        let listen = self.listen.clone().unwrap_or_else(|| format!("127.0.0.1:{}", fleet.port));
        format!(
            "{global}\n[mayfly.manager]\nlisten = \"{listen}\"\nagent_token = \"{FLEET_TOKEN}\"\n\
             state_dir = \"{}\"\n{tls}\n{manager}\n{}",
            directory.join(state_dir).display(),
            self.table(fleet, url)
        )
    }

    /// The `[[runners]]` of the pool.
    pub fn table(&self, fleet: &Fleet, url: &str) -> String {
        let Self { name, token, policy, .. } = self;
        let runner = with_defaults(&self.runner, &["executor = \"instance\""]);
        let intervals = ["update_interval = \"1s\"", "update_interval_when_expecting = \"200ms\""];
        let sizes = ["capacity_per_instance = 1", "max_instances = 10"];
        let autoscaler = with_defaults(&self.autoscaler, &[sizes, intervals].concat());
        let (plugin, settings) = match &self.engine {
            Some((plugin, settings)) => (plugin.as_str(), settings.clone()),
            None => ("command", fleet.engine("")),
        };
        format!(
            "[[runners]]\nname = \"{name}\"\nurl = \"{url}\"\ntoken = \"{token}\"\n{runner}\n\
             [runners.autoscaler]\nplugin = \"{plugin}\"\n{autoscaler}\n\
             [[runners.autoscaler.policy]]\n{policy}\n\
             [runners.autoscaler.plugin_config]\n{settings}\n"
        )
    }
}
