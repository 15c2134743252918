//! `--watch`: runs again when a file changes that the run has read.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::args::ExecArgs;
use super::plan_inputs::GitState;
use super::{is_interrupted, run_once, settings, terminal};
use crate::local::checkout::{Checkout, FileSet};
use crate::local::report::logs_beside;
use crate::local::sources::files_below;
use crate::sys;

/// Editors save a file in several steps. The next run starts after this time without a change.
const QUIET_PERIOD: Duration = Duration::from_millis(200);

/// Repeats the run until the user interrupts it. `given` are the options of the command line; the settings files are
/// read again before each run. Fails if the file system cannot be watched.
pub fn run(given: &ExecArgs, checkout: &Checkout) -> Result<u8, String> {
    let cannot_watch = |error: io::Error| {
        let root = checkout.root.display();
        format!("cannot watch {root} for changes: {error}; raise the sysctl fs.inotify.max_user_watches")
    };
    loop {
        // Watching begins before the files are read, so that no change is missed.
        let mut watch = Watch::begin(checkout).map_err(cannot_watch)?;
        let merged = settings::merge(given, &checkout.root);
        let inputs = merged.as_ref().map_or(given, |merged| &merged.options);
        watch.add_inputs_of_run(inputs).map_err(cannot_watch)?;
        let status = merged.and_then(|merged| {
            merged.print_warnings();
            run_once(&merged.options, checkout, GitState::read_with_files(&checkout.root)?, None)
        });
        let status = status.unwrap_or_else(|why| {
            terminal::print_error(&format!("mayfly: {why}\n"));
            super::REFUSED
        });
        if is_interrupted(status) {
            return Ok(status);
        }
        terminal::print("waiting for changes; press Ctrl-C to stop\n");
        watch.wait().map_err(|error| format!("cannot watch for changes: {error}"))?;
    }
}

/// Watches the files that a run reads, and git's index, which lists the tracked files.
struct Watch<'a> {
    checkout: &'a Checkout,
    inotify: Inotify,
    /// The watched directories, by their real paths.
    directories: HashMap<WatchDescriptor, PathBuf>,
    file_set: FileSet,
    /// The files of the checkout that a run reads, by their paths below the root.
    files: HashSet<PathBuf>,
    /// Other files that a run reads, and that need not be tracked: settings, configuration, variables, files of
    /// `--map-…`. Of a file whose directory does not exist, the missing directory.
    other_files: HashSet<PathBuf>,
    /// The paths that a run writes.
    outputs: Vec<PathBuf>,
}

impl<'a> Watch<'a> {
    /// Watches the settings files.
    fn begin(checkout: &'a Checkout) -> io::Result<Self> {
        let mut watch = Self {
            checkout,
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            directories: HashMap::new(),
            file_set: FileSet::Tracked,
            files: HashSet::new(),
            other_files: HashSet::new(),
            outputs: Vec::new(),
        };
        for file in settings::files(&checkout.root) {
            watch.add_other_file(&file)?;
        }
        Ok(watch)
    }

    /// Watches the files that a run with these options reads.
    fn add_inputs_of_run(&mut self, options: &ExecArgs) -> io::Result<()> {
        let outputs = [options.artifacts.clone(), options.report.clone(), options.junit.clone()];
        let logs = options.report.as_deref().map(logs_beside);
        let outputs = outputs.into_iter().flatten().chain(logs);
        self.outputs = outputs.map(std::path::absolute).collect::<io::Result<_>>()?;
        self.file_set = options.file_set();
        self.files = self.list()?;
        let below: BTreeSet<&Path> = self.files.iter().filter_map(|file| file.parent()).collect();
        let index = self.checkout.index.parent().map(Path::to_owned);
        let directories = below.into_iter().map(|directory| self.checkout.root.join(directory)).chain(index);
        for directory in directories.collect::<Vec<_>>() {
            self.add_directory(directory)?;
        }
        self.add_other_file(&self.checkout.root.join(&options.file))?;
        // The run reports a mapping that cannot be parsed.
        let maps = super::values::maps(options).unwrap_or_default();
        for file in options.vars_file.iter().chain(maps.remotes.values()) {
            self.add_other_file(file)?;
        }
        let projects = maps.projects.into_iter().map(|map| map.directory);
        let components = maps.components.into_iter().map(|map| map.directory);
        for directory in projects.chain(components).chain(maps.templates) {
            self.add_mapped_directory(&directory)?;
        }
        Ok(())
    }

    /// Watches the files in a mapped directory: of a checkout the tracked ones, else all.
    fn add_mapped_directory(&mut self, directory: &Path) -> io::Result<()> {
        // The run reports a directory that cannot be read.
        let Ok(root) = directory.canonicalize() else { return Ok(()) };
        let checkout = Checkout::find(&root).ok().filter(|checkout| checkout.root == root);
        let files: Vec<PathBuf> = match checkout {
            Some(checkout) => {
                let files = checkout.files(FileSet::Tracked).unwrap_or_default();
                files.into_iter().map(|file| root.join(file.path)).collect()
            }
            None => files_below(&root).unwrap_or_default().into_iter().map(|file| root.join(file)).collect(),
        };
        let directories: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
        for directory in directories {
            self.add_directory(directory.to_owned())?;
        }
        self.other_files.extend(files);
        Ok(())
    }

    fn list(&self) -> io::Result<HashSet<PathBuf>> {
        let files = self.checkout.files(self.file_set).map_err(io::Error::other)?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    /// Watches a file that need not exist. If the path is a link, watches the link and the file that it refers to. If
    /// the directory does not exist, watches for the creation of its missing part.
    fn add_other_file(&mut self, path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        let own = match directory.canonicalize() {
            Ok(directory) => Some(directory.join(name)),
            Err(_) => first_missing(directory),
        };
        for file in [own, path.canonicalize().ok()].into_iter().flatten() {
            if let Some(directory) = file.parent() {
                self.add_directory(directory.to_owned())?;
            }
            self.other_files.insert(file);
        }
        Ok(())
    }

    /// Watches the files of a directory, if it exists.
    fn add_directory(&mut self, directory: PathBuf) -> io::Result<()> {
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE;
        match self.inotify.add_watch(&directory, changes) {
            Ok(descriptor) => drop(self.directories.insert(descriptor, directory)),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
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
                if events.iter().any(|event| self.changes_an_input(event)) {
                    until = Some(Instant::now() + QUIET_PERIOD);
                }
            }
        }
    }

    /// Whether an event changes a file that a run reads.
    fn changes_an_input(&self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        // A new file is complete when its writer closes it.
        if event.mask.contains(AddWatchFlags::IN_CREATE) && !event.mask.contains(AddWatchFlags::IN_ISDIR) {
            return false;
        }
        let (Some(directory), Some(name)) = (self.directories.get(&event.wd), &event.name) else { return false };
        let path = directory.join(name);
        if path == self.checkout.index {
            // Git also writes the index when only file times change, so the lists of files are compared.
            return self.list().is_ok_and(|files| files != self.files);
        }
        if self.other_files.contains(&path) {
            return true;
        }
        let Ok(below) = path.strip_prefix(&self.checkout.root) else { return false };
        self.files.contains(below) || self.is_new_untracked_file(&path, below)
    }

    /// Whether a path is a new file that `--untracked` adds. The outputs of the run are not.
    fn is_new_untracked_file(&self, path: &Path, below: &Path) -> bool {
        let is_output = self.outputs.iter().any(|output| path.starts_with(output));
        self.file_set == FileSet::NotIgnored && !is_output && self.list().is_ok_and(|files| files.contains(below))
    }
}

/// The first directory of a path that does not exist, in a directory that does.
fn first_missing(path: &Path) -> Option<PathBuf> {
    let (parent, name) = (path.parent()?, path.file_name()?);
    match parent.canonicalize() {
        Ok(parent) => Some(parent.join(name)),
        Err(_) => first_missing(parent),
    }
}
