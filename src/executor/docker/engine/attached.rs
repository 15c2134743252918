//! The standard streams of a container. Output comes in frames: an eight-byte header with the stream in the first byte
//! and the big-endian length in the last four, then the data.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::http::upgraded::{ReadEvent, UpgradedConnection};

/// The length of a frame header, in bytes.
const HEADER_SIZE: usize = 8;

/// The stream of a piece of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerStream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// Parses frames that arrive in arbitrary pieces.
#[derive(Debug, Default)]
pub struct FrameReader {
    header: [u8; HEADER_SIZE],
    /// The bytes of the header that have arrived.
    header_length: usize,
    /// The remaining bytes of the current frame.
    left: usize,
    /// Whether the current frame is of standard error.
    is_error: bool,
}

impl FrameReader {
    /// Parses bytes and passes their content to `sink`. Fails if the bytes are not frames.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(ContainerStream, &[u8])) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let missing = (HEADER_SIZE - self.header_length).min(bytes.len());
                self.header[self.header_length..][..missing].copy_from_slice(&bytes[..missing]);
                self.header_length += missing;
                bytes = &bytes[missing..];
                if self.header_length < HEADER_SIZE {
                    return Ok(());
                }
                self.begin_frame()?;
                continue;
            }
            let length = self.left.min(bytes.len());
            sink(if self.is_error { ContainerStream::Error } else { ContainerStream::Out }, &bytes[..length]);
            self.left -= length;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    fn begin_frame(&mut self) -> io::Result<()> {
        let [stream, zeros @ .., a, b, c, d] = self.header;
        // Stream 3 carries error messages of the engine itself.
        if stream > 3 || zeros != [0; 3] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the output is not in frames"));
        }
        self.is_error = stream >= 2;
        self.left = u32::from_be_bytes([a, b, c, d]) as usize;
        self.header_length = 0;
        Ok(())
    }
}

/// The attached streams of a container.
pub struct Attached(UpgradedConnection);

impl Attached {
    pub(super) fn new(connection: UpgradedConnection) -> Self {
        Self(connection)
    }

    /// Writes to the container's standard input.
    pub fn write(&mut self, input: &[u8]) {
        self.0.write(input);
    }

    /// Writes the rest of the container's standard input, and closes it.
    pub fn write_last(&mut self, input: &[u8]) {
        self.0.write(input);
        self.0.finish();
    }

    /// Reads the next bytes, or returns another event. Fails if the connection breaks.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        wake: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> io::Result<ReadEvent> {
        self.0.read_event(buffer, wake, timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pieces: &[&[u8]]) -> io::Result<Vec<(ContainerStream, Vec<u8>)>> {
        let (mut frames, mut found) = (FrameReader::default(), Vec::<(ContainerStream, Vec<u8>)>::new());
        for piece in pieces {
            frames.push(piece, &mut |output, bytes| match found.last_mut() {
                Some((last, text)) if *last == output => text.extend_from_slice(bytes),
                _ => found.push((output, bytes.to_vec())),
            })?;
        }
        Ok(found)
    }

    #[test]
    fn parses_frames_in_any_pieces() {
        let bytes = b"\x01\0\0\0\0\0\0\x03one\x02\0\0\0\0\0\0\x05error\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x03two";
        let expected = [
            (ContainerStream::Out, b"one".to_vec()),
            (ContainerStream::Error, b"error".to_vec()),
            (ContainerStream::Out, b"two".to_vec()),
        ];
        for cut in 0..=bytes.len() {
            assert_eq!(taken(&[&bytes[..cut], &bytes[cut..]]).expect("the frames must be valid"), expected, "{cut}");
        }
    }

    #[test]
    fn invalid_frames_are_an_error() {
        assert!(taken(&[b"hello world, no frame"]).is_err());
    }
}
