//! Sources: git, on ground that an earlier job may have prepared.
//!
//! A plan is made from the payload; its work runs in a child of the shim with the job user's rights, and everything it
//! prints goes into the job's log. The job's token stands in one file outside the repository, which `.git/config`
//! includes: so the job's own `git fetch` works, and neither the repository, a remote nor an argument holds it.

mod harmless;
mod plan;
pub mod remove;
mod repository;

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

pub use plan::{Place, plan, strategy};
use repository::Before;

const GREEN: &str = "\x1b[32;1m";
const YELLOW: &str = "\x1b[0;33m";
const RESET: &str = "\x1b[0;m";

/// Options that hold for every git command: nothing that stands in the work tree or its repository is run.
const SAFE: [&str; 8] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "core.untrackedCache=false",
];

/// What git's configuration for all repositories of a job is called, in its temporary directory.
pub const GLOBAL_CONFIG: &str = "mayfly.global.gitconfig";

/// The job's own settings of git, in its temporary directory.
const EXTERNAL_CONFIG: &str = "mayfly.gitconfig";

/// Certificates for the server, in the same place.
const CA_CERTIFICATES: &str = "mayfly.ca.crt";

/// Answers git's question for a password from the environment (gitcredentials(7)).
const LOGIN_HELPER: &str = "!f() { [ \"$1\" != get ] || echo \"password=$CI_JOB_TOKEN\"; }; f";

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
pub struct Plan {
    /// How.
    pub strategy: Strategy,
    /// `CI_PROJECT_DIR`.
    pub project: PathBuf,
    /// `<project directory>.tmp`.
    pub temporary: PathBuf,
    /// The same as the job sees it, when it runs in a container.
    pub seen: Option<PathBuf>,
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
enum Failure {
    /// A git command ended with this status.
    Git(i32),
    /// The directory could not be worked on.
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Plan {
    fn external_config(&self) -> PathBuf {
        self.temporary.join(EXTERNAL_CONFIG)
    }

    /// Where the job's own git finds a file of the temporary directory.
    fn seen(&self, name: &str) -> PathBuf {
        self.seen.as_ref().unwrap_or(&self.temporary).join(name)
    }

    /// Options for git beside a container: what the job's own git finds at its place is found at ours, and files belong
    /// to whom they belong.
    fn beside_container(&self) -> Vec<String> {
        if self.seen.is_none() {
            return Vec::new();
        }
        let mut options = vec![format!("include.path={}", self.external_config().display())];
        if self.ca_certificates.is_some() {
            let (host, file) = (crate::http::origin(&self.url), self.temporary.join(CA_CERTIFICATES));
            options.push(format!("http.{host}.sslCAInfo={}", file.display()));
        }
        options.push("safe.directory=*".to_owned());
        options.into_iter().flat_map(|option| ["-c".to_owned(), option]).collect()
    }
}

/// Does the work; returns the exit status of the stage.
pub fn run(plan: &Plan) -> i32 {
    match fetch(plan) {
        Ok(()) => 0,
        Err(Failure::Git(code)) => code,
        Err(Failure::Io(error)) => {
            eprintln!("cannot prepare {}: {error}", plan.project.display());
            1
        }
    }
}

/// Leaves the project directory as it was before the job, as far as its strategy allows (`FF_ENABLE_JOB_CLEANUP`).
pub fn clean_up(plan: &Plan) -> i32 {
    match tidy(plan) {
        Ok(()) => 0,
        Err(Failure::Git(code)) => code,
        Err(Failure::Io(error)) => {
            eprintln!("cannot clean up {}: {error}", plan.project.display());
            1
        }
    }
}

fn tidy(plan: &Plan) -> Result<(), Failure> {
    match plan.strategy {
        Strategy::None => Ok(()),
        Strategy::Clone | Strategy::Empty => Ok(remove::remove(&plan.project)?),
        Strategy::Fetch => match repository::prepare(plan)? {
            Before::Fresh => Ok(remove::empty(&plan.project)?),
            Before::Reused => {
                let flags = plan.clean_flags.iter().map(String::as_str);
                git(plan, &["clean"].into_iter().chain(flags).collect::<Vec<_>>())?;
                git(plan, &["reset", "--hard", "--quiet"])
            }
        },
    }
}

fn fetch(plan: &Plan) -> Result<(), Failure> {
    if plan.login.is_some() {
        write_external_config(plan)?;
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

fn update(plan: &Plan) -> Result<(), Failure> {
    let before = repository::prepare(plan)?;
    write_external_config(plan)?;
    match try_update(plan, before) {
        Err(_) if before == Before::Reused => {
            println!("{YELLOW}WARNING: the repository of an earlier job cannot be used; starting afresh{RESET}");
            remove::empty(&plan.project)?;
            let before = repository::prepare(plan)?;
            try_update(plan, before)
        }
        outcome => outcome,
    }
}

fn try_update(plan: &Plan, before: Before) -> Result<(), Failure> {
    match plan.depth {
        1.. => println!("{GREEN}Fetching changes with git depth set to {}...{RESET}", plan.depth),
        _ => println!("{GREEN}Fetching changes...{RESET}"),
    }
    if before == Before::Fresh {
        println!("{GREEN}Created fresh repository.{RESET}");
    } else if plan.clear_worktree {
        println!("{GREEN}Deleting all tracked and untracked files due to source fetch failure{RESET}");
        git(plan, &["rm", "-rf", "--ignore-unmatch", "--quiet", "."])?;
        git(plan, &["clean", "-ffdx", "-q"])?;
    }
    fetch_refs(plan)?;
    repository::mark(plan)?;
    check_out(plan, before)?;
    submodules(plan)
}

fn fetch_refs(plan: &Plan) -> Result<(), Failure> {
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
    git(plan, &arguments)
}

fn check_out(plan: &Plan, before: Before) -> Result<(), Failure> {
    if !plan.checkout {
        println!("{GREEN}Skipping Git checkout{RESET}");
        return Ok(());
    }
    let short: String = plan.sha.chars().take(8).collect();
    println!("{GREEN}Checking out {short} as detached HEAD (ref is {})...{RESET}", plan.reference);
    git(plan, &["-c", "submodule.recurse=false", "checkout", "-f", "-q", "--detach", &plan.sha])?;
    // A fresh repository in an empty directory has nothing to clean.
    let was_empty = plan.strategy == Strategy::Clone && before == Before::Fresh;
    if !was_empty && !plan.clean_flags.is_empty() {
        let flags = plan.clean_flags.iter().map(String::as_str);
        git(plan, &["clean"].into_iter().chain(flags).collect::<Vec<_>>())?;
    }
    if plan.lfs && crate::executor::shell::find_program("git-lfs").is_some() && uses_lfs(plan) {
        git(plan, &["lfs", "pull"])?;
    }
    Ok(())
}

/// Whether an attribute file of the checkout asks for large files: `git lfs` itself costs a multiple of this question.
fn uses_lfs(plan: &Plan) -> bool {
    let patterns = ["grep", "-q", "filter=lfs", "HEAD", "--", ":(glob)**/.gitattributes"];
    command(plan, &patterns).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The submodules of the checkout, as paths below the project directory.
fn submodule_paths(plan: &Plan) -> Result<Vec<PathBuf>, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let output = command(plan, &["ls-files", "--stage", "-z"]).stdout(Stdio::piped()).output()?;
    let submodule = |entry: &[u8]| {
        let path = entry.strip_prefix(b"160000 ").and_then(|rest| rest.splitn(2, |byte| *byte == b'\t').nth(1))?;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
        path.components().all(|part| matches!(part, std::path::Component::Normal(_))).then_some(path)
    };
    Ok(output.stdout.split(|byte| *byte == 0).filter_map(submodule).collect())
}

fn submodules(plan: &Plan) -> Result<(), Failure> {
    if plan.checkout && plan.project.join(".gitmodules").symlink_metadata().is_ok() {
        repository::empty_submodules(&plan.project, submodule_paths(plan)?.iter().map(PathBuf::as_path))?;
    }
    let Some(wanted) = plan.submodules.as_ref().filter(|_| plan.checkout) else {
        println!("{GREEN}Skipping Git submodules setup{RESET}");
        return Ok(());
    };
    let how = if wanted.recursive { " recursively" } else { "" };
    let depth = if wanted.depth > 0 { format!(" with git depth set to {}", wanted.depth) } else { String::new() };
    println!("{GREEN}Updating/initializing submodules{how}{depth}...{RESET}");
    repository::forget_submodules(&plan.project)?;
    let paths: Vec<&str> = wanted.paths.iter().map(String::as_str).collect();
    let with_paths = |words: &[&'static str]| -> Vec<&str> {
        let recursive = (wanted.recursive && words.contains(&"sync")).then_some("--recursive");
        words.iter().copied().chain(recursive).chain(["--"]).chain(paths.iter().copied()).collect()
    };
    git(plan, &with_paths(&["submodule", "init"]))?;
    git(plan, &with_paths(&["submodule", "sync"]))?;
    let include = format!("include.path={}", plan.external_config().display());
    let number = wanted.depth.to_string();
    let mut update = vec!["-c", &include, "submodule", "update", "--init", "--force"];
    update.extend(wanted.recursive.then_some("--recursive"));
    if wanted.depth > 0 {
        update.extend(["--depth", &number]);
    }
    update.extend(wanted.update_flags.iter().map(String::as_str));
    update.push("--");
    update.extend(paths.iter().copied());
    if git(plan, &update).is_err() {
        println!("{YELLOW}Updating submodules failed. Retrying...{RESET}");
        git(plan, &with_paths(&["submodule", "sync"]))?;
        git(plan, &update)?;
    }
    println!("{GREEN}Updated submodules{RESET}");
    let recursive = wanted.recursive.then_some("--recursive");
    let each = |command: &'static str| -> Vec<&str> {
        ["submodule", "--quiet", "foreach"].into_iter().chain(recursive).chain([command]).collect()
    };
    git(plan, &each("git clean -ffdxq && git reset --hard --quiet"))?;
    println!("{GREEN}Configuring submodules to use parent git credentials...{RESET}");
    let configure = format!("git config --replace-all include.path '{}'", plan.seen(EXTERNAL_CONFIG).display());
    git(plan, &["submodule", "--quiet", "foreach", "--recursive", &configure])
}

/// Runs git; its output goes where ours goes.
fn git(plan: &Plan, arguments: &[&str]) -> Result<(), Failure> {
    let status = command(plan, arguments).status()?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(Failure::Git(code.unwrap_or(-1))),
    }
}

fn command(plan: &Plan, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(SAFE)
        .args(plan.beside_container())
        .args(arguments)
        .current_dir(&plan.project)
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GCM_INTERACTIVE", "Never")
        .env("GIT_LFS_SKIP_SMUDGE", "1")
        .env("GIT_CEILING_DIRECTORIES", plan.project.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::null());
    command
}

/// The job's own settings, outside the repository: whom to log in as, and what to trust.
fn write_external_config(plan: &Plan) -> io::Result<()> {
    use repository::value;
    make_temporary_directory(plan)?;
    let mut text = String::new();
    if !plan.correlation_id.is_empty() {
        let header = format!("X-Gitaly-Correlation-ID: {}", plan.correlation_id);
        text.push_str(&format!("[http]\n\textraHeader = {}\n", value(&header)));
    }
    text.push_str("[transfer]\n\tbundleURI = true\n");
    if let Some(certificates) = &plan.ca_certificates {
        write_private(plan, CA_CERTIFICATES, certificates)?;
        let (host, path) = (crate::http::origin(&plan.url), plan.seen(CA_CERTIFICATES));
        text.push_str(&format!("[http {}]\n\tsslCAInfo = {}\n", value(&host), value(&path.display().to_string())));
    }
    for (from, to) in &plan.rewrites {
        text.push_str(&format!("[url {}]\n\tinsteadOf = {}\n", value(to), value(from)));
    }
    if let Some(host) = &plan.login {
        // An empty helper makes git forget those of the machine, which might keep the token.
        text.push_str(&format!(
            "[credential {}]\n\thelper =\n\thelper = {}\n\tusername = gitlab-ci-token\n",
            value(host),
            value(LOGIN_HELPER)
        ));
        let global = format!(
            "[include]\n\tpath = ~/.config/git/config\n[include]\n\tpath = ~/.gitconfig\n[include]\n\tpath = {}\n",
            value(&plan.seen(EXTERNAL_CONFIG).display().to_string())
        );
        write_private(plan, GLOBAL_CONFIG, &global)?;
    }
    write_private(plan, EXTERNAL_CONFIG, &text)
}

/// The temporary directory, which only its owner enters, also where something else stands. Beside a container it is made
/// before, for whomever the container runs as.
fn make_temporary_directory(plan: &Plan) -> io::Result<()> {
    make_directory(&plan.temporary)?;
    if plan.seen.is_some() {
        return Ok(());
    }
    fs::set_permissions(&plan.temporary, std::os::unix::fs::PermissionsExt::from_mode(0o700))
}

/// Writes a file that only its owner reads; what stood there before is removed, be it a link. Beside a container the
/// directory keeps others away, and the container's user must read it.
fn write_private(plan: &Plan, name: &str, text: &str) -> io::Result<()> {
    use std::io::Write;
    let path = plan.temporary.join(name);
    remove::remove(&path)?;
    let mode = if plan.seen.is_some() { 0o644 } else { 0o600 };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}
