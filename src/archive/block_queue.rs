//! Compresses the blocks of one stream on the pool in parallel, and writes them in order; their buffers are reused.

use std::collections::VecDeque;
use std::io;

use super::compress::Block;
use super::pool::{PendingResult, WorkerPool};

/// The blocks in progress.
pub struct BlockQueue<'p, 'a> {
    pool: &'p WorkerPool<'a>,
    size: usize,
    submitted: VecDeque<PendingResult<io::Result<Block>>>,
}

impl<'p, 'a> BlockQueue<'p, 'a> {
    /// Each block will contain at most `size` bytes.
    pub fn new(pool: &'p WorkerPool<'a>, size: usize) -> Self {
        Self { pool, size, submitted: VecDeque::new() }
    }

    /// An empty block. If enough blocks are in progress, waits for the first one and passes it to `write`.
    pub fn next(&mut self, write: &mut impl FnMut(&Block) -> io::Result<()>) -> io::Result<Block> {
        let is_full = self.submitted.len() >= self.pool.max_in_progress(self.size);
        let done = if is_full { self.finish_first(write)? } else { None };
        let mut block = done.unwrap_or_default();
        block.content.clear();
        block.content.reserve_exact(self.size);
        Ok(block)
    }

    /// Submits a block for compression.
    pub fn submit(&mut self, mut block: Block) {
        self.submitted
            .push_back(self.pool.submit(move |compressor| compressor.compress_block(&mut block).map(|()| block)));
    }

    /// Passes the remaining blocks to `write`.
    pub fn finish(mut self, write: &mut impl FnMut(&Block) -> io::Result<()>) -> io::Result<()> {
        while self.finish_first(write)?.is_some() {}
        Ok(())
    }

    fn finish_first(&mut self, write: &mut impl FnMut(&Block) -> io::Result<()>) -> io::Result<Option<Block>> {
        let Some(first) = self.submitted.pop_front() else { return Ok(None) };
        let block = first.wait()??;
        write(&block).map(|()| Some(block))
    }
}
