//! Decompressors that are reused for many files: creating one takes longer than reading a small file.

use std::io::{self, BufRead, Read};

use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, DParameter, ResetDirective};

/// The memory limit of a decompressor, as a power of two; each core has one. The highest ordinary level of zstd needs 8
/// MiB.
const MAX_WINDOW_LOG: u32 = 25;

/// The decompressors of one thread.
pub struct Decompressors {
    deflate: Option<Decompress>,
    zstd: Option<DCtx<'static>>,
    input: Vec<u8>,
}

impl Decompressors {
    /// Each decompressor is created on first use.
    pub fn new() -> Self {
        Self { deflate: None, zstd: None, input: Vec::new() }
    }

    /// Decompresses deflate data.
    pub fn deflate<R: Read>(&mut self, source: R) -> impl Read {
        let inflate = self.deflate.get_or_insert_with(|| Decompress::new(false));
        inflate.reset(false);
        Inflate { source: Input::new(source, &mut self.input), inflate }
    }

    /// Decompresses zstd data.
    pub fn zstd<R: Read>(&mut self, source: R) -> impl Read {
        let context = self.zstd.get_or_insert_with(|| {
            let mut context = DCtx::create();
            // Fails only for a parameter value that the library does not support.
            let _ = context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG));
            context
        });
        // Fails only when parameters are reset, which this call does not do.
        let _ = context.reset(ResetDirective::SessionOnly);
        zstd::Decoder::with_context(Input::new(source, &mut self.input), context)
    }
}

/// A buffered source.
struct Input<'a, R> {
    source: R,
    buffer: &'a mut [u8],
    start: usize,
    end: usize,
}

impl<'a, R> Input<'a, R> {
    fn new(source: R, buffer: &'a mut Vec<u8>) -> Self {
        buffer.resize(32 * 1024, 0);
        Self { source, buffer, start: 0, end: 0 }
    }
}

impl<R: Read> Read for Input<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut rest = self.fill_buf()?;
        let length = rest.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

impl<R: Read> BufRead for Input<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, self.source.read(self.buffer)?);
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
    }
}

/// A reader of one deflate stream.
struct Inflate<'a, R> {
    source: R,
    inflate: &'a mut Decompress,
}

impl<R: BufRead> Read for Inflate<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.source.fill_buf()?;
            let is_end = input.is_empty();
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let flush = if is_end { FlushDecompress::Finish } else { FlushDecompress::None };
            let status = self.inflate.decompress(input, buffer, flush)?;
            self.source.consume((self.inflate.total_in() - before_in) as usize);
            let length = (self.inflate.total_out() - before_out) as usize;
            if length > 0 || status == Status::StreamEnd || buffer.is_empty() {
                return Ok(length);
            }
            if is_end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn reads_several_streams_completely() {
        let text: Vec<u8> = (0..100_000).flat_map(|n| format!("{n} green bottles\n").into_bytes()).collect();
        let mut decompressors = Decompressors::new();
        for content in [&text[..], b"", b"short", &text[..70_000]] {
            let mut read = Vec::new();
            decompressors.deflate(&deflated(content)[..]).read_to_end(&mut read).unwrap();
            assert!(read == content);
            let mut read = Vec::new();
            decompressors.zstd(&zstd::bulk::compress(content, 3).unwrap()[..]).read_to_end(&mut read).unwrap();
            assert!(read == content);
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error_and_does_not_affect_the_next() {
        let mut decompressors = Decompressors::new();
        let (packed, compressed) = (deflated(&[b'x'; 5000]), zstd::bulk::compress(&[b'x'; 5000], 3).unwrap());
        for length in [0, 1, packed.len() / 2, packed.len() - 1] {
            assert!(decompressors.deflate(&packed[..length]).read_to_end(&mut Vec::new()).is_err(), "{length}");
            assert_eq!(decompressors.deflate(&packed[..]).read_to_end(&mut Vec::new()).unwrap(), 5000);
        }
        assert!(decompressors.zstd(&compressed[..compressed.len() - 1]).read_to_end(&mut Vec::new()).is_err());
    }
}
