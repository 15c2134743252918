//! Sources: git, on ground that an earlier job may have prepared.
//!
//! A plan is made from the payload; its work runs in a child of the shim with the job user's rights, and everything it
//! prints goes into the job's log. The job's token stands in one file outside the repository, which `.git/config`
//! includes: so the job's own `git fetch` works, and neither the repository, a remote nor an argument holds it.

mod clean;
pub mod environment;
mod external;
mod fault;
mod files;
mod git;
mod index;
mod large_files;
mod options;
mod plan;
mod record;
mod redirect;
pub mod remove;
mod repository;
pub mod settings;
mod submodule_trees;
mod submodules;
mod update;
mod verify;
mod worktree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use external::{CA_CERTIFICATES, EXTERNAL_CONFIG};
pub use external::{GLOBAL_CONFIG, SECRET_FILES};
pub use plan::{SourcesSettings, plan, strategy, without_credentials};
pub use record::key as record_key;

use repository::RepositoryOrigin;

const GREEN: &str = "\x1b[32;1m";
const YELLOW: &str = "\x1b[0;33m";
const RESET: &str = "\x1b[0;m";

/// `GIT_STRATEGY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Start from an empty directory.
    Clone,
    /// Reuse the repository of an earlier job.
    Fetch,
    /// Leave everything as it is.
    None,
    /// An empty directory and no git.
    Empty,
}

/// Everything that the work on the sources needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourcesPlan {
    /// How.
    pub strategy: Strategy,
    /// `CI_PROJECT_DIR`.
    pub project: PathBuf,
    /// `<project directory>.tmp`.
    pub temporary: PathBuf,
    /// The same as the job sees it, when it runs in a container.
    pub temporary_in_container: Option<PathBuf>,
    /// Of the repository, without credentials.
    pub url: String,
    /// URLs to rewrite, and what with: the job token is in the latter, unless `login` is there.
    pub rewrites: Vec<(String, String)>,
    /// Scheme and host to log in at with `CI_JOB_TOKEN` of the environment, so that the token is on no disk
    /// (`FF_GIT_URLS_WITHOUT_TOKENS`).
    pub login: Option<String>,
    /// What to fetch.
    pub refspecs: Vec<String>,
    /// Commits of history; 0 for all.
    pub depth: i64,
    /// What to check out.
    pub sha: String,
    /// What it is called.
    pub reference: String,
    /// `sha1` or `sha256`.
    pub object_format: String,
    /// `GIT_CHECKOUT`.
    pub checkout: bool,
    /// `GIT_CLEAN_FLAGS`; empty for no cleaning.
    pub clean_flags: Vec<String>,
    /// `GIT_FETCH_EXTRA_FLAGS`.
    pub fetch_flags: Vec<String>,
    /// `GIT_SUBMODULE_STRATEGY` and what belongs to it.
    pub submodules: Option<Submodules>,
    /// Fetch large files (`GIT_LFS_SKIP_SMUDGE` not set).
    pub lfs: bool,
    /// Certificates for the server, PEM.
    pub ca_certificates: Option<String>,
    /// Id of the request that brought the job, for the server's logs.
    pub correlation_id: String,
    /// The name in the server's logs.
    pub user_agent: String,
    /// The environment of git.
    pub environment: Vec<(String, String)>,
    /// What the record of the checkout is signed with; `None` where others can change files while git works.
    pub record_key: Option<String>,
    /// Git settings for the repository that the job's scripts made.
    pub settings: Vec<settings::Setting>,
    /// Git settings for all repositories that they made.
    pub user_settings: Vec<settings::Setting>,
    /// Lines for the log about settings that are ignored.
    pub ignored_settings: Vec<String>,
}

/// What to do about submodules.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Submodules {
    /// Those of submodules too.
    pub recursive: bool,
    /// Commits of history; 0 for all.
    pub depth: i64,
    /// Only these.
    pub paths: Vec<String>,
    /// `GIT_SUBMODULE_UPDATE_FLAGS`.
    pub update_flags: Vec<String>,
}

/// Why the sources are not there.
enum SourcesError {
    /// A git command ended with this status.
    Git(i32),
    /// The directory could not be worked on.
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

impl SourcesError {
    /// Errors of the machine: it lacks disk space, memory, processes or git, and a new clone would need them as well.
    fn is_of_machine(error: &io::Error) -> bool {
        use io::ErrorKind::{NotFound, OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull, WouldBlock};
        matches!(error.kind(), NotFound | OutOfMemory | QuotaExceeded | ReadOnlyFilesystem | StorageFull | WouldBlock)
    }
}

impl SourcesPlan {
    /// Takes the settings that scripts before the sources made, as their git lists them: for the repository, and for all
    /// repositories of the user.
    pub fn take_settings(&mut self, of_template: &str, of_user: &str) {
        let is_confined = self.temporary_in_container.is_some();
        let template = settings::judge_all(settings::parse(of_template), is_confined, true);
        let user = settings::judge_all(settings::parse(of_user), is_confined, false);
        (self.settings, self.user_settings) = (template.honoured, user.honoured);
        self.ignored_settings.extend(template.ignored);
        self.ignored_settings.extend(user.ignored);
        if is_confined {
            environment::add_settings(&mut self.environment, &self.user_settings);
            environment::use_proxy_of_settings(&mut self.environment, &self.settings);
        }
    }

    /// Whether objects are fetched when git needs them (`--filter`).
    fn is_partial(&self) -> bool {
        self.fetch_flags.iter().any(|flag| flag.starts_with("--filter"))
    }

    fn external_config(&self) -> PathBuf {
        self.temporary.join(EXTERNAL_CONFIG)
    }

    /// Where the job's own git finds a file of the temporary directory.
    fn path_in_container(&self, name: &str) -> PathBuf {
        self.temporary_in_container.as_ref().unwrap_or(&self.temporary).join(name)
    }

    /// Options for git beside a container: what the job's own git finds at its place is found at ours, and files belong
    /// to whom they belong.
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
        options.extend(crate::http::way_out().map(|relay| format!("http.proxy=socks5h://{relay}")));
        options.into_iter().flat_map(|option| ["-c".to_owned(), option]).collect()
    }
}

/// Does the work; returns the exit status of the stage.
pub fn run(plan: &SourcesPlan) -> i32 {
    status(plan, fetch(plan), "prepare")
}

/// Leaves the project directory as it was before the job, as far as its strategy allows (`FF_ENABLE_JOB_CLEANUP`).
pub fn clean_up(plan: &SourcesPlan) -> i32 {
    status(plan, tidy(plan), "clean up")
}

fn status(plan: &SourcesPlan, outcome: Result<(), SourcesError>, what: &str) -> i32 {
    let project = plan.project.display();
    match outcome {
        Ok(()) => return 0,
        Err(SourcesError::Git(code)) => return code,
        Err(SourcesError::Io(error)) => eprintln!("cannot {what} {project}: {error}"),
        Err(SourcesError::Repository(why) | SourcesError::WorkTree(why)) => eprintln!("cannot {what} {project}: {why}"),
    }
    1
}

fn tidy(plan: &SourcesPlan) -> Result<(), SourcesError> {
    match plan.strategy {
        Strategy::None => Ok(()),
        Strategy::Clone | Strategy::Empty => Ok(remove::remove(&plan.project)?),
        Strategy::Fetch => match repository::prepare(plan)? {
            RepositoryOrigin::Created => Ok(remove::empty(&plan.project)?),
            RepositoryOrigin::Reused => {
                worktree::sanitise(&plan.project)?;
                clean::clean(plan, &plan.project)?;
                git::run(plan, &["reset", "--hard", "--quiet"])
            }
        },
    }
}

fn fetch(plan: &SourcesPlan) -> Result<(), SourcesError> {
    for line in &plan.ignored_settings {
        println!("{YELLOW}WARNING: {line}{RESET}");
    }
    // They may hold passwords. What cannot be removed now is removed before the next script.
    for name in [settings::TEMPLATE_DIRECTORY, settings::TEMPLATE_LIST, settings::USER_LIST] {
        let _ = remove::remove(&plan.temporary.join(name));
    }
    if plan.login.is_some() {
        external::write(plan, &[])?;
    }
    match plan.strategy {
        Strategy::None => {
            println!("{GREEN}Skipping Git repository setup{RESET}");
            make_directory(&plan.project)?;
        }
        Strategy::Empty => {
            println!("{GREEN}Skipping Git repository setup and creating an empty build directory{RESET}");
            remove::remove(&plan.project)?;
            make_directory(&plan.project)?;
        }
        Strategy::Clone => {
            remove::remove(&plan.project)?;
            make_directory(&plan.project)?;
            return update::update(plan);
        }
        Strategy::Fetch => {
            make_directory(&plan.project)?;
            clean::open_parents(&plan.project, [])?;
            return update::update(plan);
        }
    }
    println!("{GREEN}Skipping Git checkout{RESET}\n{GREEN}Skipping Git submodules setup{RESET}");
    Ok(())
}

/// A directory, also where something else stands.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        remove::remove(path)?;
    }
    fs::create_dir_all(path)
}
