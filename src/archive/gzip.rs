//! Writes gzip in the format of GitLab's report files: one member per file, with its name.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::compress::{BLOCK, Codec, DEFLATE_END, encode_stored};
use super::entry::ArchiveEntry;
use super::feed::{Feed, FileCompression, LoadedContent, LoadedFile, stream};
use super::pool::{WorkerPool, with_pool};
use super::root::{ArchiveRoot, FileKind};
use super::{CompressionLevel, Written};

/// Writes each regular file as a member. Directories are skipped; links are skipped with a warning.
pub fn write_gzip<W: Write>(
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    level: CompressionLevel,
    mut sink: W,
) -> io::Result<Written> {
    // gzip requires deflate: the level `fastest` becomes deflate's fastest level.
    let method = if level == CompressionLevel::Fastest { Codec::Deflate(1) } else { level.deflate() };
    with_pool(method, |pool| {
        let mut written = Written::default();
        let feed = Feed::new(pool, root, entries, FileCompression::PerFile);
        feed.for_each(|entry, loaded| write_member(pool, entry, loaded, &mut sink, &mut written))?;
        sink.flush()?;
        Ok(written)
    })
}

fn write_member(
    pool: &WorkerPool<'_>,
    entry: &ArchiveEntry,
    loaded: LoadedFile,
    sink: &mut impl Write,
    written: &mut Written,
) -> io::Result<()> {
    let path = &entry.path;
    match loaded {
        LoadedFile::Other(..) if entry.kind == FileKind::Directory => {}
        LoadedFile::Other(..) => written.warn(path, "skipped: not a regular file"),
        LoadedFile::Unreadable(why) => written.warn_skipped(path, &why),
        LoadedFile::Small(small) => {
            write_header(sink, path, small.stat.st_mtime)?;
            match &small.data {
                LoadedContent::Packed(packed) => sink.write_all(packed)?,
                LoadedContent::Plain(content) => {
                    let mut packed = Vec::new();
                    encode_stored(content, &mut packed);
                    sink.write_all(&packed)?;
                    sink.write_all(&DEFLATE_END)?;
                }
            }
            write_trailer(sink, small.checksum, small.size as u64)?;
            written.add_small(path, &small);
        }
        LoadedFile::Large(file, stat) => {
            write_header(sink, path, stat.st_mtime)?;
            let streamed = stream(pool, &file, &stat, BLOCK, |data| sink.write_all(data))?;
            sink.write_all(&DEFLATE_END)?;
            write_trailer(sink, streamed.checksum, streamed.size)?;
            written.add(streamed.size);
            if let Some(trouble) = streamed.trouble {
                written.warn(path, trouble);
            }
        }
    }
    Ok(())
}

/// The header of a member (RFC 1952): the name is the last part of the path, the comment is the whole path.
fn write_header(sink: &mut impl Write, path: &Path, mtime: i64) -> io::Result<()> {
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const UNIX: u8 = 3;
    let name = path.file_name().map(|name| escape(name.as_bytes())).unwrap_or_default();
    let mtime = u32::try_from(mtime).unwrap_or(0).to_le_bytes();
    sink.write_all(&[0x1f, 0x8b, 8, NAME | COMMENT, mtime[0], mtime[1], mtime[2], mtime[3], 0, UNIX])?;
    for text in [name, escape(path.as_os_str().as_bytes())] {
        sink.write_all(&text)?;
        sink.write_all(&[0])?;
    }
    Ok(())
}

fn write_trailer(sink: &mut impl Write, checksum: u32, size: u64) -> io::Result<()> {
    sink.write_all(&checksum.to_le_bytes())?;
    // The size is stored modulo 2^32.
    sink.write_all(&(size as u32).to_le_bytes())
}

/// gzip names are Latin-1: any other name is marked with `e:` and percent-encoded.
fn escape(name: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && *byte != b'%';
    if name.iter().all(plain) && !name.starts_with(b"e:") {
        return name.to_vec();
    }
    let mut escaped = b"e:".to_vec();
    for byte in name {
        match plain(byte) {
            true => escaped.push(*byte),
            false => escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::process::Command;

    use super::super::testing::{Project, tool};
    use super::super::unpack::unpack;
    use super::*;

    #[test]
    fn gzip_and_the_agent_read_all_members() {
        let project = Project::new();
        let large: Vec<u8> = (0..90_000).flat_map(|n| format!("<case id={n}/>\n").into_bytes()).collect();
        project.write("a.xml", b"<a/>\n").write("empty", b"").write("r\u{e9}/100%.xml", &large).link("link", "a.xml");
        for level in [CompressionLevel::Fastest, CompressionLevel::Default, CompressionLevel::Slowest] {
            let out = File::create(project.beside("a.gz")).unwrap();
            let written = write_gzip(&project.root(), &project.entries(), level, out).unwrap();
            assert_eq!(*written.warnings, ["link: skipped: not a regular file"]);
            let text = tool(Command::new("gzip").arg("-dc").arg(project.beside("a.gz")));
            assert_eq!(text.len(), large.len() + 5);
            let copy = Project::new_with(&project, "a.gz");
            unpack(&File::open(copy.beside("a.gz")).unwrap(), &copy.root()).unwrap();
            assert!(fs::read(copy.path().join("r\u{e9}/100%.xml")).unwrap() == large);
            assert_eq!(fs::read(copy.path().join("empty")).unwrap(), b"");
        }
    }
}
