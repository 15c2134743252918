//! Pieces of one stream on their way through the pool: compressed side by side, written in order, in memory that is used
//! again.

use std::collections::VecDeque;
use std::io;

use super::compress::Piece;
use super::pool::{Pending, Pool};

/// Those that are under way.
pub struct Pieces<'p, 'a> {
    pool: &'p Pool<'a>,
    size: usize,
    under_way: VecDeque<Pending<io::Result<Piece>>>,
}

impl<'p, 'a> Pieces<'p, 'a> {
    /// None yet; each will hold `size` bytes at most.
    pub fn new(pool: &'p Pool<'a>, size: usize) -> Self {
        Self { pool, size, under_way: VecDeque::new() }
    }

    /// A piece to fill. Where enough are under way, `write` gets the first one before.
    pub fn next(&mut self, write: &mut impl FnMut(&Piece) -> io::Result<()>) -> io::Result<Piece> {
        let is_full = self.under_way.len() >= self.pool.depth(self.size);
        let done = if is_full { self.settle(write)? } else { None };
        let mut piece = done.unwrap_or_default();
        piece.block.clear();
        piece.block.reserve_exact(self.size);
        Ok(piece)
    }

    /// Has a piece compressed.
    pub fn submit(&mut self, mut piece: Piece) {
        self.under_way.push_back(self.pool.submit(move |compressor| compressor.block(&mut piece).map(|()| piece)));
    }

    /// Gives `write` what is left.
    pub fn finish(mut self, write: &mut impl FnMut(&Piece) -> io::Result<()>) -> io::Result<()> {
        while self.settle(write)?.is_some() {}
        Ok(())
    }

    fn settle(&mut self, write: &mut impl FnMut(&Piece) -> io::Result<()>) -> io::Result<Option<Piece>> {
        let Some(first) = self.under_way.pop_front() else { return Ok(None) };
        let piece = first.wait()??;
        write(&piece).map(|()| Some(piece))
    }
}
