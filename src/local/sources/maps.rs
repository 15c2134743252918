//! Directories and files that replace other projects, URLs and components.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The user's mappings of other projects, URLs and components.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// `--map-project PATH[@REF]=DIR`
    pub projects: Vec<MappedProject>,
    /// `--map-remote URL=FILE`
    pub remotes: BTreeMap<String, PathBuf>,
    /// `--map-component`
    pub components: Vec<MappedComponent>,
    /// `--map-template DIR`: a directory with templates.
    pub templates: Option<PathBuf>,
}

impl Maps {
    /// The index of the map for a project: the one for this ref, else the one for all refs.
    pub fn position(&self, project: &str, reference: Option<&str>) -> Option<usize> {
        let of_project = |with: Option<&str>| {
            self.projects.iter().position(|map| map.project == project && map.reference.as_deref() == with)
        };
        reference.and_then(|_| of_project(reference)).or_else(|| of_project(None))
    }
}

/// A project that is mapped to a local directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedProject {
    /// The path of the project on the server.
    pub project: String,
    /// The mapped ref; `None` for all refs.
    pub reference: Option<String>,
    pub directory: PathBuf,
}

/// A component project that is mapped to a local directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedComponent {
    /// The path of the project on the server.
    pub project: String,
    pub directory: PathBuf,
    /// The version that the references resolve to.
    pub version: Option<String>,
    /// The commit id.
    pub sha: Option<String>,
    /// References that resolve to this version; empty for all references.
    pub references: Vec<String>,
}
