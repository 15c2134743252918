//! What a caller gives to [`super::plan()`]: the kind of pipeline, facts from git, values, and access to files.

use std::sync::Arc;

use super::syntax::Node;

/// The largest file that is read as configuration, as on GitLab.
pub const FILE_LIMIT: usize = 2 << 20;

/// A question to the planner: which pipeline does this configuration give for this commit?
pub struct Request<'a> {
    /// Where the configuration begins.
    pub content: Content,
    /// What starts the pipeline.
    pub source: Source,
    /// The commit and its repository.
    pub facts: Facts,
    /// Variables of the pipeline itself (command line, trigger, parent pipeline): they win over all others.
    pub pipeline_variables: Vec<GivenVariable>,
    /// Variables of project, group and instance, those of the nearest level first.
    pub project_variables: Vec<GivenVariable>,
    /// Predefined variables that only the caller knows (`CI_PROJECT_DIR`, `CI_RUNNER_VERSION`, …). They win over the
    /// planner's own predefined ones and lose against everything else.
    pub predefined: Vec<(String, String)>,
    /// Values for `spec:inputs` of the first file.
    pub inputs: Vec<GivenInput>,
    /// Unknown keywords are warnings instead of errors.
    pub lax: bool,
    /// Files and fetches.
    pub sources: &'a dyn Sources,
}

/// Where the configuration begins.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file of the project; GitLab's default is `.gitlab-ci.yml`.
    File(String),
    /// The includes of a trigger job, from [`super::plan::Trigger::Child`]: the configuration of a child pipeline.
    Includes {
        /// A list of mappings.
        include: Node,
        /// File names of the parent's plan, which the origins in `include` index.
        files: Vec<Arc<str>>,
    },
}

/// What starts a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// `CI_PIPELINE_SOURCE`: `push`, `schedule`, `web`, `merge_request_event`, `parent_pipeline`, …
    pub name: String,
    /// Set for `merge_request_event`.
    pub merge_request: Option<MergeRequest>,
}

/// A merge request as a pipeline sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MergeRequest {
    /// The number within the project.
    pub iid: u64,
    /// The source branch.
    pub source: String,
    /// The target branch.
    pub target: String,
    /// The tip of the target branch; empty when unknown.
    pub target_sha: String,
    /// The merge base of source and target; empty when unknown.
    pub diff_base_sha: String,
    /// The title.
    pub title: String,
    /// Names of labels.
    pub labels: Vec<String>,
}

/// What git says about the commit and its repository.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The full commit id.
    pub sha: String,
    /// The whole commit message.
    pub message: String,
    /// `Name <mail>`
    pub author: String,
    /// ISO 8601, as `git log --format=%cI` prints it.
    pub timestamp: String,
    /// The branch of a branch pipeline. In a merge request pipeline the source branch.
    pub branch: Option<String>,
    /// The tag of a tag pipeline.
    pub tag: Option<String>,
    /// The message of an annotated tag.
    pub tag_message: String,
    /// The default branch of the project.
    pub default_branch: String,
    /// The commit that a push is compared with; `None` for a new branch.
    pub before: Option<String>,
    /// Whether the ref is protected.
    pub protected: bool,
    /// The URL of `origin`, if there is one.
    pub remote: Option<String>,
    /// The name of the project's directory, for a repository without a remote.
    pub directory: String,
    /// `user.name` of git's configuration.
    pub user_name: String,
    /// `user.email` of git's configuration.
    pub user_email: String,
    /// Identifies the pipeline, above 0.
    pub pipeline_id: u64,
    /// When the pipeline was made, ISO 8601.
    pub created_at: String,
}

/// A variable that the caller gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenVariable {
    /// The name.
    pub key: String,
    /// The value, or the content of the file for a `file` variable.
    pub value: String,
    /// The job gets the path of a file with the value.
    pub file: bool,
    /// The value must not appear in a log.
    pub masked: bool,
    /// References to other variables in the value are not expanded.
    pub raw: bool,
    /// Only jobs with a matching environment get it (`review/*`); empty is the same as `*`.
    pub environment_scope: String,
}

/// A value for an input.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenInput {
    /// The name of the input.
    pub key: String,
    /// The value.
    pub value: InputValue,
}

/// How an input's value was given.
#[derive(Clone, Debug, PartialEq)]
pub enum InputValue {
    /// Text from a command line: it is converted to the type that the file declares.
    Text(String),
    /// A typed value, which must have the declared type.
    Typed(serde_json::Value),
}

/// A tree of files that configuration can come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tree {
    /// The project itself: the commit with the edits of tracked files.
    Project,
    /// A commit of another project.
    Commit {
        /// Its path, such as `group/tools`.
        project: Arc<str>,
        /// The commit id, or whatever identifies the tree for the implementation of [`Sources`].
        sha: Arc<str>,
    },
}

/// A version of a component project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentVersion {
    /// Its files.
    pub tree: Tree,
    /// The commit id.
    pub sha: String,
    /// What the reference resolved to, such as `1.2.3`; the reference itself when it is no release.
    pub version: String,
}

/// What changed files are compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// The previous tip of the branch ([`Facts::before`]).
    Before(String),
    /// The merge base of HEAD and this ref or commit.
    MergeBase(String),
}

/// Why something could not be read or fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceError {
    /// It does not exist: the file, the project, the ref, the version.
    Missing(String),
    /// It could not be read or fetched: what failed and why.
    Failed(String),
}

/// Files and fetches. The planner does no I/O of its own. An implementation must refuse what is no regular file, and
/// may stop reading at [`FILE_LIMIT`] + 1 bytes.
pub trait Sources {
    /// The content of a file, by a path relative to the root of the tree.
    fn read(&self, tree: &Tree, path: &str) -> Result<Vec<u8>, SourceError>;

    /// All files of a tree, relative to its root; of the project those that git tracks.
    fn files(&self, tree: &Tree) -> Result<Arc<Vec<String>>, SourceError>;

    /// Another project's tree; without `reference` at its HEAD.
    fn project(&self, project: &str, reference: Option<&str>) -> Result<Tree, SourceError>;

    /// The body of a URL.
    fn remote(&self, url: &str) -> Result<Vec<u8>, SourceError>;

    /// A template that GitLab ships.
    fn template(&self, name: &str) -> Result<Vec<u8>, SourceError>;

    /// A version of a component project on `host`: a commit, tag, branch, `~latest`, `1` or `1.2`.
    fn component(&self, host: &str, project: &str, reference: &str) -> Result<ComponentVersion, SourceError>;

    /// A file from the artifacts of a job of the parent pipeline (`trigger:include:artifact`).
    fn artifact(&self, job: &str, path: &str) -> Result<Vec<u8>, SourceError>;

    /// Files that differ between HEAD (with the edits of tracked files) and a base.
    fn changed(&self, base: &Base) -> Result<Arc<Vec<String>>, SourceError>;

    /// An identifier of a file's content in the project, for `cache:key:files`; `None` when there is no such file.
    fn content_id(&self, path: &str) -> Result<Option<String>, SourceError>;

    /// The last commit that touched a file of the project, for `cache:key:files_commits`.
    fn last_commit(&self, path: &str) -> Result<Option<String>, SourceError>;
}
