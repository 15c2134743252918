//! System calls that `nix` lacks, each behind a small safe function.
#![allow(unsafe_code)]

pub mod identity;
pub mod mounts;

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, Pid};

/// Nanoseconds since boot, including suspend (`CLOCK_BOOTTIME`): the clock for deadlines. It cannot be set, and all
/// processes share it.
pub fn boottime() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| (time.tv_sec().unsigned_abs()) * 1_000_000_000 + time.tv_nsec().unsigned_abs())
}

/// The time in this boot during which the machine was suspended.
pub fn asleep() -> Duration {
    Duration::from_nanos(boottime()).saturating_sub(monotonic())
}

/// The time in this boot during which the machine was awake.
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

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
    fork_with(CLONE_INTO_CGROUP, Some(group))
}

/// Forks; the child is the first process of a user namespace without id mappings.
pub fn fork_into_user_namespace() -> io::Result<Option<Pid>> {
    fork_with(libc::CLONE_NEWUSER as u64, None)
}

fn fork_with(flags: u64, group: Option<BorrowedFd<'_>>) -> io::Result<Option<Pid>> {
    refuse_threads()?;
    // SAFETY: clone_args contains only integers, for which zero is valid.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = flags;
    how.exit_signal = libc::SIGCHLD as u64;
    how.cgroup = group.map_or(0, |group| group.as_raw_fd() as u64);
    // SAFETY: there is one thread, so the child's memory is consistent, and it continues with a copy of the stack. The
    // C library's cached thread id is wrong in the child; only abort(3) uses it.
    let forked = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of::<libc::clone_args>()) };
    match forked {
        0 => Ok(None),
        1.. => Ok(Some(Pid::from_raw(forked as i32))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Brings up the loopback interface in the network namespace of this thread.
pub fn bring_up_loopback() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq contains only integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request names an interface and its flags, and lives for the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn refuse_threads() -> io::Result<()> {
    match fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        _ => Err(io::Error::other("cannot fork a process with several threads")),
    }
}

/// Removes a variable from the environment of this process. A process with several threads keeps it: another thread
/// could be reading the environment.
pub fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    if fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1) {
        // SAFETY: there is one thread, so no other thread reads the environment.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Restores the default action of a signal.
pub fn default_action(number: Signal) -> nix::Result<()> {
    // SAFETY: the default action is not a handler in this program.
    unsafe { nix::sys::signal::signal(number, SigHandler::SigDfl) }.map(drop)
}

/// Ignores a signal.
pub fn ignore(number: Signal) -> nix::Result<()> {
    // SAFETY: ignoring is not a handler in this program.
    unsafe { nix::sys::signal::signal(number, SigHandler::SigIgn) }.map(drop)
}

/// Executes another program with these signals blocked: they stay pending until the program handles them
/// ([`let_through`]); unblocked, they would end it before. Returns only if the program cannot be started.
pub fn exec_holding(mut program: Command, signals: SigSet) -> io::Error {
    // SAFETY: there is no fork; before exec, one async-signal-safe call runs.
    unsafe { program.pre_exec(move || Ok(signals.thread_block()?)) };
    let error = program.exec();
    let_through(signals);
    error
}

/// Unblocks signals in this thread; pending ones are delivered at once.
pub fn let_through(signals: SigSet) {
    // Fails only for an invalid operation.
    let _ = signals.thread_unblock();
}

/// Exits on SIGTERM, also in the first process of a PID namespace, where the default action has no effect.
pub fn exit_on_term() -> nix::Result<()> {
    extern "C" fn exit(_: libc::c_int) {
        // SAFETY: async-signal-safe, and never returns.
        unsafe { libc::_exit(128 + libc::SIGTERM) }
    }
    // SAFETY: the handler calls nothing but _exit.
    unsafe { nix::sys::signal::signal(Signal::SIGTERM, SigHandler::Handler(exit)) }.map(drop)
}

/// Exits at once, without exit handlers (which a forked child shares with its parent).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Takes the listening socket that the program before this one kept open. Errors: the number is not that of a socket.
pub fn inherited_listener(number: i32) -> io::Result<std::net::TcpListener> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is open, or the next call fails; nothing else in this process knows it, since the program before
    // this one kept it open for this purpose alone.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    match nix::sys::socket::getsockopt(&descriptor, nix::sys::socket::sockopt::AcceptConn) {
        Ok(true) => {}
        // Whatever it is, it is not this function's to close.
        Ok(false) | Err(_) => {
            std::mem::forget(descriptor);
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    let close = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    nix::fcntl::fcntl(&descriptor, close)?;
    Ok(descriptor.into())
}

/// Opens `path` below `directory`; follows no symbolic link and never leaves the directory.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let mut how: libc::open_how = zeroed_how();
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(if flags & (libc::O_CREAT | libc::O_TMPFILE) != 0 { mode } else { 0 });
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: the text is zero-terminated, `how` is a complete open_how, and both live for the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            directory.as_raw_fd(),
            text.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, owned by this function only.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens again what is open with `O_PATH`, after its type was checked: opening a device has side effects.
pub fn reopen(found: BorrowedFd<'_>, flags: OFlag) -> io::Result<OwnedFd> {
    let own_path = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(nix::fcntl::open(own_path.as_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, nix::sys::stat::Mode::empty())?)
}

/// Opens a regular file at a name that a job may have replaced: follows no link, and does not block on a pipe. Fails if
/// it is not a regular file.
pub fn open_regular(path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = options.custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

fn zeroed_how() -> libc::open_how {
    // SAFETY: open_how contains only integers, for which zero is valid.
    unsafe { std::mem::zeroed() }
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

    #[test]
    fn the_boot_clock_runs() {
        let first = boottime();
        assert!(first > 0 && boottime() >= first);
    }

    #[test]
    fn a_pidfd_becomes_readable_at_the_end() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("started");
        let pidfd = pidfd_open(child.id().cast_signed()).expect("opened");
        assert!(start_time(child.id().cast_signed()).is_some());
        pidfd_signal(pidfd.as_fd(), libc::SIGKILL).expect("sent");
        assert!(!child.wait().expect("ended").success());
        assert!(pidfd_signal(pidfd.as_fd(), libc::SIGKILL).is_err());
    }

    #[test]
    fn opens_nothing_through_links_or_outside() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("file"), "x").expect("written");
        std::os::unix::fs::symlink("/etc", directory.path().join("link")).expect("linked");
        let root = fs::File::open(directory.path()).expect("opened");
        let open = |path: &str| open_beneath(root.as_fd(), Path::new(path), libc::O_RDONLY, 0);
        assert!(open("file").is_ok());
        assert!(open("link/passwd").is_err() && open("../x").is_err() && open("/etc/passwd").is_err());
    }
}
