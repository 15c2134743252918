//! Walls around work on files that a container has left: it sees the programs of the machine, the job's own directories
//! and nothing else, and may do nothing but change files there.
//!
//! The walls do not keep us from mistakes of ours alone: git is a large program, and services of the job may change its
//! files while it works on them. What gets in there finds no secrets of the agent, no other process, no device, nothing
//! it could run or write outside of the job's directories.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, pivot_root};

use super::spec::Walls;
use crate::sys::{self, Capability};

/// Where the new root grows: a directory that every machine has and that holds nobody's files.
const SCAFFOLD: &str = "/proc";

/// Programs and their libraries; a link stays one.
const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What programs need to find servers and to trust them, and the machine's settings of git.
const SETTINGS: [&str; 24] = [
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/gai.conf",
    "/etc/gitattributes",
    "/etc/gitconfig",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/var/lib/ca-certificates",
];

const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What it takes to read, write and give away the files of others.
const KEPT: [Capability; 4] = [Capability::CHOWN, Capability::DAC_OVERRIDE, Capability::FOWNER, Capability::FSETID];

/// Called by the shim before it forks: its child is then the first process of a namespace of its own, and whatever that
/// starts ends with it. False where the machine does not let us; the child goes without, then.
pub fn set_apart() -> bool {
    unshare(CloneFlags::CLONE_NEWPID).is_ok()
}

/// Builds the walls around this process, if it may. Errors: what could not be done once it was begun.
pub fn confine(walls: &Walls, is_apart: bool) -> Result<(), String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("the work on the job's files cannot be confined: {what}: {error}")
    };
    if is_apart && unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC).is_ok() {
        build(walls).map_err(failed("no root of its own"))?;
    }
    sys::keep_capabilities(&KEPT).map_err(failed("capabilities"))?;
    set_no_new_privs().map_err(|error| failed("privileges")(error.into()))
}

fn build(walls: &Walls) -> io::Result<()> {
    let before = umask(Mode::from_bits_truncate(0o022));
    let outcome = build_root(walls);
    umask(before);
    outcome
}

fn build_root(walls: &Walls) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // The scaffold covers what it stands on, so that no source may be below it.
    mount(Some("root"), SCAFFOLD, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=64m,mode=755"))?;
    for path in PROGRAMS {
        show(Path::new(path), MsFlags::MS_RDONLY | MsFlags::MS_NOSUID)?;
    }
    for path in SETTINGS.iter().map(Path::new).chain(walls.readable.iter().map(PathBuf::as_path)) {
        show(path, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    }
    for path in DEVICES {
        show(Path::new(path), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    for path in &walls.writable {
        show(path, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC)?;
    }
    fs::create_dir(in_scaffold(Path::new("/tmp"))).or_else(unless_there)?;
    fs::create_dir(in_scaffold(Path::new("/proc")))?;
    let hidden = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &in_scaffold(Path::new("/proc")), Some("proc"), hidden, none)?;
    chdir(SCAFFOLD)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(())
}

fn in_scaffold(path: &Path) -> PathBuf {
    Path::new(SCAFFOLD).join(path.strip_prefix("/").unwrap_or(path))
}

fn unless_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// Shows a path of the machine at the same place behind the walls; one that does not exist is not shown.
fn show(path: &Path, flags: MsFlags) -> io::Result<()> {
    let place = in_scaffold(path);
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if metadata.is_symlink() && PROGRAMS.iter().any(|program| Path::new(program) == path) {
        return symlink(fs::read_link(path)?, &place);
    }
    let Ok(target) = path.metadata() else { return Ok(()) };
    if target.is_dir() {
        fs::create_dir_all(&place)?;
    } else if !place.exists() {
        fs::File::create(&place)?;
    }
    let none: Option<&str> = None;
    mount(Some(path), &place, none, MsFlags::MS_BIND, none)?;
    mount(none, &place, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none)?;
    Ok(())
}
