//! `--watch`: runs again when tracked files change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::options::Options;
use super::plan_inputs::GitState;
use super::{is_interrupted, once, terminal};
use crate::local::checkout::Checkout;
use crate::local::report::logs_beside;
use crate::sys;

/// Editors save a file in several steps. The next run starts after this many milliseconds without a change.
const QUIET: Duration = Duration::from_millis(200);

/// Repeats the run until the user interrupts it. Fails if the file system cannot be watched.
pub fn run(options: &Options, checkout: &Checkout) -> Result<u8, String> {
    loop {
        let watched = Watched::begin(options, checkout).map_err(|error| {
            format!(
                "cannot watch {} for changes: {error}; raise the sysctl fs.inotify.max_user_watches",
                checkout.root.display()
            )
        })?;
        let status = GitState::ask(&checkout.root, true).and_then(|asked| once(options, checkout, asked, None));
        let status = status.unwrap_or_else(|why| {
            eprintln!("mayfly: {why}");
            super::REFUSED
        });
        if is_interrupted(status) {
            return Ok(status);
        }
        terminal::print("waiting for changes; press Ctrl-C to stop\n");
        watched.wait().map_err(|error| format!("cannot watch for changes: {error}"))?;
    }
}

/// Watches the files that a run reads, and git's index, which lists the tracked files.
struct Watched<'a> {
    checkout: &'a Checkout,
    untracked: bool,
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// The files that a run reads, by their paths below the root.
    files: HashSet<PathBuf>,
    /// The configuration file, which need not be tracked.
    configuration: PathBuf,
    /// The paths that a run writes.
    results: Vec<PathBuf>,
}

impl<'a> Watched<'a> {
    fn begin(options: &Options, checkout: &'a Checkout) -> io::Result<Self> {
        let outputs = [options.artifacts.clone(), options.report.clone(), options.junit.clone()];
        let logs = options.report.as_deref().map(logs_beside);
        let results = outputs.into_iter().flatten().chain(logs).map(std::path::absolute).collect::<io::Result<_>>()?;
        let mut watched = Self {
            checkout,
            untracked: options.untracked,
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            directories: HashMap::new(),
            files: HashSet::new(),
            configuration: PathBuf::from(&options.file),
            results,
        };
        watched.files = watched.list()?;
        let index = checkout.index.parent().unwrap_or(Path::new("")).to_owned();
        let files = watched.files.iter().chain([&watched.configuration]);
        let directories: BTreeSet<&Path> = files.filter_map(|file| file.parent()).collect();
        let directories = directories.into_iter().map(|directory| checkout.root.join(directory)).chain([index]);
        let wanted = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB;
        for directory in directories {
            match watched.inotify.add_watch(&directory, wanted) {
                Ok(watch) => drop(watched.directories.insert(watch, directory)),
                Err(nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(watched)
    }

    fn list(&self) -> io::Result<HashSet<PathBuf>> {
        let files = self.checkout.files(self.untracked).map_err(io::Error::other)?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    /// Waits for a change followed by a quiet period. An interrupt ends the process.
    fn wait(&self) -> io::Result<()> {
        let mut until: Option<Instant> = None;
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(());
            }
            if sys::wait([Some(self.inotify.as_fd())], left)? == [true] {
                let events = self.inotify.read_events().unwrap_or_default();
                if events.iter().any(|event| self.concerns(event)) {
                    until = Some(Instant::now() + QUIET);
                }
            }
        }
    }

    /// Whether an event changes the input of a run.
    fn concerns(&self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        let (Some(directory), Some(name)) = (self.directories.get(&event.wd), &event.name) else { return false };
        let path = directory.join(name);
        if path == self.checkout.index {
            // Git also writes the index when only file times change, so the lists of files are compared.
            return self.list().is_ok_and(|files| files != self.files);
        }
        let Ok(below) = path.strip_prefix(&self.checkout.root) else { return false };
        let is_result = self.results.iter().any(|result| path.starts_with(result));
        self.files.contains(below)
            || below == self.configuration
            || self.untracked && !is_result && self.list().is_ok_and(|files| files.contains(below))
    }
}
