//! The root directory of the sandbox: the machine's programs, read-only, and the job's directories.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod, umask};
use nix::unistd::{chdir, mkdir, pivot_root};

use crate::shim::spec::Sandbox;
use crate::sys::mounts;

/// Where the new root is built: every machine has this directory, and no job keeps files there.
const STAGING_DIR: &str = "/proc";

/// Programs and their libraries. A symbolic link stays a symbolic link.
const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// Certificates, name resolution and the machine's git configuration.
const SETTINGS: [&str; 19] = [
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/gai.conf",
    "/etc/gitattributes",
    "/etc/gitconfig",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/services",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/var/lib/ca-certificates",
];

const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

const NO_FS: Option<&str> = None;

/// The result of building the root.
pub struct SandboxRoot {
    /// Whether the sandbox user owns root's files.
    pub owners_are_mapped: bool,
    /// Whether `/proc` is mounted.
    pub has_process_table: bool,
}

/// Builds the root and moves this process into it. The process must be in a separate mount namespace. Errors: what the
/// kernel refused.
pub fn build(sandbox: &Sandbox, owners: Option<&OwnedFd>) -> io::Result<SandboxRoot> {
    let before = umask(Mode::from_bits_truncate(0o022));
    let outcome = build_at_staging(sandbox, owners);
    umask(before);
    outcome
}

fn build_at_staging(sandbox: &Sandbox, owners: Option<&OwnedFd>) -> io::Result<SandboxRoot> {
    mount(NO_FS, "/", NO_FS, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_FS)?;
    // The mounts are cloned before the staging directory hides any of them.
    let copies = owners.and_then(|owners| clone_mounts(&sandbox.writable, owners).ok());
    let bare = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The staging directory hides everything below it, so no source of a mount may be there.
    mount(Some("root"), STAGING_DIR, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=1m,mode=755"))?;
    chdir(STAGING_DIR)?;
    for path in PROGRAMS {
        bind_mount(Path::new(path), MsFlags::MS_RDONLY | MsFlags::MS_NOSUID)?;
    }
    for path in SETTINGS.iter().map(Path::new).chain(sandbox.readable.iter().map(PathBuf::as_path)) {
        bind_mount(path, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    }
    write_users(sandbox.uid)?;
    for path in DEVICES {
        bind_mount(Path::new(path), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    // `/tmp` is mounted before the job's directories, which may be below it.
    create_mount_point(Path::new("/tmp"), MountPoint::Directory)?;
    mount(Some("tmp"), "tmp", Some("tmpfs"), bare, Some("size=64m,mode=1777"))?;
    match &copies {
        Some(copies) => {
            for (path, copy) in sandbox.writable.iter().zip(copies) {
                create_mount_point(path, MountPoint::Directory)?;
                mounts::attach(copy.as_fd(), staged(path))?;
                remount(path, bare)?;
            }
        }
        None => sandbox.writable.iter().try_for_each(|path| bind_mount(path, bare))?,
    }
    create_mount_point(Path::new("/proc"), MountPoint::Directory)?;
    let has_process_table =
        mount(Some("proc"), "proc", Some("proc"), bare | MsFlags::MS_RDONLY, Some("subset=pid")).is_ok();
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let closed = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(NO_FS, "/", NO_FS, closed, NO_FS)?;
    Ok(SandboxRoot { owners_are_mapped: copies.is_some(), has_process_table })
}

/// Clones the mounts of the directories, with mapped owners. Fails if one of them cannot be cloned.
fn clone_mounts(paths: &[PathBuf], owners: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let copy = |path: &PathBuf| {
        let copy = mounts::clone_mount(path)?;
        mounts::map_owners(copy.as_fd(), owners.as_fd())?;
        Ok(copy)
    };
    paths.iter().map(copy).collect()
}

/// Writes the files of users and hosts for the sandbox. The machine's own files are not visible.
fn write_users(uid: u32) -> io::Result<()> {
    create_mount_point(Path::new("/etc"), MountPoint::Directory)?;
    let users = format!("root:x:0:0::/:/sbin/nologin\nmayfly-confined:x:{uid}:{uid}::/:/sbin/nologin\n");
    fs::write("etc/passwd", users)?;
    fs::write("etc/group", format!("root:x:0:\nmayfly-confined:x:{uid}:\n"))?;
    fs::write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
}

/// The path in the new root, relative to the working directory, which is the new root.
fn staged(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Bind-mounts a path of the machine at the same path in the sandbox. A missing path is skipped. A link to a directory
/// of programs stays a link.
fn bind_mount(path: &Path, flags: MsFlags) -> io::Result<()> {
    if PROGRAMS.iter().any(|program| Path::new(program) == path)
        && let Ok(target) = fs::read_link(path)
    {
        return symlink(target, staged(path));
    }
    let Ok(target) = path.metadata() else { return Ok(()) };
    create_mount_point(path, if target.is_dir() { MountPoint::Directory } else { MountPoint::File })?;
    mount(Some(path), staged(path), NO_FS, MsFlags::MS_BIND, NO_FS)?;
    remount(path, flags)
}

/// The kind of a mount point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MountPoint {
    Directory,
    /// An empty file.
    File,
}

/// Creates a mount point in the new root. Creates the parent directories only if the first attempt fails: most of the
/// time in which a root is built is spent in the kernel.
fn create_mount_point(path: &Path, kind: MountPoint) -> io::Result<()> {
    let staged = staged(path);
    let create = || match kind {
        MountPoint::Directory => mkdir(staged, Mode::from_bits_truncate(0o755)),
        MountPoint::File => mknod(staged, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0),
    };
    match create() {
        Err(Errno::ENOENT) => {
            staged.parent().map_or(Ok(()), fs::create_dir_all)?;
            Ok(create()?)
        }
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remount(path: &Path, flags: MsFlags) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
    Ok(mount(NO_FS, staged(path), NO_FS, flags, NO_FS)?)
}
