//! The start of a test: one runner, its configuration, and the agent that runs its jobs.
//!
//! ```ignore
//! let job = Scenario::shell().runner("output_limit = 100").job(job(&["seq 100000"]));
//! assert!(job.has("the log is too large"));
//! ```
//!
//! A test that needs the GitLab or the agent between the steps makes a home: `Scenario::shell().home(&gitlab)`.

use super::docker::docker;
use super::fleet::FLEET_TOKEN;
use super::gitlab::{GitLab, Job, RUNNER_TOKEN};
use super::job::JobBuilder;
use super::keys::{append, with_defaults, write_config};
use super::mayfly::Home;

/// The configuration of one agent with one runner. In all keys, `$HOME` stands for the directory of the agent.
#[derive(Clone)]
pub struct Scenario {
    /// Unset if a manager sends the executor with each job.
    executor: Option<String>,
    token: String,
    state_dir: String,
    global: String,
    mayfly: String,
    runner: String,
    docker: Option<String>,
    engine: Option<String>,
}

impl Scenario {
    fn new(executor: &str) -> Self {
        Self {
            executor: Some(executor.to_owned()),
            token: RUNNER_TOKEN.to_owned(),
            state_dir: "$HOME/state".to_owned(),
            global: String::new(),
            mayfly: String::new(),
            runner: String::new(),
            docker: None,
            engine: None,
        }
    }

    /// Jobs run in the shell of this machine.
    pub fn shell() -> Self {
        Self::new("shell")
    }

    /// Jobs run in containers; by default in busybox, on the engine that all tests share.
    pub fn containers() -> Self {
        Self { docker: Some(String::new()), ..Self::new("docker") }
    }

    /// The agent on an instance of a manager's pool; the manager sends the settings of jobs.
    pub fn managed(instance: &str) -> Self {
        let own = Self { executor: None, token: FLEET_TOKEN.to_owned(), ..Self::shell() };
        own.mayfly(&format!("instance_id = \"{instance}\""))
    }

    /// Sets the executor to another one of the same kind (`docker-autoscaler`, `instance`).
    pub fn executor(mut self, name: &str) -> Self {
        self.executor = Some(name.to_owned());
        self
    }

    /// Runs containers on another engine.
    pub fn engine(mut self, host: &str) -> Self {
        self.engine = Some(host.to_owned());
        self
    }

    /// Sets another runner token, or a reference to one.
    pub fn token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    /// Sets another state directory.
    pub fn state_dir(mut self, directory: &str) -> Self {
        directory.clone_into(&mut self.state_dir);
        self
    }

    /// Adds top-level keys.
    pub fn config(mut self, keys: &str) -> Self {
        append(&mut self.global, keys);
        self
    }

    /// Adds keys below `[mayfly]`.
    pub fn mayfly(mut self, keys: &str) -> Self {
        append(&mut self.mayfly, keys);
        self
    }

    /// Adds keys, and tables, below `[[runners]]`.
    pub fn runner(mut self, keys: &str) -> Self {
        append(&mut self.runner, keys);
        self
    }

    /// Adds keys, and tables, below `[runners.docker]`.
    pub fn docker(mut self, keys: &str) -> Self {
        append(self.docker.get_or_insert_default(), keys);
        self
    }

    /// Writes the configuration into a new home.
    pub fn home(&self, gitlab: &GitLab) -> Home {
        self.home_at(&gitlab.url)
    }

    /// Writes the configuration into a new home, for the server at `url`: a GitLab or a manager.
    pub fn home_at(&self, url: &str) -> Home {
        let home = Home::empty();
        self.write(&home, url);
        home
    }

    /// Replaces the configuration of a home, for the server at `url`.
    pub fn write(&self, home: &Home, url: &str) {
        let directory = home.path("").display().to_string();
        write_config(home, &self.text(url).replace("$HOME", directory.trim_end_matches('/')));
    }

    /// Runs one job on an agent of its own, from the poll to the exit of the agent, and returns the job.
    pub fn job(&self, job: JobBuilder) -> Job {
        let gitlab = GitLab::start();
        self.home(&gitlab).run(&gitlab, job)
    }

    fn text(&self, url: &str) -> String {
        let Self { token, state_dir, global, mayfly, runner, .. } = self;
        let docker = self.docker_table();
        let identity = match &self.executor {
            Some(executor) => format!("name = \"test\"\nexecutor = \"{executor}\"\n"),
            None => String::new(),
        };
        format!(
            "check_interval = 1\nshutdown_timeout = 5\n{global}\n[mayfly]\nstate_dir = \"{state_dir}\"\n{mayfly}\n\
             [[runners]]\nurl = \"{url}\"\ntoken = \"{token}\"\n{identity}{runner}\n{docker}"
        )
    }

    /// `[runners.docker]`, with the engine, the image and the pull policy of tests unless they are set.
    fn docker_table(&self) -> String {
        let Some(keys) = &self.docker else { return String::new() };
        let engine = self.engine.clone().unwrap_or_else(|| docker().host());
        let keys = with_defaults(keys, &["image = \"busybox:local\"", "pull_policy = \"if-not-present\""]);
        format!("[runners.docker]\nhost = \"{engine}\"\n{keys}\n")
    }
}
