use super::*;
use nix::fcntl::{RenameFlags, renameat2};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

fn nobody() -> User {
    User {
        name: "nobody".to_owned(),
        uid: 65534,
        gid: 65534,
        groups: Vec::new(),
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

/// A directory of the user inside one of root.
fn home() -> Option<(tempfile::TempDir, PathBuf)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("set the permissions");
    let home = directory.path().join("home");
    fs::create_dir(&home).expect("create the directory");
    chown(&home, Some(65534), Some(65534)).expect("change the owner");
    Some((directory, home))
}

#[test]
fn creates_directories_for_the_user_through_links_of_root() {
    let Some((directory, _)) = home() else { return };
    symlink("real", directory.path().join("link")).expect("create the link");
    fs::create_dir(directory.path().join("real")).expect("create the directory");
    let builds = directory.path().join("link/new/builds");
    create(&builds, Some(&nobody()), 0o700).expect("create the directory");
    let made = fs::metadata(directory.path().join("real/new/builds")).expect("the file must exist");
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (65534, 65534, 0o700));
    let above = fs::metadata(directory.path().join("real/new")).expect("the file must exist");
    assert_eq!((above.uid(), above.mode() & 0o7777), (0, 0o755));
    create(&builds, Some(&nobody()), 0o777).expect("an existing directory must be accepted");
    assert_eq!(fs::metadata(&builds).expect("the file must exist").mode() & 0o7777, 0o700);
    fs::set_permissions(&builds, fs::Permissions::from_mode(0o2755)).expect("set the permissions");
    create(&builds, Some(&nobody()), 0o700).expect("an existing directory must be accepted");
    assert_eq!(fs::metadata(&builds).expect("the file must exist").mode() & 0o7777, 0o2700);
    assert_eq!(writable_above(&builds, Some(&nobody())), None);
}

#[test]
fn a_link_of_the_user_gains_nothing() {
    let Some((directory, home)) = home() else { return };
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).expect("create the directory");
    symlink(closed.join("victim"), home.join("builds")).expect("create the link");
    assert!(create(&home.join("builds"), Some(&nobody()), 0o700).is_err());
    assert_eq!(fs::read_dir(&closed).expect("list the directory").count(), 0);
    fs::create_dir(closed.join("victim")).expect("create the directory");
    create(&home.join("builds"), Some(&nobody()), 0o700).expect("an existing directory must be accepted");
    assert_eq!(fs::metadata(closed.join("victim")).expect("the file must exist").uid(), 0);
    create(&home.join("other/builds"), Some(&nobody()), 0o700).expect("create the directory");
    assert_eq!(fs::metadata(home.join("other/builds")).expect("the file must exist").uid(), 65534);
    assert_eq!(writable_above(&home.join("other/builds"), Some(&nobody())), Some(home.clone()));
    assert_eq!(writable_above(&home.join("other/builds"), None), Some(home));
}

/// If jobs have no separate user, root follows only links of root.
#[test]
fn root_follows_links_of_root_only() {
    let Some((directory, home)) = home() else { return };
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).expect("create the directory");
    symlink(&closed, home.join("link")).expect("create the link");
    symlink(&closed, directory.path().join("link")).expect("create the link");
    for path in ["link", "link/caches", "link/../link/caches"] {
        let why = create(&home.join(path), None, 0o700).expect_err("must be refused").to_string();
        assert!(why.contains("`link` in this path is a link"), "{why}");
        assert!(create_world_writable(&home.join(path)).is_err());
    }
    assert_eq!(fs::read_dir(&closed).expect("list the directory").count(), 0);
    assert_eq!(fs::metadata(&closed).expect("the file must exist").mode() & 0o777, 0o755);
    create(&directory.path().join("link/of/root"), None, 0o700).expect("create the directory");
    create_world_writable(&home.join("new/caches")).expect("create the directory");
    let mode = |path: &Path| fs::symlink_metadata(path).expect("the file must exist").mode() & 0o7777;
    assert_eq!((mode(&closed.join("of")), mode(&closed.join("of/root"))), (0o755, 0o700));
    assert_eq!((mode(&home.join("new")), mode(&home.join("new/caches"))), (0o755, 0o777));
    // In a directory that every user can write, any user can create a link.
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).expect("create the directory");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("set the permissions");
    symlink(&closed, shared.join("planted")).expect("create the link");
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        &shared.join("planted"),
        Some(Uid::from_raw(65533)),
        None,
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .expect("change the owner");
    assert!(create(&shared.join("planted/caches"), None, 0o700).is_err());
    assert!(create(&shared.join("planted/builds"), Some(&nobody()), 0o700).is_err());
    assert_eq!(fs::read_dir(&closed).expect("list the directory").count(), 1);
}

/// The user swaps a directory with a link to one of root while the agent creates the last part of the path.
#[test]
fn a_race_of_renames_gains_nothing() {
    let Some((directory, home)) = home() else { return };
    let victim = directory.path().join("victim");
    fs::create_dir(&victim).expect("create the directory");
    fs::create_dir(home.join("a")).expect("create the directory");
    chown(home.join("a"), Some(65534), Some(65534)).expect("change the owner");
    symlink(&victim, home.join("b")).expect("create the link");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (here, flags) = (nix::fcntl::AT_FDCWD, RenameFlags::RENAME_EXCHANGE);
                renameat2(here, &home.join("a"), here, &home.join("b"), flags).expect("rename the file");
            }
        });
        for number in 0..2000 {
            let _ = create(&home.join(format!("a/{number}/builds")), Some(&nobody()), 0o700);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let found = fs::metadata(&victim).expect("the file must exist");
    assert_eq!((found.uid(), fs::read_dir(&victim).expect("list the directory").count()), (0, 0));
}
