//! Reports changes of `config.toml`: with inotify for the file, and with a slow comparison for symbolic links above it
//! that are swapped (`current -> releases/2`, or `..data` of Kubernetes), which inotify on the resolved directory does
//! not report.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::sync;
use crate::sys;

/// Interval of the comparison.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);

/// Device, inode, modification time and size of the file; `None` if it does not exist.
type FileStamp = Option<(u64, u64, SystemTime, u64)>;

/// Starts the thread that reports each change of the file at `path`, until `report` returns false. The thread watches
/// the directory, because editors and provisioning tools replace the file. If the directory cannot be watched, the
/// agent logs this once, and reloads only after SIGHUP.
pub fn watch(path: &Path, report: impl Fn() -> bool + Send + 'static) {
    if let Err(error) = start(path, report) {
        log::warn!(
            "cannot watch the configuration file; send SIGHUP after a change path={} error={error}",
            path.display()
        );
    }
}

fn start(path: &Path, report: impl Fn() -> bool + Send + 'static) -> nix::Result<()> {
    let mut watcher = Watcher::new(path)?;
    let watch = move || {
        loop {
            match watcher.wait() {
                Ok(false) => {}
                Ok(true) if !report() => return,
                Ok(true) => {}
                Err(error) => {
                    return log::warn!(
                        "cannot watch the configuration file any longer; send SIGHUP after a change error={error}"
                    );
                }
            }
        }
    };
    sync::spawn("watch", super::STACK, watch).map_err(|error| errno_of(&error))?;
    Ok(())
}

struct Watcher {
    path: PathBuf,
    inotify: Inotify,
    watched: Option<WatchDescriptor>,
    stamp: FileStamp,
}

impl Watcher {
    fn new(path: &Path) -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut watcher = Self { path: path.to_owned(), inotify, watched: None, stamp: file_stamp(path) };
        watcher.watch_directory()?;
        Ok(watcher)
    }

    fn watch_directory(&mut self) -> nix::Result<()> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        let watched = self.inotify.add_watch(directory, changes)?;
        if let Some(before) = self.watched.replace(watched).filter(|before| *before != watched) {
            // An error means that the directory no longer exists; the kernel has then removed its watch.
            let _ = self.inotify.rm_watch(before);
        }
        Ok(())
    }

    /// Waits for a change or for the next comparison. Returns true if the file has changed.
    fn wait(&mut self) -> nix::Result<bool> {
        let waited = sys::wait([Some(self.inotify.as_fd())], Some(COMPARE_INTERVAL));
        match waited.map_err(|error| errno_of(&error))? {
            [true] => {}
            [false] => return Ok(self.compare()),
        }
        let changes = match self.inotify.read_events() {
            Ok(changes) => changes,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error),
        };
        let is_ours = changes.iter().any(|change| change.name.as_deref() == self.path.file_name());
        if is_ours {
            self.stamp = file_stamp(&self.path);
        }
        Ok(is_ours)
    }

    /// Whether the path now leads to another file or to changed content. If so, watches the directory of the file
    /// again, because the path may now lead through another directory.
    fn compare(&mut self) -> bool {
        let now = file_stamp(&self.path);
        let has_changed = now.is_some() && now != self.stamp;
        if has_changed {
            self.stamp = now;
            if let Err(error) = self.watch_directory() {
                log::warn!(
                    "cannot watch the directory of the configuration path={} error={error}",
                    self.path.display()
                );
            }
        }
        has_changed
    }
}

fn file_stamp(path: &Path) -> FileStamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.modified().ok()?, metadata.len()))
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_directory_link_is_a_change() {
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| root.path().join(name);
        for release in ["1", "2"] {
            fs::create_dir(at(release)).expect("create the directory");
            fs::write(at(release).join("config.toml"), "concurrent = 1\n").expect("write the file");
        }
        std::os::unix::fs::symlink("1", at("current")).expect("create the link");
        let mut watcher = Watcher::new(&at("current/config.toml")).expect("watch the file");
        assert!(!watcher.compare());
        std::os::unix::fs::symlink("2", at("next")).expect("create the link");
        fs::rename(at("next"), at("current")).expect("rename the file");
        assert!(watcher.compare());
        assert!(!watcher.compare(), "once");
        fs::write(at("2/config.toml"), "concurrent = 2\n").expect("write the file");
        assert!(watcher.wait().expect("an event"), "the new directory is watched");
    }
}
