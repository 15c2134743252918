//! Object ids: the hashes by which git names objects.

use std::io::{self, Read};

use ring::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::SourcesPlan;
use crate::digest::{hex, is_hex};

/// The hash algorithm of the object ids.
pub fn algorithm(plan: &SourcesPlan) -> &'static Algorithm {
    if plan.object_format == "sha256" { &SHA256 } else { &SHA1_FOR_LEGACY_USE_ONLY }
}

/// Whether a text has the format of an object id, of SHA-1 or SHA-256.
pub fn is_valid(text: &str) -> bool {
    is_hex(text, &[40, 64])
}

/// The object id for this content.
pub fn hash_content(plan: &SourcesPlan, kind: &str, content: &[u8]) -> String {
    let mut context = Context::new(algorithm(plan));
    context.update(format!("{kind} {}\0", content.len()).as_bytes());
    context.update(content);
    hex(context.finish().as_ref())
}

/// As [`hash_content`], for content from a reader. Errors: the content is shorter than `size`.
pub fn hash_reader(plan: &SourcesPlan, kind: &str, size: u64, reader: &mut dyn Read) -> io::Result<String> {
    let mut context = Context::new(algorithm(plan));
    context.update(format!("{kind} {size}\0").as_bytes());
    let mut left = size;
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = reader.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        context.update(&buffer[..length]);
        left -= length as u64;
    }
    Ok(hex(context.finish().as_ref()))
}
