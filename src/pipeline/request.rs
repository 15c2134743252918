//! The input of [`super::plan()`]: the kind of pipeline, facts from git, variables, and access to files.

use std::sync::Arc;

use super::ahead::ParsedAhead;
use super::syntax::Node;

/// The request to plan the pipeline of one configuration for one commit.
pub struct PlanRequest<'a> {
    pub start: ConfigurationStart,
    pub source: PipelineSource,
    pub facts: CommitFacts,
    /// Variables of the pipeline itself (command line, trigger, parent pipeline). They override all others.
    pub pipeline_variables: Vec<GivenVariable>,
    /// Variables of project, group and instance; the nearest level first.
    pub project_variables: Vec<GivenVariable>,
    /// Predefined variables that only the caller knows (`CI_PROJECT_DIR`, `CI_RUNNER_VERSION`, …). They override the
    /// planner's own predefined variables; any other variable overrides them.
    pub predefined: Vec<(String, String)>,
    /// Values for `spec:inputs` of the first file.
    pub inputs: Vec<GivenInput>,
    pub unknown_keywords: UnknownKeywords,
    /// Whether the plan contains the reason why the rules of each job matched.
    pub explains: bool,
    /// Access to files and to other projects.
    pub sources: &'a dyn Sources,
}

/// How planning reports unknown keywords.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownKeywords {
    #[default]
    AreErrors,
    AreWarnings,
}

/// The configuration file of a project, by GitLab's default.
pub const DEFAULT_FILE: &str = ".gitlab-ci.yml";

/// Where the configuration starts.
#[derive(Clone, Debug)]
pub enum ConfigurationStart {
    /// A file of the project; GitLab's default is `.gitlab-ci.yml`.
    File(String),
    /// The includes of a trigger job, from [`super::plan::Trigger::Child`]: the configuration of a child pipeline.
    Includes {
        /// A list of mappings.
        include: Node,
        /// File names of the parent's plan; the origins in `include` are indexes into this list.
        files: Vec<Arc<str>>,
    },
}

/// The event that starts the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSource {
    /// `CI_PIPELINE_SOURCE`: `push`, `schedule`, `web`, `merge_request_event`, `parent_pipeline`, …
    pub name: String,
    /// Set for `merge_request_event`.
    pub merge_request: Option<MergeRequest>,
}

/// The merge request of a merge request pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MergeRequest {
    /// The number of the merge request within the project.
    pub iid: u64,
    /// The source branch.
    pub source: String,
    /// The target branch.
    pub target: String,
    /// The merge base of source and target; empty if unknown.
    pub diff_base_sha: String,
    pub title: String,
    pub labels: Vec<String>,
}

/// Facts from git about the commit and its repository.
#[derive(Clone, Debug, Default)]
pub struct CommitFacts {
    /// The full commit id.
    pub sha: String,
    /// The whole commit message.
    pub message: String,
    /// `Name <mail>`
    pub author: String,
    /// ISO 8601, as `git log --format=%cI` prints it.
    pub timestamp: String,
    /// The branch of a branch pipeline; the source branch in a merge request pipeline.
    pub branch: Option<String>,
    /// The tag of a tag pipeline.
    pub tag: Option<String>,
    /// The message of an annotated tag.
    pub tag_message: String,
    pub default_branch: String,
    /// The commit to compare a push with; `None` for a new branch.
    pub before: Option<String>,
    /// Whether the ref is protected.
    pub protected: bool,
    /// The URL of `origin`.
    pub remote: Option<String>,
    /// The name of the project's directory, for a repository without a remote.
    pub directory: String,
    /// `user.name` of git's configuration.
    pub user_name: String,
    /// `user.email` of git's configuration.
    pub user_email: String,
    /// The id of the pipeline, at least 1.
    pub pipeline_id: u64,
    /// When the pipeline was created, ISO 8601.
    pub created_at: String,
}

/// A variable that the caller gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenVariable {
    pub key: String,
    /// The value, or the content of the file for a `file` variable.
    pub value: String,
    /// The job gets the path of a file that contains the value.
    pub file: bool,
    /// The value must not appear in a log.
    pub masked: bool,
    /// References to other variables in the value are not expanded.
    pub raw: bool,
    /// Only jobs with a matching environment get the variable (`review/*`); empty is the same as `*`.
    pub environment_scope: String,
}

/// A value for an input.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenInput {
    pub key: String,
    pub value: InputValue,
}

/// The value of an input.
#[derive(Clone, Debug, PartialEq)]
pub enum InputValue {
    /// Text from the command line, to be converted to the declared type.
    Text(String),
    /// A typed value, which must have the declared type.
    Typed(Node),
}

/// A tree of files that can contain configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceTree {
    /// The project itself: the commit with the uncommitted changes to tracked files.
    Project,
    /// A commit of another project.
    Commit {
        /// The path of the project, such as `group/tools`.
        project: Arc<str>,
        /// The commit id, or any other id by which the implementation of [`Sources`] identifies the tree.
        sha: Arc<str>,
    },
}

/// A version of a component project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentVersion {
    pub tree: SourceTree,
    pub sha: String,
    /// The version that the reference resolved to, such as `1.2.3`; the reference itself if it is not a release.
    pub version: String,
}

/// The base of a comparison for changed files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// The previous tip of the branch ([`CommitFacts::before`]).
    Before(String),
    /// The merge base of HEAD and this ref or commit.
    MergeBase(String),
}

/// Why a file, project or URL could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceError {
    /// The file, the project, the ref or the version does not exist.
    Missing(String),
    /// Reading failed: the operation and the cause.
    Failed(String),
}

/// Access to files and to other projects; the planner does no I/O of its own. An implementation must refuse anything
/// that is not a regular file, and may stop reading after [`MAX_FILE_SIZE`](super::syntax::MAX_FILE_SIZE) + 1 bytes.
pub trait Sources {
    /// A file of the project that the caller has parsed ahead.
    fn parsed(&self) -> Option<&ParsedAhead> {
        None
    }

    /// Whether the caller can run pipelines of this other project.
    fn runs_pipelines_of(&self, _project: &str) -> bool {
        false
    }

    /// The content of a file. `path` is relative to the root of the tree.
    fn read(&self, tree: &SourceTree, path: &str) -> Result<Vec<u8>, SourceError>;

    /// All files of a tree, relative to its root. For the project: the files that git tracks.
    fn files(&self, tree: &SourceTree) -> Result<Arc<Vec<String>>, SourceError>;

    /// The tree of another project at `reference`, or at its HEAD.
    fn project(&self, project: &str, reference: Option<&str>) -> Result<SourceTree, SourceError>;

    /// The body of the response for a URL.
    fn remote(&self, url: &str) -> Result<Vec<u8>, SourceError>;

    /// A template that GitLab ships.
    fn template(&self, name: &str) -> Result<Vec<u8>, SourceError>;

    /// A version of a component project on `host`. `reference` is a commit, tag, branch, `~latest`, `1` or `1.2`.
    fn component(&self, host: &str, project: &str, reference: &str) -> Result<ComponentVersion, SourceError>;

    /// A file from the artifacts of a job of the parent pipeline (`trigger:include:artifact`).
    fn artifact(&self, job: &str, path: &str) -> Result<Vec<u8>, SourceError>;

    /// The files that differ between HEAD (with uncommitted changes to tracked files) and a base.
    fn changed(&self, base: &Base) -> Result<Arc<Vec<String>>, SourceError>;

    /// An id of the content of a project file, for `cache:key:files`; `None` if the file does not exist.
    fn content_id(&self, path: &str) -> Result<Option<String>, SourceError>;

    /// The last commit that changed a project file, for `cache:key:files_commits`.
    fn last_commit(&self, path: &str) -> Result<Option<String>, SourceError>;
}
