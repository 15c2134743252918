//! Makes the plan for the sources from the payload.

use std::path::PathBuf;

use super::environment;
use super::git_context::GitContext;
use super::options::{CLEAN, FETCH, SUBMODULE_UPDATE};
use super::{GitStrategy, SourcesPlan, Submodules, options};
use crate::failure::{FailureReason, JobError};
use crate::http::origin;
use crate::payload::Payload;
use crate::payload::variables::Variables;

/// Paths of the sources and settings of the runner.
#[derive(Clone, Debug)]
pub struct SourcesSettings {
    /// `CI_PROJECT_DIR`.
    pub project: PathBuf,
    /// `<project directory>.tmp`.
    pub temporary: PathBuf,
    /// The path of `temporary` in the job's container. Git runs outside the container and only fetches.
    pub temporary_in_container: Option<PathBuf>,
    /// `url` of the runner.
    pub server: String,
    /// `clone_url` of the runner.
    pub clone_url: Option<String>,
    /// Certificates for the server, in PEM format.
    pub ca_certificates: Option<String>,
    /// Id of the request that returned the job.
    pub correlation_id: String,
    /// The initial environment of a process of this job.
    pub environment: Vec<(String, String)>,
    /// Keep the token off the disk (`FF_GIT_URLS_WITHOUT_TOKENS`).
    pub without_tokens: bool,
    /// See [`SourcesPlan::record_key`].
    pub record_key: Option<String>,
    /// Whether files of an earlier job may be reused.
    pub reuse: bool,
}

/// `GIT_STRATEGY`, or the project's default.
pub fn strategy(payload: &Payload, variables: &Variables) -> Result<GitStrategy, JobError> {
    match variables.value("GIT_STRATEGY").as_deref() {
        Some("clone") => Ok(GitStrategy::Clone),
        Some("fetch") => Ok(GitStrategy::Fetch),
        Some("none") => Ok(GitStrategy::None),
        Some("empty") => Ok(GitStrategy::Empty),
        None | Some("") if payload.allow_git_fetch => Ok(GitStrategy::Fetch),
        None | Some("") => Ok(GitStrategy::Clone),
        Some(other) => {
            Err(JobError::configuration(format!("GIT_STRATEGY must be clone, fetch, none or empty, not `{other}`")))
        }
    }
}

/// Makes the plan. Errors: the job requests a setting that is not possible, or a reference is invalid.
pub fn plan(payload: &Payload, variables: &Variables, settings: SourcesSettings) -> Result<SourcesPlan, JobError> {
    let git = &payload.git_info;
    let strategy = match strategy(payload, variables)? {
        GitStrategy::Fetch if !settings.reuse => GitStrategy::Clone,
        strategy => strategy,
    };
    if matches!(strategy, GitStrategy::Clone | GitStrategy::Fetch) {
        check_references(payload)?;
    }
    let url = repository_url(payload, variables, &settings);
    let login = (settings.without_tokens && url.starts_with("http")).then(|| origin(&url));
    let token = login.is_none().then(|| job_token(payload, variables));
    let rewrites = rewrites(&url, &settings, token.as_deref(), variables);
    let (environment, ignored_settings) = git_environment(&settings, variables);
    Ok(SourcesPlan {
        strategy,
        project: settings.project,
        temporary: settings.temporary,
        temporary_in_container: settings.temporary_in_container,
        url,
        rewrites,
        login,
        refspecs: git.refspecs.clone(),
        depth: git.depth.max(0),
        sha: git.sha.clone(),
        reference: git.reference.clone(),
        object_format: if git.repo_object_format == "sha256" { "sha256" } else { "sha1" }.to_owned(),
        checkout: variables.boolean("GIT_CHECKOUT").unwrap_or(true),
        clean_flags: flags(variables, &CLEAN, "-ffdx")?,
        fetch_flags: flags(variables, &FETCH, "--prune --quiet")?,
        submodules: submodules(payload, variables)?,
        lfs: !variables.boolean("GIT_LFS_SKIP_SMUDGE").unwrap_or(false),
        ca_certificates: settings.ca_certificates,
        correlation_id: settings.correlation_id,
        user_agent: format!("mayfly {} linux/{}", env!("CARGO_PKG_VERSION"), crate::version::architecture()),
        environment,
        record_key: settings.record_key,
        settings: Vec::new(),
        user_settings: Vec::new(),
        ignored_settings,
    })
}

/// The URL of the repository, without credentials.
fn repository_url(payload: &Payload, variables: &Variables, settings: &SourcesSettings) -> String {
    match &settings.clone_url {
        Some(base) => {
            format!("{}/{}.git", base.trim_end_matches('/'), variables.value("CI_PROJECT_PATH").unwrap_or_default())
        }
        None => without_credentials(&payload.git_info.repo_url),
    }
}

/// The token with which git authenticates.
fn job_token(payload: &Payload, variables: &Variables) -> String {
    let variable = variables.value("CI_JOB_TOKEN").filter(|token| !token.is_empty());
    variable.unwrap_or_else(|| payload.token.clone())
}

/// The environment of git, and log lines about settings in the job's variables that git ignores.
fn git_environment(settings: &SourcesSettings, variables: &Variables) -> (Vec<(String, String)>, Vec<String>) {
    let context = GitContext::new(settings.temporary_in_container.as_deref());
    let (own, ignored_settings) = environment::git_variables(variables.exports(), context);
    let mut environment = settings.environment.clone();
    environment.extend(own);
    if context == GitContext::BesideContainer {
        environment::use_proxy_of_settings(&mut environment, &[]);
    }
    (environment, ignored_settings)
}

/// Checks that texts from the server that become arguments of git are not options.
fn check_references(payload: &Payload) -> Result<(), JobError> {
    let git = &payload.git_info;
    let is_odd = |text: &str| text.starts_with('-') || text.contains(|c: char| c.is_control() || c == ' ');
    let refuse = |what: &str, text: &str| {
        Err(JobError::system(format!("the job's {what} `{}` cannot be fetched", text.escape_debug())))
    };
    if git.sha.is_empty() || !git.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return refuse("commit", &git.sha);
    }
    if let Some(odd) = git.refspecs.iter().find(|refspec| refspec.is_empty() || is_odd(refspec)) {
        return refuse("refspec", odd);
    }
    let known = ["http://", "https://", "ssh://", "git@", "file://"];
    if !known.iter().any(|scheme| git.repo_url.starts_with(scheme)) || git.repo_url.contains(char::is_control) {
        return refuse("repository", &without_credentials(&git.repo_url));
    }
    Ok(())
}

/// The options of a job for a command. Errors: the job passes an option that is not allowed.
fn flags(variables: &Variables, command: &options::GitCommand, default: &str) -> Result<Vec<String>, JobError> {
    let text = variables.value(command.variable()).filter(|text| !text.trim().is_empty());
    let text = text.unwrap_or_else(|| default.to_owned());
    if text.trim() == "none" {
        return Ok(Vec::new());
    }
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    command.check(&words)?;
    Ok(words)
}

fn submodules(payload: &Payload, variables: &Variables) -> Result<Option<Submodules>, JobError> {
    let recursive = match variables.value("GIT_SUBMODULE_STRATEGY").as_deref() {
        None | Some("" | "none") => return Ok(None),
        Some("normal") => false,
        Some("recursive") => true,
        Some(other) => {
            let message = format!("GIT_SUBMODULE_STRATEGY must be none, normal or recursive, not `{other}`");
            return Err(JobError::new(FailureReason::RunnerSystemFailure, message));
        }
    };
    let words = |key: &str| -> Vec<String> {
        variables.value(key).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let paths = words("GIT_SUBMODULE_PATHS");
    if paths.iter().any(|path| path == ":(exclude)") {
        return Err(JobError::configuration("GIT_SUBMODULE_PATHS: write `:(exclude)path` without a space"));
    }
    let depth = variables.value("GIT_SUBMODULE_DEPTH").and_then(|text| text.trim().parse().ok());
    let mut update_flags = flags(variables, &SUBMODULE_UPDATE, "")?;
    let recursive = recursive || update_flags.iter().any(|flag| flag == "--recursive");
    update_flags.retain(|flag| flag != "--recursive");
    Ok(Some(Submodules { recursive, depth: depth.unwrap_or(payload.git_info.depth).max(0), paths, update_flags }))
}

/// Removes the credentials from a URL: `https://user:password@host/path`.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or_default())
}

/// The URLs that git rewrites to URLs with the job's token: the repository, everything on its server and, on request,
/// the server's SSH addresses. Without a token, only the SSH addresses.
fn rewrites(
    url: &str,
    settings: &SourcesSettings,
    token: Option<&str>,
    variables: &Variables,
) -> Vec<(String, String)> {
    let with_token = |plain: &str| {
        let (scheme, rest) = plain.split_once("://")?;
        let login = token.map(|token| format!("gitlab-ci-token:{token}@")).unwrap_or_default();
        matches!(scheme, "http" | "https").then(|| format!("{scheme}://{login}{rest}"))
    };
    let server = settings.clone_url.as_deref().unwrap_or(&settings.server);
    let server = server.trim_end_matches('/');
    let server = format!("{}/", server.strip_suffix("/ci").unwrap_or(server).trim_end_matches('/'));
    let host = format!("{}/", origin(url));
    let mut rewrites: Vec<(String, String)> = Vec::new();
    let mut add = |from: String, to: Option<String>| {
        if let Some(to) = to.filter(|to| *to != from && !rewrites.iter().any(|(present, _)| *present == from)) {
            rewrites.push((from, to));
        }
    };
    add(url.to_owned(), with_token(url));
    add(server.clone(), with_token(&server));
    add(host.clone(), with_token(&host));
    if variables.boolean("GIT_SUBMODULE_FORCE_HTTPS").unwrap_or(false) {
        let ssh_host = variables.value("CI_SERVER_SHELL_SSH_HOST").or_else(|| variables.value("CI_SERVER_HOST"));
        let ssh_port = variables.value("CI_SERVER_SHELL_SSH_PORT").unwrap_or_default();
        if let Some(ssh_host) = ssh_host.filter(|host| !host.is_empty()) {
            if matches!(ssh_port.as_str(), "" | "22") {
                add(format!("git@{ssh_host}:"), with_token(&server));
                add(format!("ssh://git@{ssh_host}/"), with_token(&server));
            } else {
                add(format!("ssh://git@{ssh_host}:{ssh_port}/"), with_token(&server));
            }
        }
    }
    rewrites
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{GitInfo, Variable};
    use std::path::Path;

    fn settings() -> SourcesSettings {
        SourcesSettings {
            project: "/b/p".into(),
            temporary: "/b/p.tmp".into(),
            temporary_in_container: None,
            server: "https://gitlab.test/sub/ci/".into(),
            clone_url: None,
            ca_certificates: None,
            correlation_id: String::new(),
            environment: Vec::new(),
            without_tokens: false,
            record_key: None,
            reuse: true,
        }
    }

    fn payload() -> Payload {
        let git_info = GitInfo {
            repo_url: "https://gitlab-ci-token:secret@gitlab.test/sub/a/b.git".into(),
            sha: "1".repeat(40),
            refspecs: vec!["+refs/heads/main:refs/remotes/origin/main".into()],
            ..GitInfo::default()
        };
        Payload { token: "secret".into(), git_info, ..Payload::default() }
    }

    #[test]
    fn the_token_is_only_in_the_rewrites() {
        let plan = plan(&payload(), &Variables::new(Path::new("/b/p.tmp")), settings()).expect("a plan");
        assert_eq!(plan.url, "https://gitlab.test/sub/a/b.git");
        let sources: Vec<&str> = plan.rewrites.iter().map(|(from, _)| from.as_str()).collect();
        assert_eq!(sources, ["https://gitlab.test/sub/a/b.git", "https://gitlab.test/sub/", "https://gitlab.test/"]);
        assert!(plan.rewrites.iter().all(|(_, to)| to.starts_with("https://gitlab-ci-token:secret@gitlab.test/")));
        assert_eq!(plan.clean_flags, ["-ffdx"]);
    }

    #[test]
    fn the_plan_has_no_token_if_git_uses_a_credential_helper() {
        let settings = SourcesSettings { without_tokens: true, ..settings() };
        let plan = plan(&payload(), &Variables::new(Path::new("/b/p.tmp")), settings).expect("a plan");
        assert_eq!(plan.login.as_deref(), Some("https://gitlab.test"));
        assert!(plan.rewrites.is_empty(), "{:?}", plan.rewrites);
    }

    #[test]
    fn refuses_references_that_look_like_options_and_unknown_values() {
        let mut odd = payload();
        odd.git_info.refspecs = vec!["--upload-pack=touch /tmp/x".into()];
        assert!(plan(&odd, &Variables::default(), settings()).is_err());
        let mut odd = payload();
        odd.git_info.sha = "HEAD".into();
        assert!(plan(&odd, &Variables::default(), settings()).is_err());
        let mut odd = payload();
        odd.git_info.repo_url = "ext::sh -c id".into();
        assert!(plan(&odd, &Variables::default(), settings()).is_err());
        let mut variables = Variables::default();
        variables.push(Variable { key: "GIT_STRATEGY".into(), value: "steal".into(), ..Variable::default() });
        assert!(plan(&payload(), &variables, settings()).is_err());
    }
}
