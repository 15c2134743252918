//! Compares this module with git.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::local::checkout::{Checkout, FileSet, ListedFile, list};
use crate::local::facts::RepositoryFacts;

fn git(root: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).args(["-c", "user.name=Jörg Dev", "-c", "user.email=dev@example.test"]);
    command.args(["-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false"]);
    let output = command.args(arguments).env("GIT_COMMITTER_DATE", "1700000000 -0330").output().expect("run git");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Checks that the repository at `root` has the same facts here as in git.
fn check(root: &Path, case: &str) {
    let found = GitDir::find(&root.join("sub")).unwrap_or_else(|| panic!("{case}: not found"));
    assert_eq!(found.root, root, "{case}");
    let listed = files_in_index(&found.path.join("index")).unwrap_or_else(|| panic!("{case}: no index"));
    let tracked: Vec<&Path> = listed.iter().map(|file| file.path.as_path()).collect();
    let expected = git(root, &["ls-files", "-z"]);
    let mut expected: Vec<&Path> = expected.split_terminator('\0').map(Path::new).collect();
    expected.dedup();
    assert_eq!(tracked, expected, "{case}");
    let from_git = RepositoryFacts::from_git(root).expect("ask git");
    let from_files = RepositoryFacts::from_files(&found).unwrap_or_else(|| panic!("{case}: no facts"));
    assert_eq!(from_files, from_git, "{case}");
}

#[test]
fn reads_what_git_reads() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().canonicalize().expect("a path").join("work");
    fs::create_dir_all(root.join("sub/deep")).expect("create the directory");
    git(&root, &["init", "-q", "-b", "main"]);
    assert!(GitDir::find(&root).is_some_and(|found| found.references().is_none()), "it has no commit");
    for (name, text) in [("sub/a", "1"), ("sub/deep/with space", "2"), ("new\nline", "3"), ("ü", "4")] {
        fs::write(root.join(name), text).expect("write a file");
    }
    git(&root, &["add", "-A"]);
    git(&root, &["commit", "-q", "-m", "Subject\n\nBody with é\n\nTrailer: x"]);
    check(&root, "a first commit");
    git(&root, &["tag", "light"]);
    git(&root, &["tag", "-a", "-m", "noted", "group/annotated"]);
    git(&root, &["update-ref", "refs/remotes/origin/main", "HEAD"]);
    git(&root, &["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main"]);
    git(&root, &["symbolic-ref", "refs/remotes/other/HEAD", "refs/remotes/other/none"]);
    git(&root, &["commit", "-q", "--allow-empty", "-m", "second"]);
    check(&root, "tags and remotes");
    git(&root, &["pack-refs", "--all"]);
    git(&root, &["commit", "-q", "--allow-empty", "-m", "third"]);
    check(&root, "packed references under a loose one");
    git(&root, &["update-index", "--index-version", "4"]);
    check(&root, "an index of version 4");
    fs::write(root.join("later"), "").expect("write a file");
    git(&root, &["add", "-N", "later"]);
    git(&root, &["update-index", "--skip-worktree", "sub/a"]);
    git(&root, &["update-index", "--index-version", "3"]);
    check(&root, "extended flags");
    let is_skipped = |file: &&ListedFile| file.is_skipped;
    let listed = files_in_index(&root.join(".git/index")).expect("an index");
    assert_eq!(listed.iter().filter(is_skipped).count(), 1);
    assert_eq!(listed, list(&root, FileSet::Tracked).expect("a list"));
    git(&root, &["checkout", "-q", "--detach"]);
    check(&root, "a detached HEAD");
}

#[test]
fn leaves_unusual_repositories_to_git() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().canonicalize().expect("a path").join("work");
    fs::create_dir_all(&root).expect("create the directory");
    git(&root, &["init", "-q", "-b", "main"]);
    fs::write(root.join("a"), "1").expect("write a file");
    git(&root, &["add", "-A"]);
    git(&root, &["commit", "-q", "-m", "first"]);
    let id = git(&root, &["rev-parse", "HEAD"]).trim().to_owned();
    assert!(GitDir::find(&root.join(".git/refs")).is_none(), "inside a repository");
    assert!(GitDir::find(&root).expect("a repository").commit(&id).is_some());
    git(&root, &["worktree", "add", "-q", "../other"]);
    assert!(GitDir::find(&root.join("../other")).is_none(), "a work tree of `git worktree`");
    assert_eq!(Checkout::find(&root.join("../other")).expect("a checkout").root, root.with_file_name("other"));
    git(&root, &["repack", "-adq"]);
    assert!(GitDir::find(&root).expect("a repository").commit(&id).is_none(), "a packed commit");
    let (root_of_git, repository_facts) =
        (git(&root, &["rev-parse", "--show-toplevel"]), RepositoryFacts::read(&root).expect("ask git"));
    assert_eq!((root_of_git.trim(), repository_facts.commit()), (root.to_str().expect("a path"), id.as_str()));
    git(&root, &["update-index", "--split-index"]);
    assert!(files_in_index(&root.join(".git/index")).is_none(), "a split index");
    git(&root, &["config", "core.worktree", "../elsewhere"]);
    assert!(GitDir::find(&root).is_none(), "another work tree");
}
