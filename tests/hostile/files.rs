//! Attacks through artifacts, caches, archives of other jobs, and the removal of directories.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::AtomicBool;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::*;
use crate::support::scenario::Scenario;

/// A naive matcher visits each directory once for each `**` of the pattern.
#[test]
fn a_pattern_has_many_double_stars_over_a_deep_tree() {
    for containers in [true, false] {
        Attack { containers, ..in_containers() }
            .script(&["d=d; for i in $(seq 900); do d=$d/d; done; mkdir -p $d"])
            .artifacts(&[&("**/d/".repeat(200) + "none")])
            .run()
            .succeeded()
            .says("no matching files");
    }
}

/// A naive archiver logs a line for each file that cannot be archived.
#[test]
fn thousands_of_pipes_are_packed() {
    for containers in [true, false] {
        Attack { containers, ..in_containers() }
            .script(&["mkdir d; for i in $(seq 2000); do mkfifo d/$i; done; echo x >d/x"])
            .artifacts(&["d"])
            .run()
            .succeeded()
            .says("1900 more warnings are not shown");
    }
}

#[test]
fn artifacts_lead_out_of_the_project_by_links() {
    for containers in [true, false] {
        Attack { containers, ..in_containers() }
            .script(&["mkdir d; ln -s /etc/passwd d/file; ln -s / d/root; echo x >d/x; ln -s /etc etc"])
            .artifacts(&["d", "d/root/etc/passwd", "etc/*", "../../../../etc/passwd", "/etc/passwd"])
            .run()
            .succeeded()
            .without("root:x:0");
    }
}

/// A tar archive that no tool would write: entries with name, type, link target and content, all with set-user-id bits.
fn archive(entries: &[(&str, u8, &str, &[u8])]) -> Vec<u8> {
    let mut out = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    for (name, kind, target, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o6755);
        header.set_size(content.len() as u64);
        if *kind == b'3' || *kind == b'4' {
            // /dev/mem
            header.set_device_major(1).expect("a device");
            header.set_device_minor(1).expect("a device");
        }
        header.set_cksum();
        out.write_all(header.as_bytes()).expect("write all bytes");
        out.write_all(content).expect("write all bytes");
        out.write_all(&vec![0; (512 - content.len() % 512) % 512]).expect("write all bytes");
    }
    out.write_all(&[0; 1024]).expect("write all bytes");
    out.finish().expect("finish the archive")
}

/// An extended header (pax) for the next entry.
fn extended(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let length = (1..).find(|length| format!("{length}{rest}").len() == *length).expect("a length");
    format!("{length}{rest}").into_bytes()
}

/// Name, type flag, link target and content.
type TarEntry<'a> = (&'a str, u8, &'a str, &'a [u8]);

#[test]
fn an_archive_of_another_job_leads_out() {
    let path = extended("path", "../../../../tmp/mayfly-hostile-archive");
    let capability = extended("SCHILY.xattr.security.capability", "\u{1}\u{0}\u{0}\u{2}");
    let content = b"escaped";
    let attacks: [&[TarEntry<'_>]; 11] = [
        &[("../../../../../../../tmp/mayfly-hostile-archive", b'0', "", content)],
        &[("/tmp/mayfly-hostile-archive", b'0', "", content)],
        &[("l", b'2', "/tmp", b""), ("l/mayfly-hostile-archive", b'0', "", content)],
        &[("l", b'2', "/tmp/mayfly-hostile-archive", b""), ("l", b'0', "", content)],
        &[("stolen", b'1', "/etc/passwd", b"")],
        &[("stolen", b'1', "../../../../../../../../etc/passwd", b"")],
        &[("l", b'2', "/etc/passwd", b""), ("stolen", b'1', "l", b"")],
        &[("device", b'3', "", b""), ("disk", b'4', "", b""), ("pipe", b'6', "", b"")],
        &[("tool", b'0', "", b"#!/bin/sh\n")],
        &[("x", b'x', "", &path), ("y", b'0', "", content)],
        &[("x", b'x', "", &capability), ("y", b'0', "", content)],
    ];
    // The log shows the commands, so they must not contain the word with which findings begin.
    let special = "-type b -o -type c -o -type p -o -type f -perm -4000 -o -type f -perm -2000";
    let found = format!("h=hostile; find . {special} | sed \"s/^/$h found /\"");
    let capable = "command -v getcap >/dev/null && getcap -r . | sed \"s/^/$h can /\" || :";
    for entries in attacks {
        for containers in [true, false] {
            Attack { containers, ..in_containers() }
                .dependency(archive(entries))
                .script(&["cat stolen 2>/dev/null || :", &found, capable])
                .run()
                .ran_nothing()
                .without("root:x:0")
                .made_no(Path::new("/tmp/mayfly-hostile-archive"));
        }
    }
}

#[test]
fn an_archive_of_another_job_is_broken_in_every_place() {
    let whole = archive(&[("a", b'0', "", &[b'x'; 3000]), ("l", b'2', "a", b""), ("d", b'5', "", b"")]);
    let lengths = [0, 1, 4, 9, whole.len() / 2, whole.len() - 1];
    for length in lengths {
        on_the_machine().dependency(whole[..length].to_vec()).run().ran_nothing();
    }
}

/// An earlier job replaces files of a cache: a later job neither blocks on them nor writes through them.
#[test]
fn an_earlier_job_puts_pipes_and_links_in_the_place_of_a_cache() {
    let cache =
        json!([{"key": "k", "paths": ["vendor/"], "policy": "pull-push", "when": "always", "untracked": false}]);
    for plant in [
        "mkfifo $f",
        "ln -s /tmp/mayfly-hostile-cache $f",
        "mkdir -p $f/x",
        "ln /etc/hostname $f 2>/dev/null || mkfifo $f",
        "truncate -s 4G $f",
    ] {
        let each = format!("for f in cache.zip .lock metadata.json; do f=$d/$f; rm -rf $f; {plant}; done");
        let line = format!(
            "for d in $(find $CI_BUILDS_DIR/../cache -type d -name 'k*'; echo $CI_BUILDS_DIR/../cache/team/demo/k); do mkdir -p $d; {each}; done"
        );
        on_the_machine()
            .with("cache", cache.clone())
            .earlier(&line)
            .script(&["mkdir -p vendor; echo x >vendor/x"])
            .run()
            .succeeded()
            .made_no(Path::new("/tmp/mayfly-hostile-cache"));
    }
}

/// A process of an ended job swaps parts of the job's directory for links during the removal.
#[test]
fn a_directory_is_swapped_for_a_link_while_it_is_removed() {
    let gitlab = GitLab::start();
    let home = Scenario::containers().home(&gitlab);
    let left = home.path("builds/tokenOfTh/job-999");
    let victim = home.path("victim");
    fs::create_dir_all(&victim).expect("create the directory");
    fs::write(victim.join("file"), "stays").expect("write the file");
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o500)).expect("set the permissions");
    fs::create_dir_all(&left).expect("create the directory");
    for number in 0..300 {
        fs::create_dir_all(left.join(format!("{number}/swapped/inner"))).expect("create the directory");
        fs::set_permissions(left.join(format!("{number}/swapped")), fs::Permissions::from_mode(0o000))
            .expect("set the permissions");
        symlink(&victim, left.join(format!("{number}/link"))).expect("create the link");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                for number in (0..300).rev() {
                    let path = |name: &str| left.join(format!("{number}/{name}"));
                    let _ =
                        renameat2(AT_FDCWD, &path("swapped"), AT_FDCWD, &path("link"), RenameFlags::RENAME_EXCHANGE);
                }
            }
        });
        let id = gitlab.queue(job(&["true"]).build());
        let mut agent = home.start(&["--once"]);
        let ended = gitlab.finished(id);
        let done = agent.wait();
        stop.store(true, Ordering::SeqCst);
        assert!(ended.state == "success" && done.success(), "{}", agent.log());
    });
    assert_eq!(fs::read_to_string(victim.join("file")).expect("read the file"), "stays");
    assert_eq!(fs::metadata(&victim).expect("the file must exist").mode() & 0o777, 0o500);
}

/// The removal of build directories beyond `builds_max_size` runs in the sandbox, which has only the directory itself:
/// a file system that is mounted below it is not there, while root would empty it.
#[test]
fn a_build_directory_beyond_the_limits_contains_mounts_links_and_closed_directories() {
    let root = tempfile::tempdir().expect("a directory");
    let (url, sha) = GitServer::start(root.path()).repository("team/demo", &[("file.txt", "x\n")]);
    let gitlab = GitLab::start();
    let home = Scenario::containers().runner("[runners.mayfly]\nbuilds_max_size = 1").home(&gitlab);
    let victim = home.path("victim");
    fs::create_dir(&victim).expect("create the directory");
    fs::write(victim.join("file"), "stays").expect("write the file");
    let plant = format!("ln -s {} link; ln -s / root", victim.display());
    let script = [
        "d=.; for i in $(seq 300); do mkdir $d/d; cd $d/d; done; cd $CI_PROJECT_DIR",
        &plant,
        "mkdir -p closed/inner; touch closed/inner/x; mkfifo closed/pipe; chmod 000 closed/inner closed",
        "mkdir -p mounts/volume; while [ ! -e mounts/go ]; do sleep 0.1; done; chmod 000 .",
    ];
    let mut payload = job(&script).sources(&url, &sha).variable("GIT_STRATEGY", "fetch").build();
    payload["job_info"]["project_id"] = json!(77);
    let id = gitlab.queue(payload);
    let mut agent = home.start(&[]);
    let builds = home.path("builds/tokenOfTh/project-77-0");
    let mounts = builds.join("team/demo/mounts");
    gitlab.wait_until("the directory", |_| mounts.join("volume").exists());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("victim"), &mounts.join("volume"), Some("tmpfs"), flags, Some("size=64k"))
        .expect("mount the file system");
    let volume = fs::File::open(mounts.join("volume")).expect("open the file");
    let inside = format!("/proc/self/fd/{}/file", std::os::fd::AsRawFd::as_raw_fd(&volume));
    fs::write(&inside, "stays").expect("write the file");
    fs::write(mounts.join("go"), "").expect("write the file");
    let ended = gitlab.finished(id);
    assert_eq!(ended.state, "success", "{}", ended.log());
    agent.wait_for_log("build directory removed");
    agent.drain();
    let _ = nix::mount::umount2(&mounts.join("volume"), nix::mount::MntFlags::MNT_DETACH);
    for file in [Path::new(&inside), &victim.join("file")] {
        assert_eq!(fs::read_to_string(file).expect("the file must still exist"), "stays", "{}", file.display());
    }
    assert!(!builds.exists(), "{}", agent.log());
}

/// The agent removes the directory of a job even if it is deep, without permissions and full of links.
#[test]
fn a_job_leaves_what_is_hard_to_remove() {
    let outcome = in_containers()
        .variable("GIT_STRATEGY", "clone")
        .script(&[
            "d=.; for i in $(seq 600); do mkdir $d/d; cd $d/d; done",
            "cd $CI_PROJECT_DIR; mkdir -p closed/inner; touch closed/inner/x; ln -s / closed/root; mkfifo closed/pipe",
            "mkdir many; for i in $(seq 3000); do : >many/$i; done; chmod 000 closed/inner closed .",
        ])
        .run()
        .succeeded();
    assert!(!outcome.agent.contains("cannot remove"), "{}", outcome.agent);
    let left: Vec<_> =
        fs::read_dir(outcome.home.path("builds/tokenOfTh")).expect("list the directory").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
