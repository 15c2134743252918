//! Processes: forks, descriptors, start times and users.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};

/// Bytes of the stack of a [`NamespaceKeeper`], a multiple of 16.
const KEEPER_STACK: usize = 16 << 10;

/// A descriptor for a process; it becomes readable when the process ends.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor, owned by this function only, or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: see above; descriptors fit an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process of a descriptor; safe even if its pid was reused.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means a plain kill; the descriptor is borrowed for the call.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Forks a single-threaded process. A process with several threads is refused, because locks and memory of the other
/// threads would be inconsistent in the child.
pub fn fork_single_threaded() -> io::Result<Option<Pid>> {
    refuse_threads()?;
    // SAFETY: there is one thread, so the child's memory is consistent.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Forks into a control group of version 2: moving the child there later would wait for all CPUs. Also fails for a
/// group of version 1, and on kernels before 5.7.
pub fn fork_into(group: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    refuse_threads()?;
    // SAFETY: clone_args contains only integers, for which zero is valid.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = CLONE_INTO_CGROUP;
    how.exit_signal = libc::SIGCHLD as u64;
    how.cgroup = group.as_raw_fd() as u64;
    // SAFETY: there is one thread, so the child's memory is consistent, and it continues with a copy of the stack. The
    // C library's cached thread id is wrong in the child; only abort(3) uses it.
    let forked = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of::<libc::clone_args>()) };
    match forked {
        0 => Ok(None),
        1.. => Ok(Some(Pid::from_raw(forked as i32))),
        _ => Err(io::Error::last_os_error()),
    }
}

fn refuse_threads() -> io::Result<()> {
    match is_single_threaded() {
        true => Ok(()),
        false => Err(io::Error::other("cannot fork a process with several threads")),
    }
}

/// The link count of `/proc/self/task` is the number of threads plus two.
fn is_single_threaded() -> bool {
    fs::metadata("/proc/self/task").is_ok_and(|tasks| tasks.nlink() == 3)
}

/// A process that only waits, in its own user namespace without id mappings; the process ends when this value is
/// dropped. It shares the memory of this process: copying the memory would take longer than the rest of its start.
pub struct NamespaceKeeper {
    pid: Pid,
    /// The stack on which the process runs; must outlive the process.
    _stack: Vec<u8>,
}

impl NamespaceKeeper {
    /// Starts the process. Errors: of clone(2).
    pub fn start() -> io::Result<Self> {
        extern "C" fn wait(_: *mut libc::c_void) -> libc::c_int {
            loop {
                // SAFETY: the call has no arguments.
                unsafe { libc::pause() };
            }
        }
        let mut stack = vec![0_u8; KEEPER_STACK];
        // SAFETY: the end of the stack, rounded down to the alignment that a stack needs.
        let top = unsafe { stack.as_mut_ptr().add(KEEPER_STACK - stack.as_ptr().addr() % 16) };
        let flags = libc::CLONE_NEWUSER | libc::CLONE_VM | libc::SIGCHLD;
        // SAFETY: the process runs `wait` on a stack that lives until the process has ended. `wait` makes one system
        // call and writes to no other memory of this process.
        let pid = unsafe { libc::clone(wait, top.cast(), flags, std::ptr::null_mut()) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { pid: Pid::from_raw(pid), _stack: stack })
    }

    /// The pid of the process.
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for NamespaceKeeper {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// Removes a variable from the environment of this process. A process with several threads keeps it: another thread
/// could be reading the environment.
pub fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    if is_single_threaded() {
        // SAFETY: there is one thread, so no other thread reads the environment.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Exits at once, without exit handlers (which a forked child shares with its parent).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// The start time of a process in clock ticks since boot; together with the pid, it identifies the process uniquely.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process name, in parentheses, may contain any character; the start time is the twentieth field after it.
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The real, effective, saved and file system uid of a process.
pub fn users_of(pid: i32) -> Option<[u32; 4]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let users: Vec<u32> = line.split_ascii_whitespace().map_while(|user| user.parse().ok()).collect();
    users.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn threads_are_counted() {
        // The test runs in a thread beside the main one.
        assert!(!is_single_threaded());
        assert!(fork_single_threaded().is_err());
    }

    #[test]
    fn a_namespace_keeper_has_a_user_namespace_and_ends() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let keeper = NamespaceKeeper::start().expect("start the process");
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).expect("a namespace");
        assert_ne!(namespace(&keeper.pid().to_string()), namespace("self"));
        let pid = keeper.pid();
        drop(keeper);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }

    #[test]
    fn a_pidfd_becomes_readable_at_the_end() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("start the program");
        let pidfd = pidfd_open(child.id().cast_signed()).expect("open the pidfd");
        assert!(start_time(child.id().cast_signed()).is_some());
        pidfd_signal(pidfd.as_fd(), libc::SIGKILL).expect("send the signal");
        assert!(!child.wait().expect("wait for the end of the process").success());
        assert!(pidfd_signal(pidfd.as_fd(), libc::SIGKILL).is_err());
    }
}
