//! The root directory of the sandbox: the machine's programs, read-only, and the job's directories.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, pivot_root};

use crate::shim::spec::Sandbox;
use crate::sys::mounts;

/// Where the new root is built: every machine has this directory, and no job keeps files there.
const STAGING_DIR: &str = "/proc";

/// Programs and their libraries. A symbolic link stays one.
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
    /// The sandbox user owns root's files.
    pub owners_are_mapped: bool,
    /// `/proc` is mounted.
    pub has_process_table: bool,
}

/// Builds the root and moves this process into it; the process must be in a mount namespace of its own. Errors: what
/// the kernel refused.
pub fn build(sandbox: &Sandbox, owners: Option<&OwnedFd>) -> io::Result<SandboxRoot> {
    let before = umask(Mode::from_bits_truncate(0o022));
    let outcome = build_at_staging(sandbox, owners);
    umask(before);
    outcome
}

fn build_at_staging(sandbox: &Sandbox, owners: Option<&OwnedFd>) -> io::Result<SandboxRoot> {
    mount(NO_FS, "/", NO_FS, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_FS)?;
    // Cloned before the staging directory hides anything.
    let copies = owners.and_then(|owners| clone_mounts(&sandbox.writable, owners).ok());
    // The staging directory hides what is below it, so no source may be there.
    let bare = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("root"), STAGING_DIR, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=1m,mode=755"))?;
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
    // Mounted before the directories that may be below it.
    let temporary = staged(Path::new("/tmp"));
    fs::create_dir_all(&temporary)?;
    mount(Some("tmp"), &temporary, Some("tmpfs"), bare, Some("size=64m,mode=1777"))?;
    match &copies {
        Some(copies) => {
            for (path, copy) in sandbox.writable.iter().zip(copies) {
                create_mount_point(path, true)?;
                mounts::put(copy.as_fd(), &staged(path))?;
                remount(path, bare)?;
            }
        }
        None => sandbox.writable.iter().try_for_each(|path| bind_mount(path, bare))?,
    }
    let processes = staged(Path::new("/proc"));
    fs::create_dir(&processes)?;
    let has_process_table =
        mount(Some("proc"), &processes, Some("proc"), bare | MsFlags::MS_RDONLY, Some("subset=pid")).is_ok();
    chdir(STAGING_DIR)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let closed = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(NO_FS, "/", NO_FS, closed, NO_FS)?;
    Ok(SandboxRoot { owners_are_mapped: copies.is_some(), has_process_table })
}

/// Clones the mounts of the directories with mapped owners; all, or an error.
fn clone_mounts(paths: &[PathBuf], owners: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let copy = |path: &PathBuf| {
        let copy = mounts::copy_of(path)?;
        mounts::map_owners(copy.as_fd(), owners.as_fd())?;
        Ok(copy)
    };
    paths.iter().map(copy).collect()
}

/// Writes user files for the sandbox; the machine's own are not shown.
fn write_users(uid: u32) -> io::Result<()> {
    let etc = staged(Path::new("/etc"));
    fs::create_dir_all(&etc)?;
    let users = format!("root:x:0:0::/:/sbin/nologin\nmayfly-confined:x:{uid}:{uid}::/:/sbin/nologin\n");
    fs::write(etc.join("passwd"), users)?;
    fs::write(etc.join("group"), format!("root:x:0:\nmayfly-confined:x:{uid}:\n"))?;
    fs::write(etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")
}

fn staged(path: &Path) -> PathBuf {
    Path::new(STAGING_DIR).join(path.strip_prefix("/").unwrap_or(path))
}

/// Bind-mounts a path of the machine at the same path in the sandbox; a missing path is skipped.
fn bind_mount(path: &Path, flags: MsFlags) -> io::Result<()> {
    let place = staged(path);
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if metadata.is_symlink() && PROGRAMS.iter().any(|program| Path::new(program) == path) {
        return symlink(fs::read_link(path)?, &place);
    }
    let Ok(target) = path.metadata() else { return Ok(()) };
    create_mount_point(path, target.is_dir())?;
    mount(Some(path), &place, NO_FS, MsFlags::MS_BIND, NO_FS)?;
    remount(path, flags)
}

fn create_mount_point(path: &Path, is_directory: bool) -> io::Result<()> {
    let place = staged(path);
    if is_directory {
        return fs::create_dir_all(place);
    }
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if !place.exists() {
        fs::File::create(place)?.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

fn remount(path: &Path, flags: MsFlags) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
    Ok(mount(NO_FS, &staged(path), NO_FS, flags, NO_FS)?)
}
