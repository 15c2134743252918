//! Sources: git, on ground that an earlier job may have prepared.
//!
//! A plan is made from the payload; its work runs in a child of the shim with the job user's rights, and everything it
//! prints goes into the job's log. The job's token stands in one file outside the repository, which `.git/config`
//! includes: so the job's own `git fetch` works, and neither the repository, a remote nor an argument holds it.

pub mod environment;
mod external;
mod files;
mod git;
mod index;
mod options;
mod plan;
mod record;
mod redirect;
pub mod remove;
mod repository;
mod submodules;
mod verify;
mod worktree;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};

use external::{CA_CERTIFICATES, EXTERNAL_CONFIG};
pub use external::{GLOBAL_CONFIG, SECRET_FILES};
pub use plan::{SourcesSettings, plan, strategy, without_credentials};
pub use record::key as record_key;

use index::KnownFiles;
use record::CheckoutRecord;
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
    /// An earlier try failed: remove tracked and untracked files first.
    pub clear_worktree: bool,
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
    /// The repository of an earlier job does not hold what it says.
    Damaged(String),
}

impl From<io::Error> for SourcesError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl SourcesPlan {
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
        Err(SourcesError::Damaged(why)) => eprintln!("cannot {what} {project}: {why}"),
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
                let flags = plan.clean_flags.iter().map(String::as_str);
                git::run(plan, &["clean"].into_iter().chain(flags).collect::<Vec<_>>())?;
                git::run(plan, &["reset", "--hard", "--quiet"])
            }
        },
    }
}

fn fetch(plan: &SourcesPlan) -> Result<(), SourcesError> {
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
            return update(plan);
        }
        Strategy::Fetch => {
            make_directory(&plan.project)?;
            return update(plan);
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

fn update(plan: &SourcesPlan) -> Result<(), SourcesError> {
    let before = repository::prepare(plan)?;
    external::write(plan, &[])?;
    match try_update(plan, before) {
        Err(failure) if before == RepositoryOrigin::Reused => {
            let why = match failure {
                SourcesError::Damaged(why) => format!(" ({why})"),
                SourcesError::Io(error) => format!(" ({error})"),
                SourcesError::Git(_) => String::new(),
            };
            println!("{YELLOW}WARNING: the repository of an earlier job cannot be used{why}; starting afresh{RESET}");
            remove::empty(&plan.project)?;
            let before = repository::prepare(plan)?;
            try_update(plan, before)
        }
        outcome => outcome,
    }
}

fn try_update(plan: &SourcesPlan, before: RepositoryOrigin) -> Result<(), SourcesError> {
    match plan.depth {
        1.. => println!("{GREEN}Fetching changes with git depth set to {}...{RESET}", plan.depth),
        _ => println!("{GREEN}Fetching changes...{RESET}"),
    }
    let known = if before == RepositoryOrigin::Created {
        println!("{GREEN}Created fresh repository.{RESET}");
        // The work tree may be that of an earlier job all the same.
        worktree::sanitise(&plan.project)?;
        None
    } else {
        Some(reuse(plan)?)
    };
    fetch_refs(plan)?;
    repository::mark(plan)?;
    check_out(plan, known.as_ref())?;
    submodules::update(plan)?;
    if plan.checkout && plan.strategy == Strategy::Fetch {
        CheckoutRecord::write(plan)?;
    }
    Ok(())
}

/// Makes what an earlier job left usable; returns the files of the work tree that are what the index says.
fn reuse(plan: &SourcesPlan) -> Result<KnownFiles, SourcesError> {
    worktree::sanitise(&plan.project)?;
    let record = CheckoutRecord::read(plan);
    record::remove_unknown_large_files(plan, &record)?;
    let known = index::rebuild(plan, &record)?;
    let known = known.ok_or_else(|| SourcesError::Damaged("its index cannot be read".to_owned()))?;
    if plan.clear_worktree {
        println!("{GREEN}Deleting all tracked and untracked files due to source fetch failure{RESET}");
        git::run(plan, &["rm", "-rf", "--ignore-unmatch", "--quiet", "."])?;
        git::run(plan, &["clean", "-ffdx", "-q"])?;
        return Ok(KnownFiles::new());
    }
    Ok(known)
}

fn fetch_refs(plan: &SourcesPlan) -> Result<(), SourcesError> {
    let agent = format!("http.userAgent={}", plan.user_agent);
    let depth = plan.depth.to_string();
    let mut arguments = vec!["-c", &agent, "fetch", "origin", "--no-recurse-submodules"];
    arguments.extend(plan.refspecs.iter().map(String::as_str));
    if plan.depth > 0 {
        arguments.extend(["--depth", &depth]);
    } else if plan.project.join(".git/shallow").exists() {
        arguments.push("--unshallow");
    }
    arguments.extend(plan.fetch_flags.iter().map(String::as_str));
    match git::run(plan, &arguments) {
        Err(SourcesError::Git(_)) if redirect::follow(plan, &[])? => git::run(plan, &arguments),
        outcome => outcome,
    }
}

fn check_out(plan: &SourcesPlan, known: Option<&KnownFiles>) -> Result<(), SourcesError> {
    if !plan.checkout {
        println!("{GREEN}Skipping Git checkout{RESET}");
        return Ok(());
    }
    let short: String = plan.sha.chars().take(8).collect();
    println!("{GREEN}Checking out {short} as detached HEAD (ref is {})...{RESET}", plan.reference);
    let check_out = ["-c", "submodule.recurse=false", "checkout", "-f", "-q", "--detach", &plan.sha];
    match known {
        // What has just come from the server was hashed as it came.
        None => git::run(plan, &check_out)?,
        Some(known) => {
            let entries = verify::commit(plan)?;
            git::run(plan, &check_out)?;
            verify::blobs(plan, entries, known)?;
        }
    }
    // A fresh repository in an empty directory has nothing to clean.
    let was_empty = plan.strategy == Strategy::Clone && known.is_none();
    if !was_empty && !plan.clean_flags.is_empty() {
        let flags = plan.clean_flags.iter().map(String::as_str);
        git::run(plan, &["clean"].into_iter().chain(flags).collect::<Vec<_>>())?;
    }
    if plan.lfs && crate::executor::shell::find_program("git-lfs").is_some() && uses_lfs(plan) {
        pull_large_files(plan)?;
    }
    Ok(())
}

fn pull_large_files(plan: &SourcesPlan) -> Result<(), SourcesError> {
    let mut command = git::command(plan, &plan.project, &["lfs", "pull"]);
    if plan.temporary_in_container.is_some() {
        for name in environment::LFS_TRACE_VARIABLES {
            command.env_remove(name);
        }
    }
    match command.status()?.code() {
        Some(0) => Ok(()),
        code => Err(SourcesError::Git(code.unwrap_or(-1))),
    }
}

/// Whether an attribute file of the checkout asks for large files: `git lfs` itself costs a multiple of this question.
fn uses_lfs(plan: &SourcesPlan) -> bool {
    let patterns = ["grep", "-q", "filter=lfs", "HEAD", "--", ":(glob)**/.gitattributes"];
    git::command(plan, &plan.project, &patterns).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}
