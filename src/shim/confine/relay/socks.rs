//! The protocol between the task and the relay: SOCKS 5 (RFC 1928) without authentication.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
/// Types of an address.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The reply to a request, with its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    Succeeded = 0,
    NotAllowed = 2,
    Unreachable = 4,
}

/// Writes a reply. Its address is unused: clients of a CONNECT request ignore it.
pub fn write_reply(client: &mut impl Write, reply: Reply) -> io::Result<()> {
    client.write_all(&[VERSION, reply as u8, 0, IPV4, 0, 0, 0, 0, 0, 0])
}

/// Reads the request of a client: the host and the port. Errors: the request is not SOCKS 5, or not CONNECT.
pub fn read_request(client: &mut (impl Read + Write)) -> io::Result<(String, u16)> {
    let [version, methods] = read(client)?;
    if version != VERSION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    io::copy(&mut client.take(u64::from(methods)), &mut io::sink())?;
    client.write_all(&[VERSION, NO_AUTHENTICATION])?;
    let [version, command, _, kind] = read(client)?;
    if version != VERSION || command != CONNECT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let host = match kind {
        IPV4 => Ipv4Addr::from(read::<4>(client)?).to_string(),
        IPV6 => Ipv6Addr::from(read::<16>(client)?).to_string(),
        NAME => {
            let [length] = read(client)?;
            let mut name = vec![0; usize::from(length)];
            client.read_exact(&mut name)?;
            String::from_utf8(name).map_err(io::Error::other)?
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok((host.trim_matches(['[', ']']).to_ascii_lowercase(), u16::from_be_bytes(read(client)?)))
}

/// Reads exactly `N` bytes.
pub fn read<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_parsed_and_invalid_ones_refused() {
        struct FakeStream<'a>(&'a [u8], Vec<u8>);
        impl Read for FakeStream<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl Write for FakeStream<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let asked = |bytes: &[u8]| read_request(&mut FakeStream(bytes, Vec::new())).ok();
        assert_eq!(asked(b"\x05\x01\x00\x05\x01\x00\x03\x06GITLAB\x01\xbb"), Some(("gitlab".to_owned(), 443)));
        assert_eq!(
            asked(b"\x05\x02\x00\x02\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"),
            Some(("10.0.0.1".to_owned(), 80))
        );
        for nonsense in
            [&b""[..], b"GET / HTTP/1.1\r\n", b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\xff"]
        {
            assert_eq!(asked(nonsense), None);
        }
    }
}
