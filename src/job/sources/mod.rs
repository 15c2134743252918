//! Sources: git in a directory that an earlier job may have manipulated.
//!
//! The agent makes a plan from the payload. A child of the shim executes the plan with the job user's rights;
//! everything that the child prints goes into the job's log. The job's token is in one file outside the repository,
//! which `.git/config` includes. So the job's own `git fetch` works, and the token is in no repository, remote or
//! argument.

mod clean;
mod config_file;
pub mod environment;
mod external;
mod fault;
mod files;
mod git;
mod git_context;
mod index;
mod kept;
mod large_files;
mod object_id;
mod options;
mod plan;
mod record;
mod redirect;
pub mod remove;
mod repository;
pub mod setting_scripts;
mod settings;
mod submodule_cleanup;
mod submodule_trees;
mod submodules;
mod unchanged;
mod update;
mod verify;
mod worktree;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use config_file::Setting;
use external::{CA_CERTIFICATES, EXTERNAL_CONFIG};
pub use external::{GLOBAL_CONFIG, SECRET_FILES};
use git_context::GitContext;
pub use plan::{SourcesSettings, plan, strategy, without_credentials};
pub use record::key as record_key;

use repository::RepositoryOrigin;
use settings::ReportedSettings;

use crate::trace::colours::{GREEN, RESET, YELLOW};

/// `GIT_STRATEGY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GitStrategy {
    /// Start with an empty directory.
    Clone,
    /// Reuse the repository of an earlier job.
    Fetch,
    /// Leave everything unchanged.
    None,
    /// Start with an empty directory and do not run git.
    Empty,
}

/// Everything that the child needs to provide the sources.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourcesPlan {
    /// `GIT_STRATEGY`.
    pub strategy: GitStrategy,
    /// `CI_PROJECT_DIR`.
    pub project: PathBuf,
    /// `<project directory>.tmp`.
    pub temporary: PathBuf,
    /// The path of `temporary` in the job's container.
    pub temporary_in_container: Option<PathBuf>,
    /// URL of the repository, without credentials.
    pub url: String,
    /// URL rewrites (`insteadOf`), as pairs of old and new prefix. The new prefix has the job token unless `login` is
    /// set.
    pub rewrites: Vec<(String, String)>,
    /// Scheme and host where git authenticates with `CI_JOB_TOKEN` from the environment, so that the token is not
    /// written to disk (`FF_GIT_URLS_WITHOUT_TOKENS`).
    pub login: Option<String>,
    /// The refspecs to fetch.
    pub refspecs: Vec<String>,
    /// Number of commits to fetch; 0 for all.
    pub depth: i64,
    /// The commit to check out.
    pub sha: String,
    /// The branch or tag, for the log.
    pub reference: String,
    /// `sha1` or `sha256`.
    pub object_format: String,
    /// `GIT_CHECKOUT`.
    pub checkout: bool,
    /// `GIT_CLEAN_FLAGS`; empty to skip cleaning.
    pub clean_flags: Vec<String>,
    /// `GIT_FETCH_EXTRA_FLAGS`.
    pub fetch_flags: Vec<String>,
    /// `GIT_SUBMODULE_STRATEGY` and related variables.
    pub submodules: Option<Submodules>,
    /// Whether to fetch large files (`GIT_LFS_SKIP_SMUDGE` is not set).
    pub lfs: bool,
    /// Certificates for the server, in PEM format.
    pub ca_certificates: Option<String>,
    /// Id of the request that returned the job, for the server's logs.
    pub correlation_id: String,
    /// The user agent, for the server's logs.
    pub user_agent: String,
    /// The environment of git.
    pub environment: Vec<(String, String)>,
    /// Key that signs the record of the checkout; `None` if other users can change files while git runs.
    pub record_key: Option<String>,
    /// Git settings for the repository that the job's scripts made.
    pub settings: Vec<Setting>,
    /// Git settings for all repositories that the job's scripts made.
    pub user_settings: Vec<Setting>,
    /// Log lines about ignored settings.
    pub ignored_settings: Vec<String>,
}

/// How to fetch submodules.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Submodules {
    /// Include submodules of submodules.
    pub recursive: bool,
    /// Number of commits to fetch; 0 for all.
    pub depth: i64,
    /// Fetch only these paths.
    pub paths: Vec<String>,
    /// `GIT_SUBMODULE_UPDATE_FLAGS`.
    pub update_flags: Vec<String>,
}

/// Why the sources could not be provided.
enum SourcesError {
    /// A git command failed with this exit status.
    Git(i32),
    /// An operation on files failed.
    Io(io::Error),
    /// The repository of an earlier job is damaged.
    Repository(String),
    /// The files of an earlier job cannot be replaced or removed.
    WorkTree(String),
}

impl From<io::Error> for SourcesError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for SourcesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Git(code) => write!(f, "git ended with exit status {code}"),
            Self::Io(error) => error.fmt(f),
            Self::Repository(why) | Self::WorkTree(why) => f.write_str(why),
        }
    }
}

impl SourcesError {
    /// Errors of the machine: it lacks disk space, memory, processes or git. A new clone would fail for the same
    /// reason.
    fn is_of_machine(error: &io::Error) -> bool {
        use io::ErrorKind::{NotFound, OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull, WouldBlock};
        matches!(error.kind(), NotFound | OutOfMemory | QuotaExceeded | ReadOnlyFilesystem | StorageFull | WouldBlock)
    }
}

impl SourcesPlan {
    /// Adds the settings that the scripts before git made, as git listed them: those for the repository and those for
    /// all repositories of the user.
    pub fn add_listed_settings(&mut self, repository_list: &str, user_list: &str) {
        let context = self.git_context();
        let repository = settings::check(config_file::parse(repository_list), context, ReportedSettings::All);
        let user = settings::check(config_file::parse(user_list), context, ReportedSettings::AffectingFetch);
        (self.settings, self.user_settings) = (repository.honoured, user.honoured);
        self.ignored_settings.extend(repository.ignored);
        self.ignored_settings.extend(user.ignored);
        if context == GitContext::BesideContainer {
            environment::add_settings(&mut self.environment, &self.user_settings);
            environment::use_proxy_of_settings(&mut self.environment, &self.settings);
        }
    }

    fn git_context(&self) -> GitContext {
        GitContext::new(self.temporary_in_container.as_deref())
    }

    /// The same plan for the repositories of submodules, which do not read the project's configuration. Settings of
    /// large files and remotes stay out: they name the project's own servers. A header for all servers stays out as
    /// well: it may contain a password for the project's own server.
    fn submodule_plan(&self) -> Self {
        let mut plan = self.clone();
        let is_shared = |(key, _): &&Setting| {
            key != "http.extraheader" && !["lfs.", "remote."].iter().any(|own| key.starts_with(own))
        };
        let shared: Vec<Setting> = self.settings.iter().filter(is_shared).cloned().collect();
        environment::add_settings(&mut plan.environment, &shared);
        plan
    }

    /// Whether git fetches objects when it needs them (`--filter`).
    fn is_partial(&self) -> bool {
        self.fetch_flags.iter().any(|flag| flag.starts_with("--filter"))
    }

    fn external_config(&self) -> PathBuf {
        self.temporary.join(EXTERNAL_CONFIG)
    }

    /// The path of a file of the temporary directory, as the job's own git sees it.
    fn path_in_container(&self, name: &str) -> PathBuf {
        self.temporary_in_container.as_ref().unwrap_or(&self.temporary).join(name)
    }

    /// Options for git outside a container: git finds the files of the job's git at their path on the machine, and
    /// accepts files of any owner.
    fn beside_container(&self) -> Vec<String> {
        if self.temporary_in_container.is_none() {
            return Vec::new();
        }
        let mut options = vec![format!("include.path={}", self.external_config().display())];
        if self.ca_certificates.is_some() {
            let (host, file) = (crate::http::origin(&self.url), self.temporary.join(CA_CERTIFICATES));
            options.push(format!("http.{host}.sslCAInfo={}", file.display()));
        }
        options.push("safe.directory=*".to_owned());
        options.extend(crate::http::relay_of_process().map(|relay| format!("http.proxy=socks5h://{relay}")));
        options.into_iter().flat_map(|option| ["-c".to_owned(), option]).collect()
    }
}

/// Executes the plan; returns the exit status of the stage.
pub fn run(plan: &SourcesPlan) -> i32 {
    status(plan, fetch(plan), "prepare")
}

/// Restores the project directory after the job, as far as its strategy allows (`FF_ENABLE_JOB_CLEANUP`).
pub fn clean_up(plan: &SourcesPlan) -> i32 {
    status(plan, tidy(plan), "clean up")
}

fn status(plan: &SourcesPlan, outcome: Result<(), SourcesError>, what: &str) -> i32 {
    let project = plan.project.display();
    match outcome {
        Ok(()) => return 0,
        // Git has printed the reason.
        Err(SourcesError::Git(code)) => return code,
        Err(error) => eprintln!("cannot {what} {project}: {error}"),
    }
    1
}

fn tidy(plan: &SourcesPlan) -> Result<(), SourcesError> {
    match plan.strategy {
        GitStrategy::None => Ok(()),
        GitStrategy::Clone | GitStrategy::Empty => Ok(remove::remove(&plan.project)?),
        GitStrategy::Fetch => {
            let modules = submodule_cleanup::set_aside(plan)?;
            let cleaned = tidy_checkout(plan, &modules);
            remove::remove(&modules)?;
            cleaned
        }
    }
}

fn tidy_checkout(plan: &SourcesPlan, modules: &Path) -> Result<(), SourcesError> {
    if repository::prepare(plan)? == RepositoryOrigin::Created {
        return Ok(remove::empty(&plan.project)?);
    }
    worktree::sanitise(&plan.project)?;
    clean::clean(plan, &plan.project)?;
    git::run(plan, &["reset", "--hard", "--quiet"])?;
    submodule_cleanup::clean_all(plan, modules, 1)
}

fn fetch(plan: &SourcesPlan) -> Result<(), SourcesError> {
    for line in &plan.ignored_settings {
        println!("{YELLOW}WARNING: {line}{RESET}");
    }
    // These files may contain passwords. A file that cannot be removed now is removed before the next script.
    for name in [setting_scripts::TEMPLATE_DIRECTORY, setting_scripts::TEMPLATE_LIST, setting_scripts::USER_LIST] {
        let _ = remove::remove(&plan.temporary.join(name));
    }
    if plan.login.is_some() {
        external::write(plan, &[])?;
    }
    match plan.strategy {
        GitStrategy::None => {
            println!("{GREEN}Skipping Git repository setup{RESET}");
            make_directory(&plan.project)?;
        }
        GitStrategy::Empty => {
            println!("{GREEN}Skipping Git repository setup and creating an empty build directory{RESET}");
            remove::remove(&plan.project)?;
            make_directory(&plan.project)?;
        }
        GitStrategy::Clone => {
            remove::remove(&plan.project)?;
            make_directory(&plan.project)?;
            return update::update(plan);
        }
        GitStrategy::Fetch => {
            make_directory(&plan.project)?;
            clean::make_parents_accessible(&plan.project, [])?;
            return update::update(plan);
        }
    }
    println!("{GREEN}Skipping Git checkout{RESET}\n{GREEN}Skipping Git submodules setup{RESET}");
    Ok(())
}

/// Creates a directory; replaces any other file at its path.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        remove::remove(path)?;
    }
    fs::create_dir_all(path)
}
