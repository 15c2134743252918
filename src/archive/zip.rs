//! Writes zip archives as a stream, with exact modes, times, links and names; with Zip64 where needed.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::FileStat;
use rawzip::extra_fields::ExtraFieldId;
use rawzip::path::EntryPath;
use rawzip::time::UtcDateTime;
use rawzip::{CompressionMethod, DataDescriptorOutput, Header, ZipArchiveWriter, ZipFileBuilder};

use super::Written;
use super::compress::{BLOCK, Codec, DEFLATE_END, FRAME};
use super::entry::ArchiveEntry;
use super::feed::{Feed, FileCompression, LoadedContent, LoadedFile, SmallFile, stream};
use super::pool::{WorkerPool, with_pool};
use super::root::ArchiveRoot;

/// Writes an archive of the entries to `sink`, compressing on all cores. Unreadable entries are skipped with a warning;
/// only a write error of `sink` is an error.
pub fn write_zip<W: Write>(
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    method: Codec,
    sink: W,
) -> io::Result<Written> {
    with_pool(method, |pool| {
        let archive = ZipArchiveWriter::builder().with_capacity(entries.len()).build(sink);
        let mut packer = Packer { archive, method, written: Written::default() };
        Feed::new(pool, root, entries, FileCompression::PerFile)
            .for_each(|entry, loaded| packer.pack(pool, &entry.path, loaded))?;
        packer.archive.finish().map_err(broken)?;
        Ok(packer.written)
    })
}

struct Packer<W> {
    archive: ZipArchiveWriter<W>,
    method: Codec,
    written: Written,
}

impl<W: Write> Packer<W> {
    fn pack(&mut self, pool: &WorkerPool<'_>, path: &Path, loaded: LoadedFile) -> io::Result<()> {
        match loaded {
            LoadedFile::Small(small) => self.pack_small(path, small),
            LoadedFile::Other(stat, target) => self.pack_other(path, &stat, target.as_deref()),
            LoadedFile::Large(file, stat) => {
                let builder = self.archive.new_file(entry_path(path)).compression_method(method_in_zip(self.method));
                let (mut entry, _) = described(builder, &stat)?.start().map_err(broken)?;
                let block_size = if matches!(self.method, Codec::Zstd(_)) { FRAME } else { BLOCK };
                let streamed = stream(pool, &file, &stat, block_size, |data| entry.write_all(data))?;
                if matches!(self.method, Codec::Deflate(_)) {
                    entry.write_all(&DEFLATE_END)?;
                }
                entry.finish(DataDescriptorOutput::new(streamed.checksum, streamed.size)).map_err(broken)?;
                self.written.add(streamed.size);
                if let Some(trouble) = streamed.trouble {
                    self.written.warn(path, trouble);
                }
                Ok(())
            }
            LoadedFile::Unreadable(why) => {
                self.written.warn_skipped(path, &why);
                Ok(())
            }
        }
    }

    fn pack_small(&mut self, path: &Path, small: SmallFile) -> io::Result<()> {
        let method = match &small.data {
            LoadedContent::Packed(_) => method_in_zip(self.method),
            LoadedContent::Plain(_) => CompressionMethod::STORE,
        };
        let builder = self.archive.new_file(entry_path(path)).compression_method(method);
        let (mut entry, _) = described(builder, &small.stat)?.start().map_err(broken)?;
        entry.write_all(small.data.bytes())?;
        entry.finish(DataDescriptorOutput::new(small.checksum, small.size as u64)).map_err(broken)?;
        self.written.add_small(path, &small);
        Ok(())
    }

    fn pack_other(&mut self, path: &Path, stat: &FileStat, target: Option<&OsStr>) -> io::Result<()> {
        match target {
            None => {
                let mut name = path.as_os_str().as_bytes().to_vec();
                name.push(b'/');
                let name = entry_name(name);
                let time = UtcDateTime::from_unix(stat.st_mtime);
                let builder = self.archive.new_dir(name).last_modified(time).unix_permissions(stat.st_mode);
                let builder = builder.extra_field(TIME, &time_of(stat), Header::LOCAL).map_err(broken)?;
                let builder = match exact_time_of(stat) {
                    Some(time) => builder.extra_field(EXACT_TIME, &time, Header::CENTRAL).map_err(broken)?,
                    None => builder,
                };
                let builder = builder.extra_field(OWNER, &owner(stat), Header::default()).map_err(broken)?;
                builder.create().map_err(broken)?;
            }
            Some(target) => {
                let builder = self.archive.new_file(entry_path(path));
                let (mut entry, _) = described(builder, stat)?.start().map_err(broken)?;
                let target = target.as_bytes();
                entry.write_all(target)?;
                let output = DataDescriptorOutput::new(crc32fast::hash(target), target.len() as u64);
                entry.finish(output).map_err(broken)?;
            }
        }
        self.written.add(0);
        Ok(())
    }
}

fn method_in_zip(method: Codec) -> CompressionMethod {
    match method {
        Codec::Store => CompressionMethod::STORE,
        Codec::Deflate(_) => CompressionMethod::DEFLATE,
        Codec::Zstd(_) => CompressionMethod::ZSTD,
    }
}

const OWNER: ExtraFieldId = ExtraFieldId::INFO_ZIP_UNIX_UID_GID;
const TIME: ExtraFieldId = ExtraFieldId::EXTENDED_TIMESTAMP;
/// The extra field for exact times: build tools compare fractions of seconds, and no other registered field stores
/// them.
pub const EXACT_TIME: ExtraFieldId = ExtraFieldId::NTFS;
/// The seconds from 1601, the epoch of [`EXACT_TIME`], to 1970.
pub const EXACT_TIME_EPOCH: u64 = 11_644_473_600;
/// [`EXACT_TIME`] has a resolution of 100 nanoseconds: this many units per second.
pub const EXACT_TIME_TICKS: u64 = 10_000_000;
/// The start of [`EXACT_TIME`]: four reserved bytes, the tag for times, and the size of the three times.
pub const EXACT_TIME_START: [u8; 8] = [0, 0, 0, 0, 1, 0, 24, 0];

/// Adds the metadata of a file.
fn described<'archive, 'path, W: Write>(
    builder: ZipFileBuilder<'archive, 'path, W>,
    stat: &FileStat,
) -> io::Result<ZipFileBuilder<'archive, 'path, W>> {
    let builder = builder.last_modified(UtcDateTime::from_unix(stat.st_mtime)).unix_permissions(stat.st_mode);
    let builder = builder.extra_field(TIME, &time_of(stat), Header::LOCAL).map_err(broken)?;
    let builder = match exact_time_of(stat) {
        Some(time) => builder.extra_field(EXACT_TIME, &time, Header::CENTRAL).map_err(broken)?,
        None => builder,
    };
    builder.extra_field(OWNER, &owner(stat), Header::default()).map_err(broken)
}

/// The content of [`EXACT_TIME`]; `None` if the time is a whole second.
fn exact_time_of(stat: &FileStat) -> Option<[u8; 32]> {
    let (seconds, nanoseconds) = (u64::try_from(stat.st_mtime).ok()?, u64::try_from(stat.st_mtime_nsec).ok()?);
    let ticks = seconds.checked_add(EXACT_TIME_EPOCH)?.checked_mul(EXACT_TIME_TICKS)? + nanoseconds / 100;
    let mut field = [0; 32];
    field[..8].copy_from_slice(&EXACT_TIME_START);
    for time in field[8..].chunks_exact_mut(8) {
        time.copy_from_slice(&ticks.to_le_bytes());
    }
    (nanoseconds != 0).then_some(field)
}

/// The time in seconds for the local header, which unzip reads; the zip crate writes the central one.
fn time_of(stat: &FileStat) -> [u8; 5] {
    let seconds = stat.st_mtime.clamp(0, u32::MAX.into()) as u32;
    let [a, b, c, d] = seconds.to_le_bytes();
    [1, a, b, c, d]
}

/// Owner and group in the format of Info-ZIP.
fn owner(stat: &FileStat) -> [u8; 11] {
    let mut field = [1, 4, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    field[2..6].copy_from_slice(&stat.st_uid.to_le_bytes());
    field[7..11].copy_from_slice(&stat.st_gid.to_le_bytes());
    field
}

fn entry_path(path: &Path) -> EntryPath<'_> {
    entry_name(path.as_os_str().as_bytes().to_vec())
}

/// The exact name: the crate's normalisation would turn `a:b` and `a\b` into other names. (Such a name lacks the UTF-8
/// flag; Unix tools use its bytes as they are.)
fn entry_name(name: Vec<u8>) -> EntryPath<'static> {
    match String::from_utf8(name) {
        Ok(text) if is_conformant(text.as_bytes()) => EntryPath::conformant(text),
        Ok(text) => EntryPath::verbatim(text.into_bytes()),
        Err(bytes) => EntryPath::verbatim(bytes.into_bytes()),
    }
}

fn is_conformant(name: &[u8]) -> bool {
    !name.iter().any(|byte| matches!(byte, b'\\' | b':')) && !name.windows(2).any(|pair| pair == b".." || pair == b"./")
}

fn broken(why: rawzip::Error) -> io::Error {
    match why.into_kind() {
        rawzip::ErrorKind::IO(why) => why,
        other => io::Error::other(rawzip::Error::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::super::testing::{Project, assert_same, sample, snapshot, tool};
    use super::super::unpack::unpack;
    use super::super::{ArchiveFormat, CompressionLevel, write};
    use super::*;

    fn pack(project: &Project, level: CompressionLevel) -> Written {
        let archive = File::create(project.beside("a.zip")).unwrap();
        write(&project.root(), &project.entries(), ArchiveFormat::Zip, level, archive).unwrap()
    }

    #[test]
    fn unzip_unpacks_the_archive() {
        for level in
            [CompressionLevel::Fastest, CompressionLevel::Fast, CompressionLevel::Default, CompressionLevel::Slowest]
        {
            let project = sample();
            let written = pack(&project, level);
            assert_eq!(*written.warnings, Vec::<String>::new());
            let archive = project.beside("a.zip");
            tool(Command::new("unzip").arg("-tqq").arg(&archive));
            for (name, unpack) in [("by unzip", &["unzip", "-q"][..]), ("by bsdtar", &["bsdtar", "-xpf"])] {
                let out = project.beside(name);
                fs::create_dir(&out).unwrap();
                tool(Command::new(unpack[0]).args(&unpack[1..]).arg(&archive).current_dir(&out));
                assert_same(&snapshot(&out), &project.snapshot(), &format!("{name} {level:?}"));
            }
        }
    }

    #[test]
    fn an_archive_with_zstd_is_a_valid_zip_archive() {
        for level in [CompressionLevel::Fastest, CompressionLevel::Default, CompressionLevel::Slowest] {
            let project = sample();
            let archive = File::create(project.beside("a.zip")).unwrap();
            let written = write(&project.root(), &project.entries(), ArchiveFormat::ZipZstd, level, archive).unwrap();
            assert_eq!(*written.warnings, Vec::<String>::new());
            let out = project.beside("by bsdtar");
            fs::create_dir(&out).unwrap();
            tool(Command::new("bsdtar").arg("-xpf").arg(project.beside("a.zip")).current_dir(&out));
            assert_same(&snapshot(&out), &project.snapshot(), &format!("by bsdtar {level:?}"));
            let copy = Project::new_with(&project, "a.zip");
            unpack(&File::open(copy.beside("a.zip")).unwrap(), &copy.root()).unwrap();
            assert_same(&copy.snapshot(), &project.snapshot(), "by ourselves");
        }
    }

    #[test]
    fn a_missing_or_unreadable_file_is_a_warning() {
        let project = Project::new();
        project.write("a", b"a").write("b", b"b").write("c", b"c");
        let entries = project.entries();
        fs::remove_file(project.path().join("a")).unwrap();
        fs::remove_file(project.path().join("b")).unwrap();
        project.link("b", "/etc/passwd");
        let archive = File::create(project.beside("a.zip")).unwrap();
        let written = write(&project.root(), &entries, ArchiveFormat::Zip, CompressionLevel::Default, archive).unwrap();
        assert_eq!(written.entries, 1);
        assert_eq!(written.warnings.len(), 2);
        assert!(written.warnings[0].starts_with("a: skipped: "), "{:?}", written.warnings);
        assert_eq!(tool(Command::new("unzip").arg("-Z1").arg(project.beside("a.zip"))), "c\n");
    }

    #[test]
    fn a_growing_file_is_cut_at_its_original_size() {
        struct Growing<'a>(&'a Project, Vec<u8>);
        impl Write for Growing<'_> {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                let mut file = File::options().append(true).open(self.0.path().join("log"))?;
                file.write_all(&[b'x'; 100_000])?;
                self.1.extend_from_slice(data);
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let project = Project::new();
        project.write("log", &vec![b'l'; 3_000_000]);
        let mut sink = Growing(&project, Vec::new());
        let written =
            write(&project.root(), &project.entries(), ArchiveFormat::Zip, CompressionLevel::Default, &mut sink)
                .unwrap();
        assert_eq!(*written.warnings, ["log: changed while it was packed"]);
        assert_eq!(written.bytes, 3_000_000);
        fs::write(project.beside("a.zip"), sink.1).unwrap();
        tool(Command::new("unzip").arg("-tqq").arg(project.beside("a.zip")));
    }

    #[test]
    fn a_write_error_ends_packing() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let project = sample();
        let error = write(&project.root(), &project.entries(), ArchiveFormat::Zip, CompressionLevel::Default, Full)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn preserves_names_that_are_not_utf8() {
        let project = Project::new();
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
        fs::write(project.path().join(name), "x").unwrap();
        project.write("back\\slash", b"y");
        pack(&project, CompressionLevel::Default);
        let out = project.beside("out");
        fs::create_dir(&out).unwrap();
        tool(Command::new("unzip").arg("-q").arg(project.beside("a.zip")).current_dir(&out));
        assert!(out.join(name).exists());
        assert!(out.join("back\\slash").exists());
    }

    #[test]
    fn packs_more_entries_than_fit_without_zip64() {
        let project = Project::new();
        project.write("file", b"");
        let entry = project.entries().remove(0);
        let entries: Vec<_> = std::iter::repeat_n(entry, 70_000).collect();
        let archive = File::create(project.beside("a.zip")).unwrap();
        assert_eq!(
            write(&project.root(), &entries, ArchiveFormat::Zip, CompressionLevel::Default, archive).unwrap().entries,
            70_000
        );
        let listed = tool(Command::new("unzip").arg("-Z1").arg(project.beside("a.zip")));
        assert_eq!(listed.lines().count(), 70_000);
    }
}
