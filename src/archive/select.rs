//! Selects the files of a project that match the patterns of an artifact or cache.
//!
//! Symbolic links are entries and are never followed. The result is sorted by name, so that the same files give the
//! same archive.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::entry::ArchiveEntry;
use super::glob::{GlobPattern, Segment};
use super::root::{ArchiveRoot, FileKind, kind_of};
use super::untracked;
use super::walk::{WalkResult, walk};
use super::warnings::MAX_LINES;

/// The limit for the bytes of all exclude patterns together, after their braces are expanded.
const MAX_EXCLUDE_BYTES: usize = 4 << 20;

/// The patterns of an artifact or cache.
#[derive(Clone, Debug, Default)]
pub struct SelectionRequest {
    /// Patterns, relative to the project directory or absolute inside it.
    pub paths: Vec<String>,
    pub exclude: Vec<String>,
    /// Whether to include files that git does not track.
    pub untracked: bool,
}

/// The selected files, and notes for the author of the patterns.
#[derive(Debug, Default)]
pub struct FileSelection {
    /// Files, directories and links, sorted by name.
    pub entries: Vec<ArchiveEntry>,
    /// One line for each pattern and each problem.
    pub notes: Vec<SelectionNote>,
}

/// A line for the job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectionNote {
    /// An expected result.
    Info(String),
    /// A result that the author probably did not intend.
    Warning(String),
}

/// Selects the files.
pub fn select(root: &ArchiveRoot, request: &SelectionRequest) -> FileSelection {
    let mut finder = Finder { root, found: BTreeSet::new(), excludes: Vec::new(), notes: Vec::new(), warnings: 0 };
    if finder.read_excludes(&request.exclude).is_err() {
        return finder.finish();
    }
    for path in &request.paths {
        finder.add_path(path);
    }
    if request.untracked {
        finder.add_untracked();
    }
    finder.finish()
}

struct Finder<'a> {
    root: &'a ArchiveRoot,
    found: BTreeSet<ArchiveEntry>,
    excludes: Vec<Exclude>,
    notes: Vec<SelectionNote>,
    /// The number of warnings, including those that are not shown.
    warnings: usize,
}

/// The exclude patterns exceed [`MAX_EXCLUDE_BYTES`].
struct TooManyExcludes;

struct Exclude {
    text: String,
    pattern: GlobPattern,
    hits: usize,
}

impl Finder<'_> {
    fn warn(&mut self, text: String) {
        self.warnings += 1;
        if self.warnings <= MAX_LINES {
            self.notes.push(SelectionNote::Warning(text));
        }
    }

    /// Parses the exclude patterns. Fails above [`MAX_EXCLUDE_BYTES`]: then the caller must pack nothing, because
    /// excluded files could end up in the archive.
    fn read_excludes(&mut self, texts: &[String]) -> Result<(), TooManyExcludes> {
        let mut size = 0;
        for text in texts {
            let parsed = self.relative(text).and_then(|relative| {
                GlobPattern::parse(&relative).map_err(|why| format!("{text}: invalid pattern: {why}"))
            });
            match parsed {
                Ok(pattern) => {
                    size += pattern.size();
                    self.excludes.push(Exclude { text: text.clone(), pattern, hits: 0 });
                }
                Err(why) => self.warn(why),
            }
            if size > MAX_EXCLUDE_BYTES {
                let limit = MAX_EXCLUDE_BYTES >> 20;
                self.warn(format!("exclude: the patterns are longer than {limit} MiB; nothing is packed"));
                return Err(TooManyExcludes);
            }
        }
        Ok(())
    }

    fn add_path(&mut self, text: &str) {
        let text = text.trim();
        if text.is_empty() {
            return self.warn("No matching files. Path is empty.".to_owned());
        }
        let pattern = self.relative(text).and_then(|relative| {
            GlobPattern::parse(&relative).map_err(|why| format!("{text}: invalid pattern: {why}"))
        });
        let pattern = match pattern {
            Ok(pattern) => pattern,
            Err(why) => return self.warn(why),
        };
        let leads_out = |alternative: &&Vec<Segment>| alternative.contains(&Segment::Literal(b"..".to_vec()));
        let (outer, inner): (Vec<_>, Vec<_>) = pattern.alternatives().iter().partition(leads_out);
        outer.iter().for_each(|_| self.warn(outside(text)));
        let inner: Vec<&[Segment]> = inner.into_iter().map(Vec::as_slice).collect();
        let WalkResult { matches, problems } = walk(self.root, &inner);
        problems.iter().for_each(|problem| self.warn(problem.clone()));
        let count = matches.into_iter().fold(0, |count, entry| count + usize::from(self.add_entry(entry)));
        if count == 0 {
            let directory = self.root.path().display();
            self.warn(format!(
                "{text}: no matching files. Ensure that the artifact path is relative to the \
                 working directory ({directory})"
            ));
        } else {
            self.notes
                .push(SelectionNote::Info(format!("{text}: found {count} matching artifact files and directories")));
        }
    }

    /// Adds an entry, unless it is excluded or cannot be packed. Returns whether it was added.
    fn add_entry(&mut self, entry: ArchiveEntry) -> bool {
        let path = entry.path.as_os_str().as_bytes();
        for exclude in &mut self.excludes {
            if exclude.pattern.matches(path) {
                exclude.hits += 1;
                return false;
            }
        }
        if entry.kind == FileKind::Special {
            self.warn(format!("{}: skipped: not a file, directory or link", entry.path.display()));
            return false;
        }
        self.found.insert(entry);
        true
    }

    /// Makes a pattern relative to the project directory.
    fn relative(&self, text: &str) -> Result<String, String> {
        let directory = self.root.path();
        let clean = clean(text);
        if !clean.starts_with('/') {
            return if clean == ".." || clean.starts_with("../") { Err(outside(text)) } else { Ok(clean) };
        }
        let canonical = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        for base in [directory, &canonical] {
            let rest = base.to_str().and_then(|base| clean.strip_prefix(base.trim_end_matches('/')));
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                return Ok(rest.trim_start_matches('/').to_owned());
            }
        }
        Err(outside(text))
    }

    fn add_untracked(&mut self) {
        let (root, mut count) = (self.root, 0);
        let listed = untracked::for_each(root, |name| {
            // git lists a nested repository with a trailing slash and without its content.
            let path: PathBuf = Path::new(&name).components().collect();
            let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
            if let Some(stat) = plain.then(|| root.stat(&path).ok()).flatten() {
                count += usize::from(self.add_entry(ArchiveEntry { path, kind: kind_of(&stat) }));
            }
        });
        if let Err(why) = listed {
            return self.warn(format!("untracked: {why}"));
        }
        self.notes.push(SelectionNote::Info(format!("untracked: found {count} files")));
    }

    fn finish(mut self) -> FileSelection {
        for exclude in &self.excludes {
            if exclude.hits > 0 {
                self.notes.push(SelectionNote::Info(format!("{}: excluded {} files", exclude.text, exclude.hits)));
            }
        }
        if let Some(more @ 1..) = self.warnings.checked_sub(MAX_LINES) {
            self.notes.push(SelectionNote::Warning(format!("{more} more warnings are not shown")));
        }
        FileSelection { entries: self.found.into_iter().collect(), notes: self.notes }
    }
}

fn outside(text: &str) -> String {
    format!("processPath: artifact path is not a subpath of project directory: {text}")
}

/// Resolves `.`, `..` and double slashes in a path, by text only.
fn clean(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            ".." if text.starts_with('/') => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if text.starts_with('/') { format!("/{joined}") } else { joined }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    struct Project {
        temp: tempfile::TempDir,
    }

    impl Project {
        fn new(files: &[&str]) -> Self {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("project")).unwrap();
            let project = Self { temp };
            for file in files {
                let path = project.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, file).unwrap();
            }
            project
        }

        fn path(&self) -> PathBuf {
            self.temp.path().join("project")
        }

        fn select(&self, paths: &[&str], exclude: &[&str]) -> (Vec<String>, Vec<String>) {
            let strings = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            let request = SelectionRequest { paths: strings(paths), exclude: strings(exclude), untracked: false };
            let selection = super::select(&ArchiveRoot::open(&self.path()).unwrap(), &request);
            let names = selection.entries.iter().map(|entry| entry.path.to_str().unwrap().to_owned()).collect();
            let notes = selection.notes.into_iter().map(|note| match note {
                SelectionNote::Info(text) => text,
                SelectionNote::Warning(text) => format!("WARNING: {text}"),
            });
            (names, notes.collect())
        }
    }

    #[test]
    fn a_directory_includes_everything_below_it() {
        let project = Project::new(&["out/.dot", "out/a/b.txt", "other"]);
        let (names, notes) = project.select(&["out/"], &[]);
        assert_eq!(names, ["out", "out/.dot", "out/a", "out/a/b.txt"]);
        assert_eq!(notes, ["out/: found 4 matching artifact files and directories"]);
    }

    #[test]
    fn two_stars_match_any_depth() {
        let project = Project::new(&["a.xml", "x/b.xml", "x/y/c.xml", "x/y/c.txt"]);
        assert_eq!(project.select(&["**/*.xml"], &[]).0, ["a.xml", "x/b.xml", "x/y/c.xml"]);
        assert_eq!(project.select(&["x/**/{b,c}.xml"], &[]).0, ["x/b.xml", "x/y/c.xml"]);
        assert_eq!(project.select(&["."], &[]).0.len(), 6);
    }

    #[test]
    fn skips_and_counts_excluded_files() {
        let project = Project::new(&["bin/a", "bin/b.o", "bin/sub/c.o"]);
        let (names, notes) = project.select(&["bin/"], &["bin/**/*.o", "bin/sub/"]);
        assert_eq!(names, ["bin", "bin/a"]);
        assert_eq!(notes[1..], ["bin/**/*.o: excluded 2 files", "bin/sub/: excluded 1 files"]);
    }

    #[test]
    fn names_a_pattern_without_a_match() {
        let project = Project::new(&["a"]);
        let (names, notes) = project.select(&["missing/*.log", " ", "[x"], &[]);
        assert!(names.is_empty());
        let directory = project.path().display().to_string();
        assert_eq!(
            notes[0],
            format!(
                "WARNING: missing/*.log: no matching files. Ensure that the artifact path is relative to \
                 the working directory ({directory})"
            )
        );
        assert_eq!(notes[1], "WARNING: No matching files. Path is empty.");
        assert_eq!(notes[2], "WARNING: [x: invalid pattern: a [ without its ]");
    }

    #[test]
    fn selects_nothing_outside_the_project() {
        let project = Project::new(&["a"]);
        fs::write(project.temp.path().join("secret"), "x").unwrap();
        for path in ["../secret", "/etc/passwd", "a/../../secret", "{..,b}/secret"] {
            let (names, notes) = project.select(&[path], &[]);
            assert!(names.is_empty(), "{path}");
            assert!(notes[0].contains("is not a subpath of project directory"), "{notes:?}");
        }
        let inside = project.path().join("a");
        assert_eq!(project.select(&[inside.to_str().unwrap()], &[]).0, ["a"]);
        assert_eq!(project.select(&["x/../a"], &[]).0, ["a"]);
    }

    #[test]
    fn follows_no_link() {
        let project = Project::new(&["real/file"]);
        let secrets = project.temp.path().join("secrets");
        fs::create_dir(&secrets).unwrap();
        fs::write(secrets.join("key.txt"), "x").unwrap();
        symlink(&secrets, project.path().join("link")).unwrap();
        for path in ["link/key.txt", "link/*", "*/key.txt", "link/**/key.txt"] {
            let (names, notes) = project.select(&[path], &[]);
            assert!(names.is_empty(), "{path}: {names:?}");
            assert!(notes[0].contains("link: a symbolic link is packed as a link"), "{path}: {notes:?}");
        }
        assert_eq!(project.select(&["link"], &[]).0, ["link"]);
        assert_eq!(project.select(&["**/key.txt"], &[]).0.len(), 0);
        assert_eq!(project.select(&["**"], &[]).0, ["link", "real", "real/file"]);
    }

    #[test]
    fn skips_special_files_with_a_warning() {
        let project = Project::new(&["d/a"]);
        nix::unistd::mkfifo(&project.path().join("d/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let (names, notes) = project.select(&["d"], &[]);
        assert_eq!(names, ["d", "d/a"]);
        assert_eq!(notes[0], "WARNING: d/pipe: skipped: not a file, directory or link");
    }

    #[test]
    fn shows_the_first_warnings_and_counts_the_others() {
        let project = Project::new(&["d/a"]);
        for n in 0..250 {
            let pipe = project.path().join(format!("d/pipe{n}"));
            nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        }
        let (names, notes) = project.select(&["d"], &[]);
        assert_eq!((names.len(), notes.len()), (2, 102));
        assert_eq!(notes[101], "WARNING: 150 more warnings are not shown");
    }

    #[test]
    fn packs_nothing_if_the_exclude_patterns_exceed_the_limit() {
        let project = Project::new(&["secret"]);
        let long = vec!["[a-z]".repeat(1000); 200];
        let long: Vec<&str> = long.iter().map(String::as_str).chain(["secret"]).collect();
        let (names, notes) = project.select(&["**"], &long);
        assert_eq!(names, Vec::<String>::new());
        assert_eq!(notes, ["WARNING: exclude: the patterns are longer than 4 MiB; nothing is packed"]);
    }

    #[test]
    fn selects_untracked_files() {
        let project = Project::new(&["tracked", "new", "dir/ignored.o", ".gitignore"]);
        fs::write(project.path().join(".gitignore"), "*.o\n").unwrap();
        for arguments in [&["init", "-q"][..], &["add", "tracked", ".gitignore"]] {
            assert!(Command::new("git").args(arguments).current_dir(project.path()).status().unwrap().success());
        }
        let request = SelectionRequest { untracked: true, ..SelectionRequest::default() };
        let selection = super::select(&ArchiveRoot::open(&project.path()).unwrap(), &request);
        let names: Vec<_> = selection.entries.iter().map(|entry| entry.path.to_str().unwrap()).collect();
        assert_eq!(names, ["dir/ignored.o", "new"]);
        assert_eq!(selection.notes, [SelectionNote::Info("untracked: found 2 files".to_owned())]);
    }
}
