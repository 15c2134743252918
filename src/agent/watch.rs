//! Notices that `config.toml` was changed, from the kernel rather than by looking again and again.

use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::Event;

/// Starts the thread that reports each change of the file at `path`: it watches the directory, since editors and
/// provisioning tools replace the file. Where the directory cannot be watched, SIGHUP remains; that is said once.
pub fn watch(path: &Path, events: Sender<Event>) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if let Err(error) = start(directory, name.to_owned(), events) {
        log::warn!(
            "changes of the configuration are not noticed by themselves, send SIGHUP path={} error={error}",
            path.display()
        );
    }
}

fn start(directory: &Path, name: OsString, events: Sender<Event>) -> nix::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(directory, changes)?;
    let report = move || {
        loop {
            let changes = match inotify.read_events() {
                Ok(changes) => changes,
                // A machine or a process that was frozen and goes on.
                Err(nix::Error::EINTR) => continue,
                Err(error) => return log::warn!("changes of the configuration are no longer noticed error={error}"),
            };
            let ours = changes.iter().any(|change| change.name.as_ref() == Some(&name));
            if ours && events.send(Event::ConfigurationChanged).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("watch".to_owned())
        .stack_size(super::STACK)
        .spawn(report)
        .map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
    Ok(())
}
