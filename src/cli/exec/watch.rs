//! `--watch`: runs again when tracked files change.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::options::Options;
use super::{GitState, is_interrupted, once};
use crate::local::checkout::Checkout;
use crate::local::results::RunStatus;

use crate::sys;

/// Editors save a file in several steps. The next run starts after this many milliseconds without a change.
const QUIET: Duration = Duration::from_millis(200);

/// Repeats the run until the user interrupts it. Fails if the file system cannot be watched.
pub fn run(options: &Options, checkout: &Checkout) -> Result<u8, String> {
    let interrupts = interrupts().map_err(|error| format!("cannot install a signal handler: {error}"))?;
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
        match watched.wait(&interrupts) {
            Ok(Woken::Changed) => {}
            Ok(Woken::Interrupted) => return Ok(RunStatus::Interrupted.exit_status()),
            Err(error) => return Err(format!("cannot watch for changes: {error}")),
        }
    }
}

/// A socket that becomes readable when a termination signal arrives.
fn interrupts() -> io::Result<UnixStream> {
    let (interrupts, sender) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(interrupts)
}

/// The event that ended a wait.
enum Woken {
    Changed,
    Interrupted,
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

    /// Waits for a change followed by a quiet period, or for an interrupt.
    fn wait(&self, interrupts: &UnixStream) -> io::Result<Woken> {
        let mut timeout = None;
        loop {
            match sys::wait([Some(self.inotify.as_fd()), Some(interrupts.as_fd())], timeout)? {
                [_, true] => return Ok(Woken::Interrupted),
                [true, false] => {
                    let _ = self.inotify.read_events();
                    timeout = Some(QUIET);
                }
                [false, false] => return Ok(Woken::Changed),
            }
        }
    }
}
