//! What one thread compresses: small files as a whole, and large ones as deflate in independent pieces. Each block knows
//! the 32 KiB before it and ends on a whole byte, so that blocks made on several cores, put one after the other, are one
//! stream.

use std::io::{self, Write};

use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::zstd_safe::CParameter;

use super::Level;

/// How much is compressed as one piece.
pub const BLOCK: usize = 256 * 1024;
/// How far back deflate can refer.
const WINDOW: usize = 32 * 1024;
/// What ends a stream after its last block: an empty block marked as final.
pub const END: [u8; 2] = [3, 0];
/// How much of a block is tried before all of it is.
const PROBE: usize = 16 * 1024;

/// A compressed block, and the checksum of what it was.
pub struct Packed {
    /// The bytes for the stream.
    pub data: Vec<u8>,
    /// CRC-32 of the block before compression.
    pub checksum: Hasher,
}

/// How to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Store,
    /// Deflate with a level of 1 to 9.
    Deflate(u32),
    /// zstd; large files as one stream.
    Zstd(Level),
}

/// A compressor that is used again for block after block.
pub struct Compressor(Engine);

enum Engine {
    None,
    Deflate { compress: Box<Compress>, probe: Box<Compress> },
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// Errors: no memory.
    pub fn new(method: Method) -> io::Result<Self> {
        Ok(Self(match method {
            Method::Store => Engine::None,
            Method::Deflate(level) => Engine::Deflate {
                compress: Box::new(Compress::new(Compression::new(level), false)),
                probe: Box::new(Compress::new(Compression::fast(), false)),
            },
            Method::Zstd(level) => Engine::Zstd(zstd::bulk::Compressor::new(level.zstd())?),
        }))
    }

    /// Deflates a block that follows `before`; without deflate it comes back as it is.
    pub fn block(&mut self, before: &[u8], block: Vec<u8>) -> io::Result<Packed> {
        let mut checksum = Hasher::new();
        checksum.update(&block);
        let Engine::Deflate { compress, probe } = &mut self.0 else {
            return Ok(Packed { data: block, checksum });
        };
        if looks_incompressible(probe, &block)? {
            return Ok(Packed { data: stored(&block), checksum });
        }
        compress.reset();
        if !before.is_empty() {
            compress.set_dictionary(before)?;
        }
        let data = run(compress, &block, FlushCompress::Sync)?;
        let data = if data.len() < block.len() { data } else { stored(&block) };
        Ok(Packed { data, checksum })
    }

    /// Compresses a whole small file to a complete stream; `None` when it is better stored.
    pub fn whole(&mut self, content: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if content.is_empty() {
            return Ok(None);
        }
        let data = match &mut self.0 {
            Engine::None => return Ok(None),
            Engine::Deflate { compress, probe } => {
                if looks_incompressible(probe, content)? {
                    return Ok(None);
                }
                compress.reset();
                run(compress, content, FlushCompress::Finish)?
            }
            Engine::Zstd(compressor) => compressor.compress(content)?,
        };
        Ok((data.len() < content.len()).then_some(data))
    }
}

/// Compresses a stream with zstd, with tables that stay small also at the high levels, which would take 60 MB otherwise.
pub fn zstd_stream<'a, W: Write>(sink: W, level: Level) -> io::Result<zstd::Encoder<'a, W>> {
    let mut encoder = zstd::Encoder::new(sink, level.zstd())?;
    if matches!(level, Level::Slow | Level::Slowest) {
        for most in [CParameter::WindowLog(21), CParameter::HashLog(20), CParameter::ChainLog(20)] {
            encoder.set_parameter(most)?;
        }
    }
    Ok(encoder)
}

/// What the next block may refer to.
pub fn window(block: &[u8]) -> Vec<u8> {
    block[block.len().saturating_sub(WINDOW)..].to_vec()
}

/// Whether a piece out of the middle does not get smaller: trying all of a film or a jar at full effort costs more
/// time than anything else here and gains nothing.
fn looks_incompressible(probe: &mut Compress, block: &[u8]) -> io::Result<bool> {
    if block.len() < 2 * PROBE {
        return Ok(false);
    }
    let start = (block.len() - PROBE) / 2;
    probe.reset();
    let data = run(probe, &block[start..start + PROBE], FlushCompress::Finish)?;
    Ok(data.len() > PROBE / 100 * 99)
}

fn run(compress: &mut Compress, input: &[u8], flush: FlushCompress) -> io::Result<Vec<u8>> {
    let mut output = Vec::with_capacity(input.len() / 2 + 64);
    loop {
        let read = usize::try_from(compress.total_in()).map_err(io::Error::other)?;
        let status = compress.compress_vec(&input[read..], &mut output, flush).map_err(io::Error::other)?;
        let all_read = compress.total_in() == input.len() as u64;
        let done = match flush {
            FlushCompress::Finish => status == Status::StreamEnd,
            // Room left over means that nothing is held back.
            _ => all_read && output.len() < output.capacity(),
        };
        if done {
            return Ok(output);
        }
        output.reserve(output.capacity().max(4096));
    }
}

/// The block as deflate's own "stored" pieces.
fn stored(block: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(block.len() + 5 * (block.len() / 0xffff + 1));
    for piece in block.chunks(0xffff) {
        let length = piece.len() as u16;
        data.push(0);
        data.extend_from_slice(&length.to_le_bytes());
        data.extend_from_slice(&(!length).to_le_bytes());
        data.extend_from_slice(piece);
    }
    data
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
    fn blocks_put_together_are_one_stream() {
        let blocks = [text(BLOCK), noise(BLOCK), text(70_000), noise(100), Vec::new(), text(1)];
        let mut compressor = Compressor::new(Method::Deflate(6)).unwrap();
        let (mut stream, mut checksum, mut before) = (Vec::new(), Hasher::new(), Vec::new());
        for block in &blocks {
            let packed = compressor.block(&before, block.clone()).unwrap();
            stream.extend(packed.data);
            checksum.combine(&packed.checksum);
            before = window(block);
        }
        stream.extend(END);
        let mut back = Vec::new();
        flate2::read::DeflateDecoder::new(&stream[..]).read_to_end(&mut back).unwrap();
        assert!(back == blocks.concat());
        assert_eq!(checksum.finalize(), crc32fast::hash(&back));
        assert!(stream.len() < BLOCK + BLOCK / 2);
    }

    #[test]
    fn what_does_not_shrink_is_stored() {
        let mut compressor = Compressor::new(Method::Deflate(6)).unwrap();
        let mut zstd = Compressor::new(Method::Zstd(Level::Default)).unwrap();
        for compressor in [&mut compressor, &mut zstd] {
            assert!(compressor.whole(&noise(60_000)).unwrap().is_none());
            assert!(compressor.whole(&noise(20)).unwrap().is_none());
            assert!(compressor.whole(&text(60_000)).unwrap().is_some_and(|data| data.len() < 20_000));
        }
        let packed = compressor.block(&[], noise(BLOCK)).unwrap();
        assert!(packed.data.len() <= BLOCK + 25);
    }
}
