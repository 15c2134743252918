//! A pipe in memory: an archive is read as a request body while it is written, without a temporary file.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The largest number of buffered chunks.
const MAX_CHUNKS: usize = 8;
/// The size of a chunk, in bytes.
const CHUNK_BYTES: usize = 128 * 1024;

/// The writing end.
pub struct PipeWriter {
    chunks: SyncSender<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
}

/// The reading end.
pub struct PipeReader {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    read: usize,
    ended: bool,
}

/// Creates a pipe. If the reader is dropped, writing fails. If the writer is dropped without [`PipeWriter::end`],
/// reading fails, so that half an archive is never taken for a complete one.
pub fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = sync_channel(MAX_CHUNKS);
    let sink = PipeWriter { chunks: sender, chunk: Vec::with_capacity(CHUNK_BYTES) };
    (sink, PipeReader { chunks: receiver, chunk: Vec::new(), read: 0, ended: false })
}

impl PipeWriter {
    /// Marks the content as complete.
    pub fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Vec::new())
    }

    /// Makes the reader fail with this error.
    pub fn fail(self, why: io::Error) {
        let _ = self.chunks.send(Err(why));
    }

    fn send(&self, chunk: Vec<u8>) -> io::Result<()> {
        self.chunks.send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for PipeWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.chunk.len() + data.len() > CHUNK_BYTES {
            self.flush()?;
        }
        match data.len() >= CHUNK_BYTES {
            true => self.send(data.to_vec())?,
            false => self.chunk.extend_from_slice(data),
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.chunk.is_empty() {
            true => Ok(()),
            false => {
                let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
                self.send(chunk)
            }
        }
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.chunk.len() && !self.ended {
            let broken = |_| io::Error::other("the archive is incomplete");
            self.chunk = self.chunks.recv().map_err(broken)??;
            self.read = 0;
            self.ended = self.chunk.is_empty();
        }
        let rest = &self.chunk[self.read..];
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
            written.chunks(70_001).for_each(|chunk| sink.write_all(chunk).unwrap());
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
        assert!(sink.write_all(&vec![0; 2 * CHUNK_BYTES]).is_err());
    }
}
