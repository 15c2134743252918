//! `mayfly exec` in unusual checkouts: special characters in the path, split indexes, sparse checkouts, partial clones,
//! submodules with repositories.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::exec::{assert_nothing_left, checkout, command, exec};
use crate::support::docker::docker;
use crate::support::git::git;
use crate::support::mayfly::Home;
use crate::support::output_text;

const COMMIT: [&str; 8] = ["-c", "user.name=Dev", "-c", "user.email=dev@example.test", "commit", "-q", "-m", "second"];

/// Runs `mayfly exec` in a directory.
fn exec_in(home: &Home, directory: &Path, environment: &[(&str, &str)]) -> (Output, String) {
    let mut command = command(home, &[]);
    command.current_dir(directory).envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().expect("run mayfly");
    let text = output_text(&output);
    (output, text)
}

/// Adds files to a checkout and commits them.
fn add(root: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("create the directory");
        fs::write(path, content).expect("write a file");
    }
    git(root, &["add", "-A"]);
    git(root, &COMMIT);
}

#[test]
fn special_characters_in_the_path_of_a_checkout_do_not_reach_jobs() {
    let home = checkout("a: {script: ['git log --format=%s', 'basename \"$PWD\"']}\n");
    for name in ["with space", "colon:dollar$x", "line\nfeed", "-option", "per%cent\"quote'"] {
        let place = home.path("").join(name);
        fs::rename(home.path("checkout"), &place).expect("move the checkout");
        let (output, text) = exec_in(&home, &place, &[]);
        fs::rename(&place, home.path("checkout")).expect("move the checkout");
        assert!(output.status.success() && text.contains("\nfirst\n"), "{name:?}: {text}");
        let base = text.lines().last().expect("a line");
        assert!(base.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name:?}: {text}");
    }
    assert_nothing_left(&home);
}

#[test]
fn containers_mount_the_objects_of_a_checkout_with_a_colon_in_its_path() {
    let script = "['test -d $(cat .git/objects/info/alternates)/pack && echo seen']";
    let home = checkout(&format!("a: {{image: 'busybox:local', script: {script}}}\n"));
    let place = home.path("a:b$HOME");
    fs::rename(home.path("checkout"), &place).expect("move the checkout");
    let (output, text) = exec_in(&home, &place, &[("DOCKER_HOST", &docker().host())]);
    assert!(output.status.success() && text.contains("\nseen\n"), "{text}");
}

#[test]
fn a_split_index_is_complete_in_jobs() {
    let home = checkout("a: {script: ['git status --porcelain', 'git ls-files']}\n");
    let root = home.path("checkout");
    add(&root, &[("one", "1")]);
    git(&root, &["update-index", "--split-index"]);
    fs::write(root.join("two"), "2").expect("write a file");
    git(&root, &["add", "two"]);
    // The second run keeps the repository of the first one.
    for _ in 0..2 {
        let (output, text) = exec(&home, &[]);
        assert!(output.status.success() && text.contains("\nA  two\n") && text.contains("\none\ntwo\n"), "{text}");
    }
}

#[test]
fn jobs_have_the_files_that_a_sparse_checkout_leaves_out() {
    let script = "['cat two/file', 'test -x two/run', 'git status --porcelain', 'echo x >>two/file', \
        'git status --porcelain']";
    let home = checkout(&format!("a: {{script: {script}}}\n"));
    let root = home.path("checkout");
    add(&root, &[("one/file", "1\n"), ("two/file", "first\n"), ("two/run", "#!/bin/sh\n")]);
    git(&root, &["update-index", "--chmod=+x", "two/run"]);
    git(&root, &COMMIT);
    git(&root, &["reset", "-q", "--hard"]);
    git(&root, &["sparse-checkout", "set", "one"]);
    assert!(!root.join("two").exists());
    // In the second run, the tree has the change of the first one.
    for _ in 0..2 {
        let (output, text) = exec(&home, &[]);
        assert!(output.status.success() && !text.contains("sparse"), "{text}");
        assert!(text.contains("\nfirst\n$ test") && text.matches("\n M two/file").count() == 1, "{text}");
    }
    assert!(!root.join("two").exists(), "the checkout stays sparse");
}

#[test]
fn files_that_a_partial_sparse_clone_lacks_are_reported() {
    let home = checkout("a: {script: ['test ! -e two', 'git cat-file -p HEAD:two/file']}\n");
    let root = home.path("checkout");
    add(&root, &[("two/file", "fetched\n")]);
    git(&root, &["config", "uploadpack.allowFilter", "true"]);
    git(&root, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
    let url = format!("file://{}", root.display());
    git(&home.path(""), &["clone", "-q", "--filter=blob:none", "--sparse", &url, "partial"]);
    let (output, text) = exec_in(&home, &home.path("partial"), &[]);
    assert!(text.contains("note: jobs do not have 1 tracked file:"), "{text}");
    // Git fetches a missing object when a job asks for it.
    assert!(output.status.success() && text.contains("\nfetched\n"), "{text}");
}

#[test]
fn submodules_have_repositories_of_their_own_in_jobs() {
    let file = "
with:
  variables: {GIT_SUBMODULE_STRATEGY: recursive}
  script:
    - 'git submodule status | cut -c 1'
    - 'git -C lib log --format=%s'
    - 'basename $(git -C lib rev-parse --show-toplevel)'
    - 'git -C lib status --porcelain'
    - 'git -C lib config user.name job && git -C lib config user.email j@example.test'
    - 'git -C lib update-ref refs/heads/main $(git -C lib commit-tree -m x HEAD^{tree})'
again: {stage: deploy, extends: with}
without: {stage: deploy, script: ['test ! -e lib/.git && git submodule status']}
";
    let home = checkout(file);
    let (root, library) = (home.path("checkout"), home.path("library"));
    fs::create_dir(&library).expect("create the directory");
    git(&library, &["init", "-q", "-b", "main"]);
    add(&library, &[("inner", "1")]);
    git(&root, &["-c", "protocol.file.allow=always", "submodule", "add", "-q", "../library", "lib"]);
    git(&root, &COMMIT);
    let head = || fs::read_to_string(root.join(".git/modules/lib/refs/heads/main")).expect("a reference");
    let before = head();
    let (output, text) = exec(&home, &["-j", "1"]);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("\nsecond\n").count(), 2, "{text}");
    assert_eq!(text.matches("\nlib\n").count(), 2, "{text}");
    assert!(text.contains("\n \n") && !text.contains("\n+\n"), "git knows the submodule: {text:?}");
    assert_eq!(head(), before, "a job cannot change the developer's submodule");
}

#[test]
fn containers_mount_the_objects_of_submodules() {
    let script = "['for d in . lib; do test -d $(cat $d/.git/objects/info/alternates) && echo seen $d; done']";
    let variables = "variables: {GIT_SUBMODULE_STRATEGY: normal}";
    let home = checkout(&format!("a: {{image: 'busybox:local', {variables}, script: {script}}}\n"));
    let (root, library) = (home.path("checkout"), home.path("library"));
    fs::create_dir(&library).expect("create the directory");
    git(&library, &["init", "-q", "-b", "main"]);
    add(&library, &[("inner", "1")]);
    git(&root, &["-c", "protocol.file.allow=always", "submodule", "add", "-q", "../library", "lib"]);
    let (output, text) = exec_in(&home, &root, &[("DOCKER_HOST", &docker().host())]);
    assert!(output.status.success() && text.contains("\nseen .\nseen lib\n"), "{text}");
}

#[test]
fn a_submodule_that_was_replaced_by_a_link_stays_a_link() {
    let home =
        checkout("a: {variables: {GIT_SUBMODULE_STRATEGY: recursive}, script: ['test -L lib && readlink lib']}\n");
    let (root, library) = (home.path("checkout"), home.path("library"));
    fs::create_dir(&library).expect("create the directory");
    git(&library, &["init", "-q", "-b", "main"]);
    add(&library, &[("inner", "1")]);
    git(&root, &["-c", "protocol.file.allow=always", "submodule", "add", "-q", "../library", "lib"]);
    git(&root, &COMMIT);
    fs::remove_dir_all(root.join("lib")).expect("remove the submodule");
    std::os::unix::fs::symlink(".", root.join("lib")).expect("create a link");
    let (output, text) = exec(&home, &[]);
    assert!(output.status.success() && text.contains("\n.\n"), "{text}");
}
