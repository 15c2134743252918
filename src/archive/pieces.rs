//! Compresses the pieces of one stream on the pool in parallel, and writes them in order; their buffers are reused.

use std::collections::VecDeque;
use std::io;

use super::compress::Piece;
use super::pool::{PendingResult, WorkerPool};

/// The pieces in progress.
pub struct Pieces<'p, 'a> {
    pool: &'p WorkerPool<'a>,
    size: usize,
    submitted: VecDeque<PendingResult<io::Result<Piece>>>,
}

impl<'p, 'a> Pieces<'p, 'a> {
    /// Each piece will contain at most `size` bytes.
    pub fn new(pool: &'p WorkerPool<'a>, size: usize) -> Self {
        Self { pool, size, submitted: VecDeque::new() }
    }

    /// An empty piece. If enough pieces are in progress, waits for the first one and passes it to `write`.
    pub fn next(&mut self, write: &mut impl FnMut(&Piece) -> io::Result<()>) -> io::Result<Piece> {
        let is_full = self.submitted.len() >= self.pool.max_in_progress(self.size);
        let done = if is_full { self.finish_first(write)? } else { None };
        let mut piece = done.unwrap_or_default();
        piece.block.clear();
        piece.block.reserve_exact(self.size);
        Ok(piece)
    }

    /// Submits a piece for compression.
    pub fn submit(&mut self, mut piece: Piece) {
        self.submitted
            .push_back(self.pool.submit(move |compressor| compressor.compress_block(&mut piece).map(|()| piece)));
    }

    /// Passes the remaining pieces to `write`.
    pub fn finish(mut self, write: &mut impl FnMut(&Piece) -> io::Result<()>) -> io::Result<()> {
        while self.finish_first(write)?.is_some() {}
        Ok(())
    }

    fn finish_first(&mut self, write: &mut impl FnMut(&Piece) -> io::Result<()>) -> io::Result<Option<Piece>> {
        let Some(first) = self.submitted.pop_front() else { return Ok(None) };
        let piece = first.wait()??;
        write(&piece).map(|()| Some(piece))
    }
}
