//! The git index, versions 2 to 4 (gitformat-index(5)).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::local::checkout::ListedFile;

/// The size of an entry before its flags in bytes: times, device, inode, mode, owner, size, object id.
const FIXED_PART: usize = 60;
/// The size of the checksum at the end in bytes.
const CHECKSUM_SIZE: usize = 20;
/// The file type of a submodule.
const SUBMODULE_TYPE: u32 = 0o160_000;

/// The files in an index, in its order; `None` if only git can read the index.
pub fn files(path: &Path) -> Option<Vec<ListedFile>> {
    parse(&std::fs::read(path).ok()?)
}

fn parse(index: &[u8]) -> Option<Vec<ListedFile>> {
    let content = index.get(..index.len().checked_sub(CHECKSUM_SIZE)?)?;
    let mut rest = content.strip_prefix(b"DIRC")?;
    let version = number(&mut rest).filter(|version| (2..=4).contains(version))?;
    let count = number(&mut rest)?;
    let mut files = Vec::new();
    let mut name = Vec::new();
    for _ in 0..count {
        let start = rest.len();
        let fixed = take(&mut rest, FIXED_PART)?;
        let mode = u32::from_be_bytes(fixed.get(24..28)?.try_into().ok()?);
        let flags = take(&mut rest, 2)?;
        let is_extended = flags[0] & 0x40 != 0;
        let is_skipped = is_extended && take(&mut rest, 2)?[0] & 0x40 != 0;
        if version == 4 {
            let dropped = varint(&mut rest)?;
            name.truncate(name.len().checked_sub(dropped)?);
        } else {
            name.clear();
        }
        let length = rest.iter().position(|byte| *byte == 0)?;
        name.extend_from_slice(take(&mut rest, length)?);
        // One zero byte ends the path. Before version 4, zero bytes fill the entry up to a multiple of eight bytes.
        let used = start - rest.len();
        take(&mut rest, if version == 4 { 1 } else { 8 - used % 8 })?;
        let path = OsStr::from_bytes(&name).into();
        files.push(ListedFile { path, is_submodule: mode & 0o170_000 == SUBMODULE_TYPE, is_skipped });
    }
    while !rest.is_empty() {
        let signature = take(&mut rest, 4)?;
        // Git may ignore an extension only if its name begins with a capital letter.
        signature[0].is_ascii_uppercase().then_some(())?;
        let size = number(&mut rest)?;
        take(&mut rest, size as usize)?;
    }
    // A file with a merge conflict has up to three entries.
    files.dedup();
    Some(files)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(take(rest, 4)?.try_into().ok()?))
}

/// The variable-length encoding of offsets in packs.
fn varint(rest: &mut &[u8]) -> Option<usize> {
    let mut byte = take(rest, 1)?[0];
    let mut value = usize::from(byte & 0x7f);
    while byte & 0x80 != 0 {
        byte = take(rest, 1)?[0];
        value = value.checked_add(1)?.checked_mul(128)?.checked_add(usize::from(byte & 0x7f))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_panics_on_a_damaged_index(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut index = b"DIRC\0\0\0\x02\0\0\0\x02".to_vec();
            index.extend(bytes);
            let _ = parse(&index);
        }
    }
}
