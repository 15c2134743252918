//! A pipe in memory: an archive is read as a request body while it is written, without a temporary file.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The largest number of buffered pieces.
const MAX_PIECES: usize = 8;
/// The size of a piece, in bytes.
const PIECE_BYTES: usize = 128 * 1024;

/// The writing end.
pub struct PipeWriter {
    pieces: SyncSender<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
}

/// The reading end.
pub struct PipeReader {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    read: usize,
    ended: bool,
}

/// Creates a pipe. If the reader is dropped, writing fails. If the writer is dropped without [`PipeWriter::end`],
/// reading fails, so that half an archive is never taken for a complete one.
pub fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = sync_channel(MAX_PIECES);
    let sink = PipeWriter { pieces: sender, piece: Vec::with_capacity(PIECE_BYTES) };
    (sink, PipeReader { pieces: receiver, piece: Vec::new(), read: 0, ended: false })
}

impl PipeWriter {
    /// Marks the content as complete.
    pub fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Vec::new())
    }

    /// Makes the reader fail with this error.
    pub fn fail(self, why: io::Error) {
        let _ = self.pieces.send(Err(why));
    }

    fn send(&self, piece: Vec<u8>) -> io::Result<()> {
        self.pieces.send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for PipeWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.piece.len() + data.len() > PIECE_BYTES {
            self.flush()?;
        }
        match data.len() >= PIECE_BYTES {
            true => self.send(data.to_vec())?,
            false => self.piece.extend_from_slice(data),
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.piece.is_empty() {
            true => Ok(()),
            false => {
                let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
                self.send(piece)
            }
        }
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() && !self.ended {
            let broken = |_| io::Error::other("the archive is incomplete");
            self.piece = self.pieces.recv().map_err(broken)??;
            self.read = 0;
            self.ended = self.piece.is_empty();
        }
        let rest = &self.piece[self.read..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.read += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn reads_written_data() {
        let (mut sink, mut source) = pipe();
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
        let written = data.clone();
        let writer = thread::spawn(move || {
            written.chunks(70_001).for_each(|piece| sink.write_all(piece).unwrap());
            sink.write_all(&written[..500_000]).unwrap();
            sink.end().unwrap();
        });
        let mut read = Vec::new();
        source.read_to_end(&mut read).unwrap();
        writer.join().unwrap();
        assert!(read[..data.len()] == data && read[data.len()..] == data[..500_000]);
        assert_eq!(source.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_dropped_writer_is_an_error_for_the_reader() {
        let (mut sink, mut source) = pipe();
        sink.write_all(b"half").unwrap();
        drop(sink);
        assert!(source.read_to_end(&mut Vec::new()).is_err());
        let (sink, mut source) = pipe();
        sink.fail(io::ErrorKind::StorageFull.into());
        assert_eq!(source.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_dropped_reader_is_an_error_for_the_writer() {
        let (mut sink, source) = pipe();
        drop(source);
        assert!(sink.write_all(&vec![0; 2 * PIECE_BYTES]).is_err());
    }
}
