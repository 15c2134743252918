//! Reads gzip in the format of GitLab's report files: one member per file, with its name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use flate2::bufread::GzDecoder;
use nix::sys::time::TimeSpec;

use super::destination::{Destination, Meta, Writer};
use super::{UnpackError, relative};

/// Unpacks all members of a gzip file.
pub fn unpack(mut file: &File, destination: &Destination<'_>) -> Result<(), UnpackError> {
    file.rewind().map_err(UnpackError::of_archive)?;
    let mut input = BufReader::with_capacity(256 * 1024, file);
    let mut writer = Writer::new();
    while !input.fill_buf().map_err(UnpackError::of_archive)?.is_empty() {
        let mut member = GzDecoder::new(&mut input);
        let header = member.header().ok_or_else(|| UnpackError::of_archive("not a valid gzip file"))?;
        // The comment contains the path; the name contains only its last part.
        let name = header.comment().map(decode).or_else(|| header.filename().map(<[u8]>::to_vec));
        let name = name.ok_or_else(|| UnpackError::of_archive("a file in it has no name"))?;
        let meta = Meta { mode: 0o644, mtime: TimeSpec::new(header.mtime().into(), 0) };
        let path = relative(&name).map_err(|why| UnpackError::of_entry(&name, why))?;
        let mut content = SpaceLimit { content: &mut member, destination, reserved: 0 };
        let written = destination.file(&mut writer, &path, meta, &mut content);
        written.map_err(|why| UnpackError::of_io(&name, &why))?;
    }
    Ok(())
}

/// Reserves disk space during decompression: gzip states the size only at the end.
struct SpaceLimit<'a, R> {
    content: R,
    destination: &'a Destination<'a>,
    reserved: u64,
}

impl<R: Read> Read for SpaceLimit<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.content.read(buffer)?;
        if length as u64 > self.reserved {
            const PORTION_BYTES: u64 = 8 << 20;
            self.destination.reserve(PORTION_BYTES)?;
            self.reserved += PORTION_BYTES;
        }
        self.reserved -= length as u64;
        Ok(length)
    }
}

/// Decodes a comment: after `e:` it is percent-encoded, because gzip allows only Latin-1.
fn decode(comment: &[u8]) -> Vec<u8> {
    let Some(escaped) = comment.strip_prefix(b"e:") else {
        return comment.to_vec();
    };
    let mut name = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let [first, after @ ..] = rest {
        let byte = match (first, after) {
            (b'%', [high, low, ..]) => {
                std::str::from_utf8(&[*high, *low]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())
            }
            _ => None,
        };
        name.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    name
}
