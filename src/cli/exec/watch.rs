//! `--watch`: runs again when tracked files change.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::options::Options;
use super::{GitState, is_interrupted, once};
use crate::local::checkout::Checkout;

use crate::sys;

/// Editors save a file in several steps. The next run starts after this many milliseconds without a change.
const QUIET: Duration = Duration::from_millis(200);

/// Repeats the run until the user interrupts it. Fails if the file system cannot be watched.
pub fn run(options: &Options, checkout: &Checkout) -> Result<u8, String> {
    loop {
        let watched = Watched::begin(checkout).map_err(|error| {
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
        super::say("waiting for changes; press Ctrl-C to stop\n");
        watched.wait().map_err(|error| format!("cannot watch for changes: {error}"))?;
    }
}

/// Watches the directories of tracked files.
struct Watched {
    inotify: Inotify,
}

impl Watched {
    fn begin(checkout: &Checkout) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let files = checkout.files(false).map_err(io::Error::other)?;
        let directories: BTreeSet<&Path> = files.iter().filter_map(|file| file.path.parent()).collect();
        let wanted = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB;
        for directory in directories {
            match inotify.add_watch(&checkout.root.join(directory), wanted) {
                Ok(_) | Err(nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { inotify })
    }

    /// Waits for a change followed by a quiet period. An interrupt ends the process.
    fn wait(&self) -> io::Result<()> {
        let mut timeout = None;
        while let [true] = sys::wait([Some(self.inotify.as_fd())], timeout)? {
            let _ = self.inotify.read_events();
            timeout = Some(QUIET);
        }
        Ok(())
    }
}
