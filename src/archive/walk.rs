//! Finds the files of a tree that match a pattern.
//!
//! One walk tracks the positions in all alternatives of the pattern at once, like a nondeterministic automaton. Each
//! directory is listed at most once, so the cost is at most entries times segments for any pattern.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::entry::ArchiveEntry;
use super::glob::Segment;
use super::root::{ArchiveRoot, FileKind, kind_of};
use super::warnings::Warnings;

/// The result of a walk.
#[derive(Default)]
pub struct WalkResult {
    /// The matching entries, and everything below matching directories.
    pub matches: BTreeSet<ArchiveEntry>,
    /// Messages for the author of the pattern.
    pub problems: Warnings,
}

/// The progress of a match: an alternative, and its next segment.
type Position = (usize, usize);

/// Finds the entries that match one of the alternatives; follows no link.
pub fn walk(root: &ArchiveRoot, alternatives: &[&[Segment]]) -> WalkResult {
    let mut walk = Walk { root, alternatives, found: WalkResult::default(), pending: Vec::new() };
    let start = walk.add_skipped_stars((0..alternatives.len()).map(|alternative| (alternative, 0)).collect());
    walk.reach(PathBuf::new(), FileKind::Directory, start);
    while let Some((directory, positions)) = walk.pending.pop() {
        walk.visit(&directory, &positions);
    }
    walk.found
}

struct Walk<'a> {
    root: &'a ArchiveRoot,
    alternatives: &'a [&'a [Segment]],
    found: WalkResult,
    /// The directories to visit.
    pending: Vec<(PathBuf, Vec<Position>)>,
}

impl Walk<'_> {
    /// Processes the entries of a directory.
    fn visit(&mut self, directory: &Path, positions: &[Position]) {
        // If only literal names can match, the directory need not be listed.
        let names: Option<BTreeSet<OsString>> = positions
            .iter()
            .map(|&(alternative, at)| match &self.alternatives[alternative][at] {
                Segment::Literal(name) => Some(OsStr::from_bytes(name).to_owned()),
                _ => None,
            })
            .collect();
        let entries = match names {
            Some(names) => {
                let kind = |name: OsString| Some((kind_of(&self.root.stat(&directory.join(&name)).ok()?), name));
                names.into_iter().filter_map(kind).map(|(kind, name)| (name, kind)).collect()
            }
            None => self.list(directory),
        };
        for (name, kind) in entries {
            let next = self.advance(positions, &name, kind);
            if !next.is_empty() {
                self.reach(directory.join(name), kind, next);
            }
        }
    }

    /// The positions after an entry with this name and this kind.
    fn advance(&self, positions: &[Position], name: &OsStr, kind: FileKind) -> Vec<Position> {
        let next = positions.iter().filter_map(|&(alternative, at)| match &self.alternatives[alternative][at] {
            Segment::AnyDepth => (kind == FileKind::Directory).then_some((alternative, at)),
            segment => segment.matches(name.as_bytes()).then_some((alternative, at + 1)),
        });
        self.add_skipped_stars(next.collect())
    }

    /// Adds the positions that need no further name, because `**` also matches zero directories.
    fn add_skipped_stars(&self, mut positions: Vec<Position>) -> Vec<Position> {
        let mut index = 0;
        while let Some(&(alternative, at)) = positions.get(index) {
            if self.alternatives[alternative].get(at) == Some(&Segment::AnyDepth) {
                positions.push((alternative, at + 1));
            }
            index += 1;
        }
        positions.sort_unstable();
        positions.dedup();
        positions
    }

    /// Processes an entry that the walk has reached: adds a match, or plans to visit a directory.
    fn reach(&mut self, path: PathBuf, kind: FileKind, positions: Vec<Position>) {
        if positions.iter().any(|&(alternative, at)| at == self.alternatives[alternative].len()) {
            return self.add_tree(path, kind);
        }
        match kind {
            FileKind::Directory => self.pending.push((path, positions)),
            FileKind::Link if self.root.leads_to_directory(&path) => {
                let link = path.display();
                let what = "a symbolic link is packed as a link and not followed";
                self.found.problems.push(format!("{link}: {what}"));
            }
            _ => {}
        }
    }

    /// Adds a match and, if it is a directory, everything below it.
    fn add_tree(&mut self, path: PathBuf, kind: FileKind) {
        let mut pending = vec![(path, kind)];
        while let Some((path, kind)) = pending.pop() {
            let is_root = path.as_os_str().is_empty();
            if !is_root && !self.found.matches.insert(ArchiveEntry { path: path.clone(), kind }) {
                continue;
            }
            if kind == FileKind::Directory {
                pending.extend(self.list(&path).into_iter().map(|(name, kind)| (path.join(name), kind)));
            }
        }
    }

    fn list(&mut self, path: &Path) -> Vec<(OsString, FileKind)> {
        match self.root.list(path) {
            Ok(entries) => entries,
            Err(why) if why.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(why) => {
                self.found.problems.push(format!("{}: cannot be listed: {why}", path.display()));
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::archive::glob::GlobPattern;
    use crate::archive::testing::{Project, tool};

    fn names(project: &Project, pattern: &str) -> Vec<String> {
        let pattern = GlobPattern::parse(pattern).unwrap();
        let alternatives: Vec<&[Segment]> = pattern.alternatives().iter().map(Vec::as_slice).collect();
        let found = walk(&project.root(), &alternatives);
        found.matches.iter().map(|entry| entry.path.to_str().unwrap().to_owned()).collect()
    }

    /// The walk visits each directory once, although the pattern can reach it in many ways. The test measures the cost
    /// as the number of tracked positions.
    #[test]
    fn many_double_stars_over_a_deep_tree_have_linear_cost() {
        let project = Project::new();
        // Created step by step: the whole path is longer than a system call accepts.
        let mut here = std::fs::File::open(project.path()).unwrap();
        for _ in 0..1900 {
            nix::sys::stat::mkdirat(&here, "d", nix::sys::stat::Mode::S_IRWXU).unwrap();
            let flags = nix::fcntl::OFlag::O_DIRECTORY;
            here = nix::fcntl::openat(&here, "d", flags, nix::sys::stat::Mode::empty()).unwrap().into();
        }
        let segments: Vec<Segment> =
            GlobPattern::parse(&("**/d/".repeat(200) + "none")).unwrap().alternatives()[0].clone();
        let root = project.root();
        let alternatives = [segments.as_slice()];
        let mut walk =
            Walk { root: &root, alternatives: &alternatives, found: WalkResult::default(), pending: Vec::new() };
        let start = walk.add_skipped_stars(vec![(0, 0)]);
        walk.reach(PathBuf::new(), FileKind::Directory, start);
        let (mut visited, mut tracked) = (0, 0);
        while let Some((directory, positions)) = walk.pending.pop() {
            (visited, tracked) = (visited + 1, tracked + positions.len());
            walk.visit(&directory, &positions);
        }
        assert!(visited <= 1901 && tracked <= 1901 * (segments.len() + 1), "{visited} {tracked}");
        assert!(walk.found.matches.is_empty());
        // The standard library and `TempDir` hold a descriptor open for each level.
        tool(Command::new("rm").arg("-rf").arg(project.path()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The walk and the pattern agree on every path.
        #[test]
        fn finds_what_the_pattern_matches(
            files in proptest::collection::btree_set("[ab]{1,2}(/[ab]{1,2}){0,3}", 0..12),
            pattern in "(\\*\\*|[ab]{1,2}|\\*|[ab]\\*|\\{a,b/a,\\*\\*\\}|\\?)(/(\\*\\*|[ab]|\\*)){0,3}",
        ) {
            let project = Project::new();
            for file in &files {
                let path = project.path().join(file);
                if std::fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.exists() {
                    let _ = std::fs::write(path, "");
                }
            }
            let parsed = GlobPattern::parse(&pattern).unwrap();
            let all = names(&project, "**");
            // A matching directory includes everything below it.
            let is_meant = |name: &&String| {
                let parts: Vec<&str> = name.split('/').collect();
                let matched = |end: usize| parsed.matches(parts[..end].join("/").as_bytes());
                (0..=parts.len()).any(matched)
            };
            let expected: Vec<String> = all.iter().filter(is_meant).cloned().collect();
            prop_assert_eq!(names(&project, &pattern), expected, "{}", pattern);
        }
    }
}
