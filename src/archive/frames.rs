//! A stream compressed with zstd on all cores: pieces of it become frames that stand for themselves, and frames one after
//! the other are what every zstd reads as one stream.

use std::collections::VecDeque;
use std::io::{self, Write};

use super::compress::{FRAME, Piece};
use super::pool::{Pending, Pool};

/// The end that is written to.
pub struct Frames<'p, 'a, W> {
    pool: &'p Pool<'a>,
    sink: W,
    piece: Piece,
    under_way: VecDeque<Pending<io::Result<Piece>>>,
}

impl<'p, 'a, W: Write> Frames<'p, 'a, W> {
    /// Writes frames to `sink`; the pool must compress with zstd.
    pub fn new(pool: &'p Pool<'a>, sink: W) -> Self {
        Self { pool, sink, piece: Piece::default(), under_way: VecDeque::new() }
    }

    /// Writes what is left.
    pub fn finish(mut self) -> io::Result<()> {
        self.submit()?;
        while self.settle()?.is_some() {}
        self.sink.flush()
    }

    fn submit(&mut self) -> io::Result<()> {
        let next = if self.under_way.len() >= self.pool.depth(FRAME) { self.settle()? } else { None };
        let mut piece = std::mem::replace(&mut self.piece, next.unwrap_or_default());
        self.piece.block.clear();
        self.under_way.push_back(self.pool.submit(move |compressor| compressor.block(&mut piece).map(|()| piece)));
        Ok(())
    }

    /// Writes the frame that is first in line, and gives back its memory.
    fn settle(&mut self) -> io::Result<Option<Piece>> {
        let Some(first) = self.under_way.pop_front() else { return Ok(None) };
        let piece = first.wait()??;
        self.sink.write_all(&piece.packed)?;
        Ok(Some(piece))
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

    /// Frames are written as they are ready.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
