//! A build directory: its size, and its removal as a whole.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use serde::{Deserialize, Serialize};

use super::removal::DirectoryRemoval;
use super::sources::remove::open_above;
use crate::executor::job_dirs::JobDirs;
use crate::executor::user::{self, as_job};
use crate::shim::spec::User;

/// The maximum depth of directories that are measured. Deeper files are not counted.
const MAX_DEPTH: usize = 64;

/// A directory that is removed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BuildDir {
    /// The configured root of builds.
    pub root: PathBuf,
    /// A directory below the root. Jobs cannot replace it, but can change everything below it.
    pub trusted: PathBuf,
    /// The path of the directory to remove, relative to `trusted`; empty for `trusted` itself.
    pub below: PathBuf,
    /// The user of the jobs in this directory; `None` for the agent's own user and for containers.
    pub user: Option<String>,
}

impl BuildDir {
    /// The project's directory below the builds directory; `None` if the two are the same. `root` is the configured
    /// root of builds, if it is not the builds directory.
    pub fn of_project(dirs: &JobDirs, root: Option<&Path>, user: Option<&User>) -> Option<Self> {
        let below = dirs.project.strip_prefix(&dirs.builds).ok().filter(|below| !below.as_os_str().is_empty())?;
        Some(Self {
            root: root.unwrap_or(&dirs.builds).to_owned(),
            trusted: dirs.builds.clone(),
            below: below.to_owned(),
            user: user.map(|user| user.name.clone()),
        })
    }

    /// The path of the directory on the machine.
    pub fn path(&self) -> PathBuf {
        self.trusted.join(&self.below)
    }

    /// Removes the directory with its content, and the job's files beside it, in a process with the rights of the jobs
    /// that worked there. Fails if a file cannot be removed.
    pub fn remove(&self, removal: &DirectoryRemoval) -> io::Result<()> {
        match self.below.as_os_str().is_empty() {
            true => removal.try_to_remove(&self.trusted),
            false => removal.remove_below(&self.trusted, &self.below, self.user()?),
        }
    }

    /// The size on the disk in bytes; 0 for files that cannot be opened.
    pub fn measure(&self) -> u64 {
        let open = || {
            let directory = match self.below.as_os_str().is_empty() {
                true => open_directory(&AT_FDCWD, &self.trusted)?,
                false => {
                    let (above, name) = open_above(&self.trusted, &self.below)?;
                    open_directory(&above, name)?
                }
            };
            io::Result::Ok(size_of(directory, 0))
        };
        // The agent measures with the rights of the jobs that worked there, so that a link of a job cannot lead to
        // files of other users.
        let measured = self.user().and_then(|user| as_job(user.as_ref(), open));
        measured.and_then(|measured| measured).unwrap_or(0)
    }

    fn user(&self) -> io::Result<Option<User>> {
        self.user.as_deref().map(user::look_up).transpose().map_err(io::Error::other)
    }
}

fn open_directory<P: nix::NixPath + ?Sized>(above: &impl AsFd, name: &P) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(above, name, flags, Mode::empty())?)
}

/// The size on the disk of everything below a directory. The function follows no link. It keeps no list of names in
/// memory, because a job may have created millions of files.
fn size_of(directory: OwnedFd, depth: usize) -> u64 {
    let Ok(mut listing) = directory.try_clone().and_then(|fd| Ok(Dir::from_fd(fd)?)) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in listing.iter().flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let is_directory = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
        if is_directory && depth < MAX_DEPTH {
            bytes += open_directory(&directory, name).map_or(0, |below| size_of(below, depth + 1));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::job::sources::remove::remove_below;

    #[test]
    fn a_link_in_the_way_leads_nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, outside) = (directory.path().join("builds"), directory.path().join("outside"));
        fs::create_dir_all(outside.join("p")).expect("create the directory");
        fs::write(outside.join("p/file"), vec![1; 64 << 10]).expect("write the file");
        fs::create_dir_all(&root).expect("create the directory");
        symlink(&outside, root.join("a")).expect("create the link");
        let dir = BuildDir { root: root.clone(), trusted: root, below: "a/p".into(), user: None };
        remove_below(&dir.trusted, &dir.below).expect_err("a link must be refused");
        assert!(outside.join("p/file").exists());
        assert_eq!(dir.measure(), 0);
    }
}
