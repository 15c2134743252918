//! Network interfaces and inherited sockets.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

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

/// Takes over a listening socket that was inherited across exec. Fails if the number is not that of a socket.
pub fn inherited_listener(number: i32) -> io::Result<std::net::TcpListener> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the next call fails if the number is not open. No other code in this process knows the number: the
    // program before exec kept the descriptor open only for this function.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    match nix::sys::socket::getsockopt(&descriptor, nix::sys::socket::sockopt::AcceptConn) {
        Ok(true) => {}
        // The number may belong to a descriptor that this process uses otherwise; a drop would close that descriptor.
        Ok(false) | Err(_) => {
            std::mem::forget(descriptor);
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    let close = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    nix::fcntl::fcntl(&descriptor, close)?;
    Ok(descriptor.into())
}
