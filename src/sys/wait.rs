//! Waits for file descriptors.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until at least one of the descriptors is readable or closed, or until `timeout` has passed; `None` waits
/// without a limit. Returns for each descriptor whether it is ready: for none of them after the timeout.
pub fn wait<const N: usize>(fds: [Option<BorrowedFd<'_>>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let mut polled: Vec<PollFd<'_>> = fds.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match poll(&mut polled, poll_timeout(left)) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok([false; N]),
            Ok(0) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => {
                let mut ready = polled.iter().map(|fd| fd.any() == Some(true));
                return Ok(fds.map(|fd| fd.is_some() && ready.next() == Some(true)));
            }
        }
    }
}

/// The timeout for `poll`, which counts whole milliseconds; `None` waits without a limit. If the time were rounded
/// down, a loop would call `poll` without a delay during the last millisecond.
pub fn poll_timeout(time: Option<Duration>) -> PollTimeout {
    match time {
        None => PollTimeout::NONE,
        Some(Duration::ZERO) => PollTimeout::ZERO,
        Some(time) => PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn tells_which_descriptors_are_ready() {
        let (one, mut other_end) = std::io::pipe().expect("a pipe");
        let (closed, end) = std::io::pipe().expect("a pipe");
        let (silent, _open) = std::io::pipe().expect("a pipe");
        other_end.write_all(b"x").expect("write all bytes");
        drop(end);
        let ready = wait([Some(silent.as_fd()), None, Some(one.as_fd()), Some(closed.as_fd())], None)
            .expect("wait for the descriptors");
        assert_eq!(ready, [false, false, true, true]);
    }

    #[test]
    fn waits_at_least_for_the_timeout() {
        let (silent, _open) = std::io::pipe().expect("a pipe");
        let (began, timeout) = (Instant::now(), Duration::from_micros(20_500));
        assert_eq!(wait([Some(silent.as_fd())], Some(timeout)).expect("wait for the descriptors"), [false]);
        assert!(began.elapsed() >= timeout);
        assert_eq!(wait([Some(silent.as_fd())], Some(Duration::ZERO)).expect("wait for the descriptors"), [false]);
    }
}
