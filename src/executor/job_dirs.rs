//! The directories of a job.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use super::user::as_job;
use super::{Executor, roots};
use crate::failure::JobError;
use crate::job_id::JobId;
use crate::payload::Payload;
use crate::shim::spec::User;
use crate::sys;

/// File names are limited to 255 bytes, including the suffix `-empty.tmp`.
const MAX_NAME_LENGTH: usize = 245;

/// The largest part of a job's file that the agent reads, in bytes.
const MAX_READ: u64 = 1 << 20;

/// The prefix of directories that the agent removes with their job.
const JOB_DIR_PREFIX: &str = "job-";

/// The directories of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDirs {
    /// `CI_BUILDS_DIR`, the parent of the others.
    pub builds: PathBuf,
    /// `CI_PROJECT_DIR`.
    pub project: PathBuf,
    /// `<project directory>.tmp`: file variables, credentials.
    pub temporary: PathBuf,
    /// The project's directory for local caches.
    pub cache: PathBuf,
    /// The path at which a container sees `builds`; `None` for jobs in the shell.
    #[serde(default)]
    pub container_builds: Option<PathBuf>,
}

impl JobDirs {
    /// The default directories: builds directory, runner, concurrent id, project. Protected and unprotected jobs have
    /// separate directories.
    pub fn on_host(builds: &Path, caches: &Path, short_token: &str, concurrent: u32, payload: &Payload) -> Self {
        let protected = if payload.is_protected() { "-protected" } else { "" };
        let project = builds.join(short_token).join(format!("{concurrent}{protected}")).join(slug(payload));
        let cache = caches.join(slug(payload));
        Self {
            builds: builds.to_owned(),
            temporary: with_suffix(&project, ".tmp"),
            project,
            cache,
            container_builds: None,
        }
    }

    /// The directories of a job whose container sees the machine's directory `host_builds` as `inside`.
    pub fn in_container(host_builds: &Path, inside: &Path, caches: &Path, payload: &Payload) -> Self {
        let project = host_builds.join(slug(payload));
        let cache = caches.join(slug(payload));
        let inside = Some(inside.to_owned());
        Self {
            builds: host_builds.to_owned(),
            temporary: with_suffix(&project, ".tmp"),
            project,
            cache,
            container_builds: inside,
        }
    }

    /// A path below the builds directory, as the job sees it.
    pub fn as_seen_by_job(&self, path: &Path) -> PathBuf {
        match (&self.container_builds, path.strip_prefix(&self.builds)) {
            // Joining an empty path would append a slash.
            (Some(inside), Ok(below)) if below.as_os_str().is_empty() => inside.clone(),
            (Some(inside), Ok(below)) => inside.join(below),
            _ => path.to_owned(),
        }
    }

    /// Whether scripts run in a container, which sees the directories at other paths.
    pub fn is_in_container(&self) -> bool {
        self.container_builds.is_some()
    }

    /// The temporary directory as the job's container sees it; `None` for jobs in the shell.
    pub fn temporary_in_container(&self) -> Option<PathBuf> {
        self.is_in_container().then(|| self.as_seen_by_job(&self.temporary))
    }

    /// The directories of a job without sources (`GIT_STRATEGY` `empty`); separate, so that the next job keeps its
    /// checkout.
    pub fn without_checkout(&self) -> Self {
        let (project, cache) = (with_suffix(&self.project, "-empty"), with_suffix(&self.cache, "-empty"));
        Self { temporary: with_suffix(&project, ".tmp"), project, cache, ..self.clone() }
    }

    /// Sets another project directory (`GIT_CLONE_PATH`). Fails if it is not below the builds directory.
    pub fn with_project(&self, path: &str) -> Result<Self, JobError> {
        let outside = || {
            JobError::configuration(format!(
                "GIT_CLONE_PATH `{path}` is not below the builds directory {}",
                self.as_seen_by_job(&self.builds).display()
            ))
        };
        let builds = self.as_seen_by_job(&self.builds);
        let below = Path::new(path).strip_prefix(&builds).map_err(|_| outside())?;
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || below.as_os_str().is_empty() {
            return Err(outside());
        }
        if path.contains(char::is_control) {
            let path = path.escape_debug();
            return Err(JobError::configuration(format!("GIT_CLONE_PATH `{path}` contains a control character")));
        }
        let project = self.builds.join(below);
        Ok(Self { temporary: with_suffix(&project, ".tmp"), project, ..self.clone() })
    }

    /// Creates the directories for builds and caches. They belong to the job's user if that is not the agent's user;
    /// other users cannot enter them.
    pub fn create(&self, caches: &Path, executor: &dyn Executor) -> io::Result<()> {
        let Some(user) = executor.user() else {
            roots::create(&self.builds, None, 0o700)?;
            return roots::create(caches, None, 0o700);
        };
        match self.builds.parent() {
            Some(above) if executor.shares_caches() => {
                roots::create_common_parent(above, user)?;
                roots::create_group_shared(caches, user)?;
            }
            _ => roots::create(caches, Some(user), 0o700)?,
        }
        roots::create(&self.builds, Some(user), 0o700)
    }

    /// Removes files from the temporary directory.
    pub fn remove_temporary(&self, names: &[String], user: Option<&User>) {
        let _ = as_job(user, || {
            let Some(directory) = self.open_temporary_directory() else { return };
            for name in names {
                let _ = unlinkat(&directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        });
    }

    /// Creates an empty file in the temporary directory, readable only by the job's user; replaces an existing entry.
    /// Does nothing if the temporary directory does not exist, or a directory has the name.
    pub fn truncate_temporary(&self, name: &str, user: Option<&User>) {
        let _ = as_job(user, || {
            let Some(directory) = self.open_temporary_directory() else { return };
            let _ = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let _ = openat(&directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        });
    }

    /// The beginning of a file in the temporary directory, which must belong to the job's user and have only one hard
    /// link; empty if there is no such file.
    pub fn read_temporary(&self, name: &str, user: Option<&User>) -> String {
        let is_own = |metadata: &fs::Metadata| {
            metadata.is_file() && metadata.nlink() == 1 && user.is_none_or(|user| metadata.uid() == user.uid)
        };
        // A job may have put a named pipe or a device in place of the file. The agent must not open those.
        let open = || {
            let found = self.open_temporary(name, OFlag::O_PATH | OFlag::O_NOFOLLOW).map(fs::File::from)?;
            found.metadata().is_ok_and(|metadata| is_own(&metadata)).then_some(())?;
            sys::reopen(found.as_fd(), OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok().map(fs::File::from)
        };
        let file = as_job(user, open).ok().flatten();
        let mut text = Vec::new();
        if let Some(file) = file {
            let _ = file.take(MAX_READ).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Opens the temporary directory, even if the job removed its permissions.
    fn open_temporary_directory(&self) -> Option<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        self.open_temporary("", flags).or_else(|| {
            self.restore_permissions()?;
            self.open_temporary("", flags)
        })
    }

    /// Restores the owner's permissions for the directories down to the temporary one.
    fn restore_permissions(&self) -> Option<()> {
        let root = self.open_root()?;
        let below = self.temporary.strip_prefix(&self.builds).ok()?;
        let mut above: Vec<&Path> = below.ancestors().collect();
        above.reverse();
        for part in above.into_iter().filter(|part| !part.as_os_str().is_empty()) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let directory = sys::open_beneath(root.as_fd(), part, flags).ok()?;
            let mode = fs::File::from(directory.try_clone().ok()?).metadata().ok()?.mode();
            if mode & 0o700 != 0o700 {
                let own_path = format!("/proc/self/fd/{}", directory.as_raw_fd());
                fs::set_permissions(own_path, fs::Permissions::from_mode((mode | 0o700) & 0o7777)).ok()?;
            }
        }
        Some(())
    }

    /// Opens the temporary directory, or a file in it. Follows no link, because a job may have planted one.
    fn open_temporary(&self, name: &str, flags: OFlag) -> Option<OwnedFd> {
        let root = self.open_root()?;
        let below = self.temporary.strip_prefix(&self.builds).ok()?;
        let path = if name.is_empty() { below.to_owned() } else { below.join(name) };
        sys::open_beneath(root.as_fd(), &path, flags).ok()
    }

    fn open_root(&self) -> Option<OwnedFd> {
        open(&self.builds, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()
    }
}

/// The name of a directory for the builds of one container job alone.
pub fn job_dir_name(job: &JobId) -> String {
    format!("{JOB_DIR_PREFIX}{job}")
}

/// Whether a directory of builds belongs to one job alone.
pub fn is_job_dir(builds: &Path) -> bool {
    builds.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(JOB_DIR_PREFIX))
}

/// A path with `suffix` appended to its last part.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The path of the repository on its server, if it is valid as a local path.
fn slug(payload: &Payload) -> PathBuf {
    let url = &payload.git_info.repo_url;
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map(|(_, path)| path),
        None => url.split_once(':').map(|(_, path)| path),
    };
    let path = path.unwrap_or_default().trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let usable = !path.is_empty()
        && !path.contains(char::is_control)
        && !path.contains("..")
        // A project path that ends in `.tmp` would be the temporary directory of another project.
        && !path.ends_with(".tmp")
        && path.split('/').all(|part| !part.is_empty() && part != "." && part.len() < MAX_NAME_LENGTH);
    match usable {
        true => PathBuf::from(path),
        false => PathBuf::from(format!("project-{}", payload.job_info.project_id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs_of(url: &str) -> JobDirs {
        let mut payload = Payload::default();
        payload.git_info.repo_url = url.to_owned();
        payload.job_info.project_id = 9;
        JobDirs::on_host(Path::new("/builds"), Path::new("/cache"), "abc", 0, &payload)
    }

    #[test]
    fn derives_the_project_directory_and_stays_below_builds() {
        for (url, project) in [
            ("https://u:t@h/group/sub/demo.git", "/builds/abc/0/group/sub/demo"),
            ("git@h:group/demo.git", "/builds/abc/0/group/demo"),
            ("https://h/../../etc", "/builds/abc/0/project-9"),
            ("https://h/a\nb", "/builds/abc/0/project-9"),
            ("https://h/a/b.tmp.git", "/builds/abc/0/project-9"),
            (&format!("https://h/a/{}", "x".repeat(300)), "/builds/abc/0/project-9"),
            ("", "/builds/abc/0/project-9"),
        ] {
            assert_eq!(dirs_of(url).project, Path::new(project), "{url}");
        }
        assert_eq!(dirs_of("https://h/a/b.git").temporary, Path::new("/builds/abc/0/a/b.tmp"));
        let nothing = dirs_of("https://h/a/b.git").without_checkout();
        assert_eq!(nothing.project, Path::new("/builds/abc/0/a/b-empty"));
        assert_eq!(nothing.temporary, Path::new("/builds/abc/0/a/b-empty.tmp"));
        assert_eq!(nothing.cache, Path::new("/cache/a/b-empty"));
    }

    #[test]
    fn maps_paths_to_those_in_the_container() {
        let mut payload = Payload::default();
        payload.git_info.repo_url = "https://h/a/b.git".to_owned();
        let dirs = JobDirs::in_container(Path::new("/var/b/1"), Path::new("/builds"), Path::new("/c"), &payload);
        assert_eq!(dirs.project, Path::new("/var/b/1/a/b"));
        assert_eq!(dirs.as_seen_by_job(&dirs.project), Path::new("/builds/a/b"));
        assert_eq!(dirs.as_seen_by_job(&dirs.builds).as_os_str(), "/builds");
        let moved = dirs.with_project("/builds/go/src").expect("the project directory must be allowed");
        assert_eq!(
            (moved.project.as_path(), moved.as_seen_by_job(&moved.temporary)),
            (Path::new("/var/b/1/go/src"), "/builds/go/src.tmp".into())
        );
        assert!(dirs.with_project("/var/b/1/x").is_err());
    }

    #[test]
    fn a_clone_path_must_be_below_the_builds_directory() {
        let dirs = dirs_of("https://h/a/b.git");
        assert_eq!(
            dirs.with_project("/builds/go/src").expect("the project directory must be allowed").project,
            Path::new("/builds/go/src")
        );
        for path in ["/builds/it's", "/builds/a b", "/builds/[x]*?", "/builds/-n", "/builds/\u{fc}"] {
            assert!(dirs.with_project(path).is_ok(), "{path}");
        }
        for path in ["/etc", "/builds", "/builds/../etc", "relative", "/builds/a\nb"] {
            assert!(dirs.with_project(path).is_err(), "{path}");
        }
    }

    #[test]
    fn reads_only_a_regular_file_of_the_user() {
        let directory = tempfile::tempdir().expect("a directory");
        let builds = directory.path().to_owned();
        fs::create_dir(builds.join("p.tmp")).expect("create the directory");
        let dirs = JobDirs {
            project: builds.join("p"),
            temporary: builds.join("p.tmp"),
            cache: builds.join("c"),
            builds,
            container_builds: None,
        };
        let path = dirs.temporary.join("env");
        assert_eq!(dirs.read_temporary("env", None), "");
        fs::write(&path, "A=1\n").expect("write the file");
        assert_eq!(dirs.read_temporary("env", None), "A=1\n");
        fs::hard_link(&path, dirs.temporary.join("other")).expect("create the link");
        assert_eq!(dirs.read_temporary("env", None), "", "it has another name");
        fs::remove_file(dirs.temporary.join("other")).expect("remove the file");
        std::os::unix::fs::symlink(&path, dirs.temporary.join("link")).expect("create the link");
        nix::unistd::mkfifo(&dirs.temporary.join("pipe"), Mode::S_IRWXU).expect("create the named pipe");
        assert_eq!(
            dirs.read_temporary("link", None) + &dirs.read_temporary("pipe", None) + &dirs.read_temporary(".", None),
            ""
        );
    }

    #[test]
    fn follows_no_planted_link_when_it_removes_secrets() {
        let directory = tempfile::tempdir().expect("a directory");
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).expect("create the directory");
        fs::write(outside.join("KEY"), "stays").expect("write the file");
        let builds = directory.path().join("builds");
        fs::create_dir(&builds).expect("create the directory");
        let cache = builds.join("cache");
        let dirs = JobDirs {
            project: builds.join("p"),
            temporary: builds.join("p.tmp"),
            builds,
            cache,
            container_builds: None,
        };
        std::os::unix::fs::symlink(&outside, &dirs.temporary).expect("create the link");
        dirs.remove_temporary(&["KEY".to_owned()], None);
        assert!(outside.join("KEY").exists());
        fs::remove_file(&dirs.temporary).expect("remove the file");
        fs::create_dir(&dirs.temporary).expect("create the directory");
        fs::write(dirs.temporary.join("KEY"), "goes").expect("write the file");
        dirs.remove_temporary(&["KEY".to_owned()], None);
        assert!(!dirs.temporary.join("KEY").exists());
    }

    #[test]
    fn replaces_anything_that_an_earlier_job_left() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().expect("a directory");
        let outside = directory.path().join("outside");
        fs::write(&outside, "stays").expect("write the file");
        let builds = directory.path().join("builds");
        let cache = builds.join("cache");
        let dirs = JobDirs {
            project: builds.join("p"),
            temporary: builds.join("p.tmp"),
            builds,
            cache,
            container_builds: None,
        };
        dirs.truncate_temporary("env", None);
        assert!(!dirs.temporary.exists(), "the directory is made by the first script");
        fs::create_dir_all(&dirs.temporary).expect("create the directory");
        let file = dirs.temporary.join("env");
        symlink(&outside, &file).expect("create the link");
        dirs.truncate_temporary("env", None);
        let made = fs::symlink_metadata(&file).expect("the file must exist");
        assert_eq!((made.is_file(), made.len(), made.permissions().mode() & 0o777), (true, 0, 0o600));
        fs::hard_link(&outside, dirs.temporary.join("link")).expect("create the link");
        dirs.truncate_temporary("link", None);
        assert_eq!(fs::read_to_string(&outside).expect("read the file"), "stays");
        fs::create_dir_all(dirs.temporary.join("directory/x")).expect("create the directory");
        dirs.truncate_temporary("directory", None);
        assert!(dirs.temporary.join("directory/x").exists(), "left to the script");
    }
}
