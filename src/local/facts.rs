//! Facts about the commit and its repository: from the repository's files if [`GitDir`] can read them, otherwise from
//! git.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use super::checkout::{Checkout, git, output};
use super::git_dir::{Commit, GitDir, effective};
use crate::pipeline::request::{CommitFacts, MergeRequest};

/// The pipeline that the user requests.
#[derive(Clone, Debug, Default)]
pub struct RequestedPipeline {
    /// `--branch`
    pub branch: Option<String>,
    /// `--tag`
    pub tag: Option<String>,
    /// `--mr SOURCE:TARGET[:IID]`
    pub merge_request: Option<(String, String, u64)>,
    /// `--before`
    pub before: Option<String>,
}

/// The settings of git that a local run uses.
const SETTINGS: [&str; 7] = [
    "remote.origin.url",
    "remote.origin.promisor",
    "remote.origin.partialclonefilter",
    "extensions.objectformat",
    "extensions.partialclone",
    "user.name",
    "user.email",
];

/// The current commit of a repository.
#[derive(Clone, Debug, Default, PartialEq)]
struct CurrentCommit {
    id: String,
    /// `Name <mail>`
    author: String,
    /// The time of the commit in ISO 8601.
    timestamp: String,
    message: String,
}

impl CurrentCommit {
    /// The format of `git log` for [`CurrentCommit::parse`].
    const LOG_FORMAT: &str = "--format=%H%x00%an <%ae>%x00%cI%x00%B";

    fn parse(log: &str) -> Self {
        // Git adds a line feed to the message.
        let mut fields = log.strip_suffix('\n').unwrap_or(log).splitn(4, '\0');
        let mut next = || fields.next().unwrap_or_default().to_owned();
        Self { id: next(), author: next(), timestamp: next(), message: next() }
    }
}

/// The commit, the references and the settings of a repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RepositoryFacts {
    commit: CurrentCommit,
    /// Commit ids by reference.
    references: BTreeMap<String, String>,
    /// The current branch.
    head: Option<String>,
    /// The target of `origin/HEAD`.
    origin_head: Option<String>,
    settings: BTreeMap<String, String>,
    /// The references in the format of a `packed-refs` file.
    pub packed: Vec<u8>,
}

impl RepositoryFacts {
    /// Reads the facts of the checkout that contains `directory`. Fails if it has no commit.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let found = GitDir::find(directory);
        let from_files = found.as_ref().and_then(Self::from_files);
        let settings = found.as_ref().and_then(|found| found.settings(&SETTINGS));
        let (facts, settings) = match (from_files, settings) {
            (Some(facts), Some(settings)) => (Ok(facts), settings),
            (from_files, settings) => thread::scope(|scope| {
                let settings = scope.spawn(move || settings.unwrap_or_else(|| settings_from_git(directory)));
                (from_files.map_or_else(|| Self::from_git(directory), Ok), settings.join().unwrap_or_default())
            }),
        };
        Ok(Self { settings: effective(settings), ..facts? })
    }

    /// Reads commit and references from the files of the repository; `None` if only git can read them.
    pub(super) fn from_files(found: &GitDir) -> Option<Self> {
        let references = found.references()?;
        let Commit { author, timestamp, message } = found.commit(&references.commit)?;
        let commit = CurrentCommit { id: references.commit, author, timestamp, message };
        let mut facts = Self { commit, head: references.head, ..Self::default() };
        for (name, (commit, target)) in &references.by_name {
            facts.add_reference(commit, name, target.as_deref().unwrap_or_default());
        }
        Some(facts)
    }

    /// Reads commit and references with git. Fails if there is no commit.
    pub(super) fn from_git(directory: &Path) -> Result<Self, String> {
        let run = |arguments: &[&str]| {
            let mut command = git(directory);
            command.args(arguments);
            output(command)
        };
        let (log, references) = thread::scope(|scope| {
            let log = scope.spawn(|| run(&["-c", "log.showSignature=false", "log", "-1", CurrentCommit::LOG_FORMAT]));
            let format = "--format=%(HEAD)%00%(objectname)%00%(refname)%00%(symref)";
            let references = run(&["for-each-ref", format, "refs/heads", "refs/tags", "refs/remotes"]);
            let died = |_| Err("internal error: a thread that runs git panicked".to_owned());
            (log.join().unwrap_or_else(died), references)
        });
        let log = log.map_err(|why| match why.contains("does not have any commits") {
            true => "the repository has no commit yet; create one first".to_owned(),
            false => why,
        })?;
        let commit = CurrentCommit::parse(&String::from_utf8_lossy(&log));
        let mut facts = Self { commit, ..Self::default() };
        for line in String::from_utf8_lossy(&references?).lines() {
            let mut fields = line.split('\0');
            let mut next = || fields.next().unwrap_or_default();
            let (head, commit, name, target) = (next(), next(), next(), next());
            if head == "*" {
                facts.head = name.strip_prefix("refs/heads/").map(str::to_owned);
            }
            facts.add_reference(commit, name, target);
        }
        Ok(facts)
    }

    fn add_reference(&mut self, commit: &str, name: &str, target: &str) {
        if name == "refs/remotes/origin/HEAD" {
            self.origin_head = target.strip_prefix("refs/remotes/origin/").map(str::to_owned);
        }
        // A `packed-refs` file cannot contain symbolic references.
        if target.is_empty() {
            self.packed.extend_from_slice(format!("{commit} {name}\n").as_bytes());
        }
        self.references.insert(name.to_owned(), commit.to_owned());
    }

    /// A value from git's configuration.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// Whether the repository is a partial clone, which lacks objects until git fetches them.
    pub fn is_partial_clone(&self) -> bool {
        self.setting("remote.origin.promisor").is_some() || self.setting("extensions.partialclone").is_some()
    }

    /// The id of the current commit.
    pub fn commit(&self) -> &str {
        &self.commit.id
    }

    /// The facts about the commit for planning. Fails if a requested branch, tag or commit does not exist.
    pub fn commit_facts(
        &self,
        checkout: &Checkout,
        wanted: &RequestedPipeline,
        pipeline_id: u64,
    ) -> Result<CommitFacts, String> {
        let CurrentCommit { id: sha, author, timestamp, message } = self.commit.clone();
        let branch = match (&wanted.merge_request, &wanted.branch, &wanted.tag) {
            (Some((source, ..)), ..) => Some(source.clone()),
            (None, Some(branch), _) => Some(branch.clone()),
            (None, None, Some(_)) => None,
            (None, None, None) => self.head.clone().or_else(|| self.branch_at(&sha)),
        };
        let default_branch = self.default_branch();
        let before = match &wanted.before {
            Some(before) => Some(resolve(checkout, before)?),
            None => branch.as_ref().and_then(|branch| self.pushed_commit(branch, &sha)),
        };
        let tag_message = match wanted.tag.as_deref() {
            Some(tag) if self.references.contains_key(&format!("refs/tags/{tag}")) => tag_message(checkout, tag),
            _ => String::new(),
        };
        Ok(CommitFacts {
            protected: branch.as_ref() == Some(&default_branch),
            sha,
            message: message.trim_end_matches('\n').to_owned(),
            author,
            timestamp,
            branch,
            tag: wanted.tag.clone(),
            tag_message,
            default_branch,
            before,
            remote: self.setting("remote.origin.url").map(str::to_owned),
            directory: project_slug(&checkout.root.file_name().unwrap_or_default().to_string_lossy()),
            user_name: self.setting("user.name").unwrap_or_default().to_owned(),
            user_email: self.setting("user.email").unwrap_or_default().to_owned(),
            pipeline_id,
            created_at: now_in_seconds(),
        })
    }

    /// The default branch: the target of `origin/HEAD`, else `main` or `master`, else the current branch.
    fn default_branch(&self) -> String {
        let exists = |name: &&str| self.references.contains_key(&format!("refs/heads/{name}"));
        self.origin_head
            .clone()
            .or_else(|| ["main", "master"].into_iter().find(exists).map(str::to_owned))
            .or_else(|| self.head.clone())
            .unwrap_or_else(|| "main".to_owned())
    }

    /// A branch whose head is this commit, for a checkout with a detached HEAD.
    fn branch_at(&self, sha: &str) -> Option<String> {
        let at = |prefix: &str| {
            let mut found = self.references.iter().filter(|(_, commit)| *commit == sha);
            found.find_map(|(name, _)| name.strip_prefix(prefix).filter(|name| *name != "HEAD").map(str::to_owned))
        };
        at("refs/heads/").or_else(|| at("refs/remotes/origin/"))
    }

    /// The commit of the remote-tracking branch; `None` if it is the current commit.
    fn pushed_commit(&self, branch: &str, sha: &str) -> Option<String> {
        self.references.get(&format!("refs/remotes/origin/{branch}")).filter(|commit| *commit != sha).cloned()
    }

    /// The requested merge request.
    pub fn merge_request(&self, checkout: &Checkout, wanted: &RequestedPipeline) -> Option<MergeRequest> {
        let (source, target, iid) = wanted.merge_request.clone()?;
        let find = |prefix: &str| self.references.get(&format!("{prefix}{target}")).cloned();
        let target_sha = find("refs/remotes/origin/").or_else(|| find("refs/heads/")).unwrap_or_default();
        let mut command = git(&checkout.root);
        command.args(["merge-base", "HEAD", &target_sha]);
        let base = if target_sha.is_empty() { Vec::new() } else { output(command).unwrap_or_default() };
        let title = self.commit.message.lines().next().unwrap_or_default();
        Some(MergeRequest {
            iid,
            source,
            target,
            diff_base_sha: String::from_utf8_lossy(&base).trim().to_owned(),
            title: title.to_owned(),
            labels: Vec::new(),
        })
    }
}

/// The current time without fractions of a second, as GitLab writes times.
pub fn now_in_seconds() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string()
}

fn settings_from_git(directory: &Path) -> Vec<(String, String)> {
    let mut command = git(directory);
    command.args(["config", "--get-regexp", &format!("^({})$", SETTINGS.join("|").replace('.', "\\."))]);
    // Git also fails if none of the keys is set.
    let text = String::from_utf8_lossy(&output(command).unwrap_or_default()).into_owned();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Resolves a name to a commit id.
pub fn resolve(checkout: &Checkout, name: &str) -> Result<String, String> {
    let mut command = git(&checkout.root);
    command.args(["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{name}^{{commit}}")]);
    let found = output(command).map_err(|_| format!("`{name}` is not a commit of this repository"))?;
    Ok(String::from_utf8_lossy(&found).trim().to_owned())
}

fn tag_message(checkout: &Checkout, tag: &str) -> String {
    let mut command = git(&checkout.root);
    command.args(["for-each-ref", "--format=%(objecttype)%00%(contents)", &format!("refs/tags/{tag}")]);
    let answer = String::from_utf8_lossy(&output(command).unwrap_or_default()).into_owned();
    let message = answer.split_once('\0').filter(|(kind, _)| *kind == "tag").map(|(_, message)| message);
    message.unwrap_or_default().trim_end().to_owned()
}

/// The path of the project on its server, or the name of its directory.
pub fn project_path(facts: &CommitFacts) -> String {
    let url = facts.remote.as_deref().unwrap_or_default();
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map(|(_, path)| path),
        None => url.split_once(':').map(|(_, path)| path),
    };
    let path = path.unwrap_or_default().trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    if path.is_empty() { facts.directory.clone() } else { path.to_owned() }
}

/// The last part of the project's path, which is the name of its directory in the builds directory.
pub fn project_name(facts: &CommitFacts) -> String {
    let path = project_path(facts);
    project_slug(path.rsplit('/').next().unwrap_or(&path))
}

/// The longest name of a directory in the builds directory, in bytes.
const MAX_SLUG: usize = 100;

/// The path that GitLab would give to a project of this name: only ASCII letters, digits, `_`, `-` and `.`. Other
/// characters break scripts, mounts (`:`) and lists of paths.
pub fn project_slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '-' };
    let slug: String = name.chars().map(plain).take(MAX_SLUG).collect();
    let slug = slug.trim_matches(['-', '.']);
    if slug.is_empty() { "project".to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_get_the_paths_that_gitlab_gives_to_projects() {
        for (name, expected) in [
            ("my-app_1.x", "my-app_1.x"),
            ("with space", "with-space"),
            ("a:b\n$c", "a-b--c"),
            (".dot.", "dot"),
            ("..", "project"),
            ("\u{fc}", "project"),
            ("", "project"),
        ] {
            assert_eq!(project_slug(name), expected, "{name:?}");
        }
        assert_eq!(project_slug(&"x".repeat(255)).len(), MAX_SLUG);
    }
}
