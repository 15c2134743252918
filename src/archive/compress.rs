//! Compression by one thread: small files as a whole, large ones in independent blocks.
//!
//! A deflate block refers at most to the 32 KiB before it and ends on a whole byte; a zstd frame is independent. So
//! blocks that several cores compressed can be concatenated to one stream.

use std::io;

use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::zstd_safe::compress_bound;

use super::CompressionLevel;

/// The size of one block, and the largest size of a small file, in bytes.
pub const BLOCK: usize = 256 * 1024;
/// The size of one zstd frame, in bytes. Frames are independent of each other.
pub const FRAME: usize = 1 << 20;
/// The window size of deflate, in bytes.
const WINDOW: usize = 32 * 1024;
/// The end of a deflate stream: an empty block with the final bit.
pub const DEFLATE_END: [u8; 2] = [3, 0];
/// The size of the sample that is compressed to decide whether a block is compressible, in bytes.
const PROBE: usize = 16 * 1024;

/// A block and its compressed form. The buffers are reused for the next block: mapping new memory each time would cost
/// a considerable part of the compression time.
#[derive(Default)]
pub struct Block {
    /// The bytes before the block, up to the window size.
    pub before: Vec<u8>,
    pub content: Vec<u8>,
    /// The compressed bytes.
    pub packed: Vec<u8>,
    /// The CRC-32 of the content.
    pub checksum: Hasher,
}

/// The compression method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// No compression.
    Store,
    /// Deflate with a level from 1 to 9.
    Deflate(u32),
    /// zstd.
    Zstd(CompressionLevel),
}

/// A compressor that is reused for many blocks.
pub struct Compressor(Encoder);

enum Encoder {
    None,
    Deflate { compress: Box<Compress>, probe: Box<Compress> },
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// Fails if memory is exhausted.
    pub fn new(method: Codec) -> io::Result<Self> {
        Ok(Self(match method {
            Codec::Store => Encoder::None,
            Codec::Deflate(level) => Encoder::Deflate {
                compress: Box::new(Compress::new(Compression::new(level), false)),
                probe: Box::new(Compress::new(Compression::fast(), false)),
            },
            Codec::Zstd(level) => {
                let mut compressor = zstd::bulk::Compressor::new(level.zstd())?;
                // Without this checksum, neither tar nor zstd would detect a flipped bit.
                compressor.include_checksum(true)?;
                Encoder::Zstd(compressor)
            }
        }))
    }

    /// Compresses a block: to deflate blocks, to a zstd frame, or not at all.
    pub fn compress_block(&mut self, block: &mut Block) -> io::Result<()> {
        let Block { before, content, packed, checksum } = block;
        *checksum = Hasher::new();
        checksum.update(content);
        match &mut self.0 {
            Encoder::None => std::mem::swap(content, packed),
            Encoder::Deflate { compress, probe } => {
                if looks_incompressible(probe, content, packed)? {
                    encode_stored(content, packed);
                    return Ok(());
                }
                compress.reset();
                if !before.is_empty() {
                    compress.set_dictionary(before)?;
                }
                compress_all(compress, content, FlushCompress::Sync, packed)?;
                if packed.len() >= content.len() {
                    encode_stored(content, packed);
                }
            }
            Encoder::Zstd(compressor) => {
                packed.clear();
                packed.reserve(compress_bound(content.len()));
                compressor.compress_to_buffer(content, packed)?;
            }
        }
        Ok(())
    }

    /// Compresses a small file to a complete stream; `None` if it is better stored uncompressed.
    pub fn compress_file(&mut self, content: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if content.is_empty() {
            return Ok(None);
        }
        let data = match &mut self.0 {
            Encoder::None => return Ok(None),
            Encoder::Deflate { compress, probe } => {
                let mut data = Vec::new();
                if looks_incompressible(probe, content, &mut data)? {
                    return Ok(None);
                }
                compress.reset();
                compress_all(compress, content, FlushCompress::Finish, &mut data)?;
                data
            }
            Encoder::Zstd(compressor) => compressor.compress(content)?,
        };
        Ok((data.len() < content.len()).then_some(data))
    }
}

/// The part of a block that the next block may refer to.
pub fn window(block: &[u8]) -> &[u8] {
    &block[block.len().saturating_sub(WINDOW)..]
}

/// Whether a sample from the middle of the block does not shrink. Compressing a video or a jar at full effort would
/// take the most time of all and gain nothing.
fn looks_incompressible(probe: &mut Compress, block: &[u8], output: &mut Vec<u8>) -> io::Result<bool> {
    if block.len() < 2 * PROBE {
        return Ok(false);
    }
    let start = (block.len() - PROBE) / 2;
    probe.reset();
    compress_all(probe, &block[start..start + PROBE], FlushCompress::Finish, output)?;
    Ok(output.len() > PROBE / 100 * 99)
}

fn compress_all(compress: &mut Compress, input: &[u8], flush: FlushCompress, output: &mut Vec<u8>) -> io::Result<()> {
    output.clear();
    output.reserve(input.len() / 2 + 64);
    loop {
        let read = usize::try_from(compress.total_in()).map_err(io::Error::other)?;
        let status = compress.compress_vec(&input[read..], output, flush).map_err(io::Error::other)?;
        let all_read = compress.total_in() == input.len() as u64;
        let done = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            // If the output buffer has unused space, the compressor holds no data back.
            _ => all_read && output.len() < output.capacity(),
        };
        if done {
            return Ok(());
        }
        output.reserve(output.capacity().max(4096));
    }
}

/// Encodes the block as "stored" deflate blocks.
pub fn encode_stored(block: &[u8], output: &mut Vec<u8>) {
    output.clear();
    output.reserve(block.len() + 5 * (block.len() / 0xffff + 1));
    for chunk in block.chunks(0xffff) {
        let length = chunk.len() as u16;
        output.push(0);
        output.extend_from_slice(&length.to_le_bytes());
        output.extend_from_slice(&(!length).to_le_bytes());
        output.extend_from_slice(chunk);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(length)
        .collect()
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).flat_map(|n| format!("line {n} of some text\n").into_bytes()).take(length).collect()
    }

    #[test]
    fn concatenated_blocks_are_one_stream() {
        let blocks = [text(BLOCK), noise(BLOCK), text(70_000), noise(100), Vec::new(), text(1)];
        let mut compressor = Compressor::new(Codec::Deflate(6)).unwrap();
        let (mut stream, mut checksum, mut block) = (Vec::new(), Hasher::new(), Block::default());
        for content in &blocks {
            block.content.clone_from(content);
            compressor.compress_block(&mut block).unwrap();
            stream.extend_from_slice(&block.packed);
            checksum.combine(&block.checksum);
            block.before = window(content).to_vec();
        }
        stream.extend(DEFLATE_END);
        let mut back = Vec::new();
        flate2::read::DeflateDecoder::new(&stream[..]).read_to_end(&mut back).unwrap();
        assert!(back == blocks.concat());
        assert_eq!(checksum.finalize(), crc32fast::hash(&back));
        assert!(stream.len() < BLOCK + BLOCK / 2);
    }

    #[test]
    fn stores_incompressible_data() {
        let mut compressor = Compressor::new(Codec::Deflate(6)).unwrap();
        let mut zstd = Compressor::new(Codec::Zstd(CompressionLevel::Default)).unwrap();
        for compressor in [&mut compressor, &mut zstd] {
            assert!(compressor.compress_file(&noise(60_000)).unwrap().is_none());
            assert!(compressor.compress_file(&noise(20)).unwrap().is_none());
            assert!(compressor.compress_file(&text(60_000)).unwrap().is_some_and(|data| data.len() < 20_000));
        }
        let mut block = Block { content: noise(BLOCK), ..Block::default() };
        compressor.compress_block(&mut block).unwrap();
        assert!(block.packed.len() <= BLOCK + 25);
    }
}
