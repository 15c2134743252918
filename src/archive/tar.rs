//! Writes tar archives compressed with zstd.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::FileStat;
use tar::{Builder, EntryType, Header};

use super::compress::Codec;
use super::entry::ArchiveEntry;
use super::feed::{Feed, FileCompression, LoadedFile, SmallFile, has_changed};
use super::frames::Frames;
use super::pool::with_pool;
use super::root::ArchiveRoot;
use super::{CompressionLevel, Written};

/// Writes an archive of the entries to `sink`. Unreadable entries are skipped with a warning; only a write error of
/// `sink` is an error.
pub fn write_tar_zstd<W: Write>(
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    level: CompressionLevel,
    sink: W,
) -> io::Result<Written> {
    with_pool(Codec::Zstd(level), |pool| {
        let mut archive = Builder::new(Frames::new(pool, sink));
        let mut written = Written::default();
        Feed::new(pool, root, entries, FileCompression::WholeStream).for_each(|entry, loaded| match loaded {
            LoadedFile::Small(small) => pack_small(&mut archive, &entry.path, &small, &mut written),
            LoadedFile::Large(file, stat) => pack_large(&mut archive, &entry.path, &file, &stat, &mut written),
            LoadedFile::Other(stat, target) => {
                pack_other(&mut archive, &entry.path, &stat, target.as_deref(), &mut written)
            }
            LoadedFile::Unreadable(why) => {
                written.warn_skipped(&entry.path, &why);
                Ok(())
            }
        })?;
        archive.into_inner()?.finish()?;
        Ok(written)
    })
}

fn pack_small(
    archive: &mut Builder<impl Write>,
    path: &Path,
    small: &SmallFile,
    written: &mut Written,
) -> io::Result<()> {
    let mut header = header(&small.stat, EntryType::Regular);
    header.set_size(small.size as u64);
    append_exact_time(archive, &small.stat)?;
    archive.append_data(&mut header, path, small.data.bytes())?;
    written.add_small(path, small);
    Ok(())
}

fn pack_large(
    archive: &mut Builder<impl Write>,
    path: &Path,
    file: &File,
    stat: &FileStat,
    written: &mut Written,
) -> io::Result<()> {
    let size = stat.st_size as u64;
    let mut header = header(stat, EntryType::Regular);
    header.set_size(size);
    let mut content = ExactSizeReader { file, left: size, short: false };
    append_exact_time(archive, stat)?;
    archive.append_data(&mut header, path, &mut content)?;
    if content.short {
        written.warn(path, "could only be read in part; the rest is filled with zeros");
    } else if has_changed(file, stat) {
        written.warn(path, "changed while it was packed");
    }
    written.add(size);
    Ok(())
}

fn pack_other(
    archive: &mut Builder<impl Write>,
    path: &Path,
    stat: &FileStat,
    target: Option<&OsStr>,
    written: &mut Written,
) -> io::Result<()> {
    append_exact_time(archive, stat)?;
    match target {
        Some(target) => pack_link(archive, header(stat, EntryType::Symlink), path, target.as_bytes())?,
        None => archive.append_data(&mut header(stat, EntryType::Directory), path, io::empty())?,
    }
    written.add(0);
    Ok(())
}

/// Writes a link with the exact bytes of its target. A target that is too long for the header is written before it, as
/// GNU tar does.
fn pack_link(archive: &mut Builder<impl Write>, mut header: Header, path: &Path, target: &[u8]) -> io::Result<()> {
    if header.set_link_name_literal(target).is_err() {
        let mut long = Header::new_gnu();
        long.set_path("././@LongLink")?;
        long.set_entry_type(EntryType::GNULongLink);
        long.set_mode(0o644);
        long.set_size(target.len() as u64 + 1);
        long.set_cksum();
        archive.append(&long, target.chain(&[0][..]))?;
        header.set_link_name_literal(target.get(..100).unwrap_or(target))?;
    }
    archive.append_data(&mut header, path, io::empty())
}

/// Writes the time with nanoseconds as an extended header (POSIX pax, keyword `mtime`), unless it is a whole second:
/// the ordinary header stores only seconds, but build tools compare fractions.
fn append_exact_time(archive: &mut Builder<impl Write>, stat: &FileStat) -> io::Result<()> {
    if stat.st_mtime_nsec == 0 || stat.st_mtime < 0 {
        return Ok(());
    }
    let time = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
    archive.append_pax_extensions([("mtime", time.as_bytes())])
}

fn header(stat: &FileStat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_size(0);
    header
}

/// Reads exactly as many bytes as the header states, even if the file shrinks or grows.
struct ExactSizeReader<'a> {
    file: &'a File,
    left: u64,
    short: bool,
}

impl Read for ExactSizeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let mut length = 0;
        if !self.short {
            length = self.file.read(buffer).unwrap_or(0);
        }
        if length == 0 && wanted > 0 {
            self.short = true;
            buffer.fill(0);
            length = wanted;
        }
        self.left -= length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::super::testing::{Project, assert_same, sample, snapshot, tool};
    use super::super::unpack::unpack;
    use super::*;

    #[test]
    fn tar_and_the_agent_unpack_the_archive() {
        let project = sample();
        let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(200));
        project.write(&long, b"long").link("long/link", &"t/".repeat(100)).link("odd", "./a//b/.");
        for level in [CompressionLevel::Fastest, CompressionLevel::Default] {
            let out = File::create(project.beside("a.tar.zst")).unwrap();
            let written = write_tar_zstd(&project.root(), &project.entries(), level, out).unwrap();
            assert_eq!(*written.warnings, Vec::<String>::new());
            tool(Command::new("zstd").arg("-tq").arg(project.beside("a.tar.zst")));
            for (name, unpack) in [("by tar", &["tar", "--zstd", "-xpf"][..]), ("by bsdtar", &["bsdtar", "-xpf"])] {
                let out = project.beside(&format!("{name} {level:?}"));
                fs::create_dir(&out).unwrap();
                tool(Command::new(unpack[0]).args(&unpack[1..]).arg(project.beside("a.tar.zst")).current_dir(&out));
                assert_same(&snapshot(&out), &project.snapshot(), name);
            }
            let copy = Project::new_with(&project, "a.tar.zst");
            unpack(&File::open(copy.beside("a.tar.zst")).unwrap(), &copy.root()).unwrap();
            assert_same(&copy.snapshot(), &project.snapshot(), "by ourselves");
        }
    }

    #[test]
    fn skips_missing_files_with_a_warning() {
        let project = Project::new();
        project.write("a", b"a").write("b", b"b").write("large", &[b'x'; 3_000_000]).link("link", "a");
        let entries = project.entries();
        fs::remove_file(project.path().join("a")).unwrap();
        fs::remove_file(project.path().join("link")).unwrap();
        let out = File::create(project.beside("a.tar.zst")).unwrap();
        let written = write_tar_zstd(&project.root(), &entries, CompressionLevel::Slowest, out).unwrap();
        assert_eq!((written.entries, written.bytes), (2, 3_000_001));
        assert!(written.warnings[0].starts_with("a: skipped: "), "{:?}", written.warnings);
        assert!(written.warnings[1].starts_with("link: skipped: "), "{:?}", written.warnings);
        let listed = tool(Command::new("tar").args(["--zstd", "-tf"]).arg(project.beside("a.tar.zst")));
        assert_eq!(listed, "b\nlarge\n");
    }

    #[test]
    fn a_shrinking_file_does_not_break_the_archive() {
        let project = Project::new();
        project.write("log", &[b'l'; 100]);
        let (file, stat) = project.root().open_file(Path::new("log")).unwrap();
        fs::write(project.path().join("log"), "short").unwrap();
        let mut content = ExactSizeReader { file: &file, left: stat.st_size as u64, short: false };
        let mut read = Vec::new();
        content.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 100);
        assert!(read.starts_with(b"short\0") && content.short);
    }
}
