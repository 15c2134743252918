use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::local::checkout::{Checkout, FileSet, git as git_command, output};
use crate::local::facts::RepositoryFacts;

fn git(root: &Path, arguments: &[&str]) -> String {
    let mut command = git_command(root);
    command.args(["-c", "user.name=Dev", "-c", "user.email=dev@example.test"]).args(arguments);
    String::from_utf8_lossy(&output(command).expect("run git")).trim().to_owned()
}

/// A user other than root.
const USER: u32 = 65534;

/// A checkout, and a directory for trees.
struct TestCheckout {
    directory: tempfile::TempDir,
    root: PathBuf,
}

impl TestCheckout {
    fn create() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().canonicalize().expect("a path").join("app");
        fs::create_dir_all(root.join("src/deep")).expect("create the directory");
        fs::write(root.join("src/deep/a.txt"), "a\n").expect("write the file");
        fs::write(root.join("run.sh"), "#!/bin/sh\n").expect("write the file");
        fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o755)).expect("set the permissions");
        fs::write(root.join(".gitignore"), "ignored\n").expect("write the file");
        symlink("src/deep/a.txt", root.join("link")).expect("create the link");
        git(&root, &["init", "-q", "-b", "main"]);
        git(&root, &["add", "-A"]);
        git(&root, &["commit", "-q", "-m", "first"]);
        fs::write(root.join("ignored"), "x").expect("write the file");
        fs::write(root.join("loose"), "x").expect("write the file");
        Self { directory, root }
    }

    fn source(&self, files: FileSet) -> TreeSource {
        let checkout = Checkout::find(&self.root.join("src")).expect("a checkout");
        let repository_facts = RepositoryFacts::read(&checkout.root).expect("read the repository");
        TreeSource::new(&checkout, &checkout.files(files).expect("list the files"), &repository_facts)
            .expect("the files")
    }

    fn trees(&self) -> Trees {
        Trees::new(self.directory.path().join("trees"), "app")
    }
}

fn names(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("list the directory").map(|entry| entry.expect("an entry").path()) {
            let below = entry.strip_prefix(root).expect("the entry must be below the root").display().to_string();
            match entry.symlink_metadata().expect("the file must exist").is_dir() {
                true if below == ".git" => {}
                true => waiting.push(entry),
                false => found.push(below),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_tree_contains_exactly_the_tracked_files_with_their_edits() {
    let given = TestCheckout::create();
    fs::write(given.root.join("src/deep/a.txt"), "edited\n").expect("write the file");
    let tree = given.trees().take(&given.source(FileSet::Tracked), TreeContent::Sources, &|_| false).expect("a tree");
    assert_eq!(names(&tree.project), [".gitignore", "link", "run.sh", "src/deep/a.txt"]);
    assert_eq!(fs::read_to_string(tree.project.join("link")).expect("read the file"), "edited\n");
    assert!(tree.project.join("link").symlink_metadata().expect("the file must exist").is_symlink());
    assert_eq!(tree.project.join("run.sh").metadata().expect("the file must exist").mode() & 0o777, 0o755);
    assert_eq!(git(&tree.project, &["rev-parse", "HEAD"]), git(&given.root, &["rev-parse", "HEAD"]));
    assert_eq!(git(&tree.project, &["status", "--porcelain"]), "M src/deep/a.txt");
    assert_eq!(git(&tree.project, &["log", "--format=%s", "main"]), "first");
    drop(tree);
    let tree =
        given.trees().take(&given.source(FileSet::NotIgnored), TreeContent::Sources, &|_| false).expect("a tree");
    assert_eq!(names(&tree.project), [".gitignore", "link", "loose", "run.sh", "src/deep/a.txt"]);
}

#[test]
fn a_tree_is_clean_again_after_any_change_by_a_job() {
    let given = TestCheckout::create();
    let tree = given.trees().take(&given.source(FileSet::Tracked), TreeContent::Sources, &|_| false).expect("a tree");
    let project = tree.project.clone();
    fs::write(project.join("src/deep/a.txt"), "b\n").expect("write the file");
    fs::set_permissions(project.join("run.sh"), fs::Permissions::from_mode(0o700)).expect("set the permissions");
    fs::remove_file(project.join("link")).expect("remove the file");
    symlink("/etc", project.join("link")).expect("create the link");
    fs::create_dir_all(project.join("target/closed")).expect("create the directory");
    fs::write(project.join("target/closed/x"), "x").expect("write the file");
    fs::set_permissions(project.join("target/closed"), fs::Permissions::from_mode(0o000)).expect("set the permissions");
    fs::write(project.join(".git/hooks"), "x").expect("write the file");
    drop(tree);
    let tree = given.trees().take(&given.source(FileSet::Tracked), TreeContent::Sources, &|_| false).expect("a tree");
    assert_eq!(tree.project, project, "the same tree");
    assert_eq!(names(&project), [".gitignore", "link", "run.sh", "src/deep/a.txt"]);
    assert_eq!(fs::read_to_string(project.join("src/deep/a.txt")).expect("read the file"), "a\n");
    assert_eq!(project.join("run.sh").metadata().expect("the file must exist").mode() & 0o777, 0o755);
    assert_eq!(fs::read_link(project.join("link")).expect("read the link"), Path::new("src/deep/a.txt"));
    assert!(!project.join(".git/hooks").exists());
}

#[test]
fn copies_only_changed_files_again() {
    let given = TestCheckout::create();
    // Older than the resolution of time stamps, so that a change is visible.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    File::options()
        .write(true)
        .open(given.root.join("run.sh"))
        .and_then(|file| file.set_modified(old))
        .expect("open the file");
    // No call sets the time of the last status change (ctime), so more time than the resolution must pass.
    std::thread::sleep(std::time::Duration::from_millis(30));
    let inode = |tree: &Tree, name: &str| tree.project.join(name).metadata().expect("the file must exist").ino();
    let tree = given.trees().take(&given.source(FileSet::Tracked), TreeContent::Sources, &|_| false).expect("a tree");
    let before = inode(&tree, "run.sh");
    drop(tree);
    fs::write(given.root.join("src/deep/a.txt"), "new\n").expect("write the file");
    fs::remove_file(given.root.join("link")).expect("remove the file");
    let tree = given.trees().take(&given.source(FileSet::Tracked), TreeContent::Sources, &|_| false).expect("a tree");
    assert_eq!(inode(&tree, "run.sh"), before);
    assert_eq!(fs::read_to_string(tree.project.join("src/deep/a.txt")).expect("read the file"), "new\n");
    assert!(tree.project.join("link").symlink_metadata().is_err());
    assert_ne!(inode(&tree, "run.sh"), given.root.join("run.sh").metadata().expect("the file must exist").ino());
}

#[test]
fn two_jobs_never_share_a_tree_and_an_empty_one_is_empty() {
    let given = TestCheckout::create();
    let (trees, source) = (given.trees(), given.source(FileSet::Tracked));
    let first = trees.take(&source, TreeContent::Sources, &|_| false).expect("a tree");
    let second = trees.take(&source, TreeContent::Nothing, &|_| false).expect("a tree");
    assert_ne!(first.project, second.project);
    assert_eq!(fs::read_dir(&second.project).expect("list the directory").count(), 0);
    let project = second.project.clone();
    drop(second);
    let again = trees.take(&source, TreeContent::Sources, &|_| false).expect("a tree");
    assert_eq!((again.project.clone(), names(&again.project).len()), (project, 4));
    let kept = again.keep(&given.directory.path().join("kept")).expect("keep the tree");
    assert!(names(&kept).len() == 4 && !again.project.exists());
}

#[test]
fn skips_a_pipe_in_place_of_a_tracked_file() {
    let given = TestCheckout::create();
    fs::remove_file(given.root.join("run.sh")).expect("remove the file");
    nix::unistd::mkfifo(&given.root.join("run.sh"), nix::sys::stat::Mode::S_IRWXU).expect("create the named pipe");
    let tree = given.trees().take(&given.source(FileSet::Tracked), TreeContent::Sources, &|_| false).expect("a tree");
    assert!(!tree.project.join("run.sh").exists());
}

#[test]
fn a_repository_is_written_again_only_after_a_change() {
    let given = TestCheckout::create();
    // Older than the resolution of time stamps, so that its stamp identifies it.
    let index = given.root.join(".git/index");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    File::options()
        .write(true)
        .open(&index)
        .and_then(|file| file.set_modified(old))
        .expect("set the modification time");
    // No call sets the time of the last status change (ctime), so more time than the resolution must pass.
    std::thread::sleep(std::time::Duration::from_millis(30));
    let take =
        || given.trees().take(&given.source(FileSet::Tracked), TreeContent::Sources, &|_| false).expect("a tree");
    let head = |tree: &Tree| tree.project.join(".git/HEAD");
    // File systems reuse inode numbers; together with the time of the last change, the number identifies a file.
    let identity = |tree: &Tree| {
        let metadata = head(tree).metadata().expect("the head of the repository");
        (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    let now = || identity(&take());
    assert_eq!(now(), now(), "nothing has changed");
    let commit = fs::read_to_string(head(&take())).expect("read the file");
    for change in ["a file", "a new file", "a reference of the developer"] {
        let tree = take();
        let before = identity(&tree);
        let git_directory = tree.project.join(".git");
        match change {
            "a file" => fs::write(head(&tree), "ref: refs/heads/other\n").expect("write the file"),
            "a new file" => fs::write(git_directory.join("refs/planted"), "x").expect("write the file"),
            _ => drop(git(&given.root, &["branch", "new"])),
        }
        drop(tree);
        let tree = take();
        assert_ne!(identity(&tree), before, "{change}");
        assert_eq!(fs::read_to_string(head(&tree)).expect("read the file"), commit, "{change}");
        assert!(!git_directory.join("refs/planted").exists(), "{change}");
        drop(tree);
        assert_eq!(now(), now(), "{change}");
    }
    assert!(git(&take().project, &["branch", "--list", "new"]).contains("new"));
}

#[test]
fn the_age_of_a_kept_tree_counts_from_now_if_a_job_changed_time_and_permissions_of_its_directory() {
    let given = TestCheckout::create();
    if nix::unistd::Uid::effective().is_root() {
        nix::unistd::chown(given.directory.path(), Some(USER.into()), None).expect("change the owner");
    }
    let source = given.source(FileSet::Tracked);
    let (trees, place) = (given.trees(), given.directory.path().join("kept/1"));
    // The file permissions of root would hide a failure, so this thread works as another user.
    let kept = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            if nix::unistd::Uid::effective().is_root() {
                nix::unistd::setfsuid(USER.into());
            }
            let tree = trees.take(&source, TreeContent::Nothing, &|_| false).expect("a tree");
            let builds = File::open(&tree.builds).expect("open the directory");
            builds.set_modified(SystemTime::UNIX_EPOCH).expect("set the modification time");
            builds.set_permissions(fs::Permissions::from_mode(0o000)).expect("set the permissions");
            tree.keep(&place).expect("keep the tree")
        });
        work.join().expect("no panic")
    });
    assert_eq!(kept, place.join("app"));
    let age = place.metadata().and_then(|metadata| metadata.modified()).expect("a time").elapsed();
    assert!(age.is_ok_and(|age| age.as_secs() < 3600));
}
