//! Compresses a stream with zstd on all cores: each block becomes an independent frame, and concatenated frames are one
//! valid stream.

use std::io::{self, Write};

use super::block_queue::BlockQueue;
use super::compress::{Block, FRAME};
use super::pool::WorkerPool;

/// The writing end of the stream.
pub struct Frames<'p, 'a, W> {
    queue: BlockQueue<'p, 'a>,
    sink: W,
    block: Block,
}

impl<'p, 'a, W: Write> Frames<'p, 'a, W> {
    /// Writes frames to `sink`; the pool must compress with zstd.
    pub fn new(pool: &'p WorkerPool<'a>, sink: W) -> Self {
        Self { queue: BlockQueue::new(pool, FRAME), sink, block: Block::default() }
    }

    /// Compresses and writes the rest.
    pub fn finish(mut self) -> io::Result<()> {
        self.submit()?;
        let Self { queue, mut sink, .. } = self;
        queue.finish(&mut |block| sink.write_all(&block.packed))?;
        sink.flush()
    }

    fn submit(&mut self) -> io::Result<()> {
        let next = self.queue.next(&mut |block| self.sink.write_all(&block.packed))?;
        self.queue.submit(std::mem::replace(&mut self.block, next));
        Ok(())
    }
}

impl<W: Write> Write for Frames<'_, '_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.block.content.len() == FRAME {
            self.submit()?;
        }
        self.block.content.reserve_exact(FRAME - self.block.content.len());
        let length = data.len().min(FRAME - self.block.content.len());
        self.block.content.extend_from_slice(&data[..length]);
        Ok(length)
    }

    /// Frames are written as soon as they are ready, so there is nothing to flush.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
