//! Compresses a stream with zstd on all cores: each piece becomes an independent frame, and concatenated frames are one
//! valid stream.

use std::io::{self, Write};

use super::compress::{FRAME, Piece};
use super::pieces::Pieces;
use super::pool::WorkerPool;

/// The writing end of the stream.
pub struct Frames<'p, 'a, W> {
    pieces: Pieces<'p, 'a>,
    sink: W,
    piece: Piece,
}

impl<'p, 'a, W: Write> Frames<'p, 'a, W> {
    /// Writes frames to `sink`; the pool must compress with zstd.
    pub fn new(pool: &'p WorkerPool<'a>, sink: W) -> Self {
        Self { pieces: Pieces::new(pool, FRAME), sink, piece: Piece::default() }
    }

    /// Compresses and writes the rest.
    pub fn finish(mut self) -> io::Result<()> {
        self.submit()?;
        let Self { pieces, mut sink, .. } = self;
        pieces.finish(&mut |piece| sink.write_all(&piece.packed))?;
        sink.flush()
    }

    fn submit(&mut self) -> io::Result<()> {
        let next = self.pieces.next(&mut |piece| self.sink.write_all(&piece.packed))?;
        self.pieces.submit(std::mem::replace(&mut self.piece, next));
        Ok(())
    }
}

impl<W: Write> Write for Frames<'_, '_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.piece.block.len() == FRAME {
            self.submit()?;
        }
        self.piece.block.reserve_exact(FRAME - self.piece.block.len());
        let length = data.len().min(FRAME - self.piece.block.len());
        self.piece.block.extend_from_slice(&data[..length]);
        Ok(length)
    }

    /// Frames are written as soon as they are ready, so there is nothing to flush.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
