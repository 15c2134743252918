//! Caches the lists of files and of changed files, and matches patterns against them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pipeline::glob::Glob;
use crate::pipeline::request::{Base, SourceError, SourceTree, Sources};

/// Above this number of comparisons, GitLab treats the rule as fulfilled.
const MAX_COMPARISONS: usize = 50_000;

/// The kind of the paths in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathListKind {
    /// Changed files; a pattern with a trailing slash matches none.
    Changed,
    /// Existing files; a pattern with a trailing slash matches directories.
    Existing,
}

impl PathListKind {
    /// The keyword in a rule.
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Changed => "changes",
            Self::Existing => "exists",
        }
    }

    /// The word for explanations.
    pub fn word(self) -> &'static str {
        match self {
            Self::Changed => "changed:",
            Self::Existing => "exists:",
        }
    }
}

/// Paths, sorted by their bytes.
type PathList = Arc<Vec<String>>;

/// Access to the lists of files, with a cache.
pub struct FileLists<'a> {
    sources: &'a dyn Sources,
    trees: HashMap<SourceTree, Result<PathList, SourceError>>,
    changed: HashMap<Base, Result<PathList, SourceError>>,
    globs: HashMap<Arc<str>, Option<Arc<Glob>>>,
}

impl<'a> FileLists<'a> {
    pub fn new(sources: &'a dyn Sources) -> Self {
        Self { sources, trees: HashMap::new(), changed: HashMap::new(), globs: HashMap::new() }
    }

    /// All files of a tree.
    pub fn all(&mut self, tree: &SourceTree) -> Result<PathList, SourceError> {
        let sources = self.sources;
        let list = self.trees.entry(tree.clone()).or_insert_with(|| sources.files(tree).map(sorted));
        list.clone()
    }

    /// The files that differ from a base.
    pub fn changed(&mut self, base: &Base) -> Result<PathList, SourceError> {
        let sources = self.sources;
        let list = self.changed.entry(base.clone()).or_insert_with(|| sources.changed(base).map(sorted));
        list.clone()
    }

    fn glob(&mut self, pattern: &Arc<str>) -> Option<Arc<Glob>> {
        let glob = self.globs.entry(Arc::clone(pattern));
        glob.or_insert_with(|| Glob::new(pattern).map(Arc::new)).clone()
    }

    /// The first pattern that matches a path, as an explanation.
    pub fn find(&mut self, patterns: &[Arc<str>], paths: &PathList, kind: PathListKind) -> Option<String> {
        let what = kind.word();
        let mut comparisons = 0;
        for pattern in patterns.iter().filter(|pattern| kind == PathListKind::Existing || !pattern.ends_with('/')) {
            let Some(glob) = self.glob(pattern) else { continue };
            if let Some(path) = glob.literal() {
                if contains(paths, &path) {
                    return Some(format!("{what} {path}"));
                }
                continue;
            }
            comparisons += paths.len();
            if comparisons > MAX_COMPARISONS {
                return Some(format!("more than {MAX_COMPARISONS} comparisons of paths and patterns"));
            }
            let directories = pattern.ends_with('/');
            let found = paths.iter().find_map(|path| {
                if !directories {
                    return glob.matches(path).then_some(path.as_str());
                }
                let mut parents = path.match_indices('/').map(|(at, _)| &path[..=at]);
                parents.find(|parent| glob.matches(parent))
            });
            if let Some(path) = found {
                return Some(format!("{what} {path} ({pattern})"));
            }
        }
        None
    }
}

fn sorted(paths: PathList) -> PathList {
    if paths.is_sorted() {
        return paths;
    }
    let mut paths = (*paths).clone();
    paths.sort_unstable();
    Arc::new(paths)
}

/// Whether the list contains a file; for a path with a trailing slash, any file below that directory.
fn contains(paths: &[String], path: &str) -> bool {
    let at = paths.partition_point(|candidate| candidate.as_str() < path);
    let next = paths.get(at);
    if path.ends_with('/') {
        next.is_some_and(|next| next.starts_with(path))
    } else {
        next.is_some_and(|next| next == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_path_is_a_file_or_a_directory_with_a_trailing_slash() {
        let paths: Vec<String> = ["a", "docs/guide.md", "docs2"].map(str::to_owned).to_vec();
        for (path, expected) in [("a", true), ("docs", false), ("docs/", true), ("docs2/", false), ("b", false)] {
            assert_eq!(contains(&paths, path), expected, "{path}");
        }
    }
}
