//! Reads zip archives, on all cores.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use nix::sys::time::TimeSpec;
use rawzip::time::ZipDateTimeKind;
use rawzip::{
    CompressionMethod, FileReader, MAX_CENTRAL_DIRECTORY_RECORD_SIZE, ZipArchive, ZipArchiveEntryWayfinder,
    ZipFileHeaderRecord,
};

use super::destination::{Destination, Meta, Writer};
use super::inflate::Decompressors;
use super::{MAX_PATH_LENGTH, UnpackError, link_target, relative, unreadable};
use crate::archive::zip::{EXACT_TIME, EXACT_TIME_EPOCH, EXACT_TIME_START, EXACT_TIME_TICKS};
use crate::sync;

/// The stack of a thread that unpacks, in bytes.
const STACK_BYTES: usize = 1 << 20;

/// With more threads, decompression would be faster than any disk.
const MAX_WORKERS: usize = 8;

// The file types of Unix modes (inode(7)).
const TYPE: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// A file to unpack.
struct Task {
    path: PathBuf,
    name: Vec<u8>,
    meta: Meta,
    method: CompressionMethod,
    size: u64,
    at: ZipArchiveEntryWayfinder,
}

pub fn unpack(file: &File, destination: &Destination<'_>) -> Result<(), UnpackError> {
    let file = file.try_clone().map_err(UnpackError::of_destination)?;
    let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::from_file(file, &mut buffer)
        .map_err(|why| UnpackError::of_archive(format_args!("not a valid zip archive: {why}")))?;
    let mut records = vec![0; MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
    let mut entries = archive.entries(&mut records);
    let mut next = || match entries.next_entry() {
        Ok(Some(record)) => prepare(&archive, &record, destination),
        Ok(None) => Ok(Prepared::End),
        Err(why) => Err(UnpackError::of_archive(format_args!("the list of entries is damaged: {why}"))),
    };
    let mut pending = None;
    loop {
        pending = unpack_batch(&archive, destination, pending, &mut next)?;
        if pending.is_none() {
            return Ok(());
        }
    }
}

/// The result of [`prepare`].
enum Prepared {
    /// A file, which a worker will unpack.
    File(Box<Task>),
    /// The entry needs no worker: a directory, a link, or a skipped entry.
    Done,
    /// The archive has no further entry.
    End,
}

/// The files that are passed to a thread at once: passing small files one by one would cost more than writing them.
#[derive(Default)]
struct Batch {
    tasks: Vec<Task>,
    size: u64,
}

impl Batch {
    const MAX_TASKS: usize = 32;
    const MAX_BYTES: u64 = 256 * 1024;

    fn push(&mut self, task: Task) {
        self.size = self.size.saturating_add(task.size);
        self.tasks.push(task);
    }

    fn is_full(&self) -> bool {
        self.tasks.len() >= Self::MAX_TASKS || self.size >= Self::MAX_BYTES
    }
}

/// Unpacks files on all cores, up to the end or up to a name that was already seen: the later entry wins, so it must
/// wait for the earlier one.
fn unpack_batch(
    archive: &ZipArchive<FileReader>,
    destination: &Destination<'_>,
    first: Option<Box<Task>>,
    next: &mut dyn FnMut() -> Result<Prepared, UnpackError>,
) -> Result<Option<Box<Task>>, UnpackError> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS));
    let (tasks, queue) = mpsc::sync_channel::<Batch>(2 * workers);
    let (queue, failure) = (Mutex::new(Some(queue)), Mutex::new(None));
    let result = thread::scope(|scope| {
        for n in 0..workers {
            let (queue, failure) = (&queue, &failure);
            sync::spawn_scoped(scope, format!("unzip-{n}"), STACK_BYTES, move || {
                run_worker(archive, destination, queue, failure)
            })
            .map_err(UnpackError::of_destination)?;
        }
        // Sending fails only after a worker failed; `failure` contains the cause.
        let (mut seen, mut batch) = (HashSet::new(), Batch::default());
        let mut ready = first;
        loop {
            if let Some(task) = ready.take() {
                let mut hasher = DefaultHasher::new();
                task.path.hash(&mut hasher);
                if !seen.insert(hasher.finish()) {
                    let _ = tasks.send(batch);
                    return Ok(Some(task));
                }
                batch.push(*task);
                if batch.is_full() && tasks.send(std::mem::take(&mut batch)).is_err() {
                    return Ok(None);
                }
            }
            match next() {
                Ok(Prepared::File(task)) => ready = Some(task),
                Ok(Prepared::Done) => {}
                Ok(Prepared::End) => {
                    let _ = tasks.send(batch);
                    drop(tasks);
                    return Ok(None);
                }
                Err(why) => return Err(why),
            }
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => result,
    }
}

/// Unpacks batches from the queue until it ends or an entry fails.
fn run_worker(
    archive: &ZipArchive<FileReader>,
    destination: &Destination<'_>,
    queue: &Mutex<Option<mpsc::Receiver<Batch>>>,
    failure: &Mutex<Option<UnpackError>>,
) {
    let (mut writer, mut decompressors) = (Writer::new(), Decompressors::new());
    loop {
        let batch = match sync::lock(queue).as_ref().map(mpsc::Receiver::recv) {
            Some(Ok(batch)) => batch,
            _ => return,
        };
        let done = batch.tasks.iter().try_for_each(|task| {
            let mut write = |content: &mut dyn Read| destination.file(&mut writer, &task.path, task.meta, content);
            let done = destination.reserve(task.size);
            let done = done.and_then(|()| with_content(archive, task, &mut decompressors, &mut write));
            done.map_err(|why| UnpackError::of_io(&task.name, &why))
        });
        if let Err(why) = done {
            sync::lock(failure).get_or_insert(why);
            // When the queue is dropped, the sender and the other workers stop, too.
            sync::lock(queue).take();
            return;
        }
    }
}

/// Inspects an entry; creates directories and records links at once.
fn prepare(
    archive: &ZipArchive<FileReader>,
    record: &ZipFileHeaderRecord<'_>,
    destination: &Destination<'_>,
) -> Result<Prepared, UnpackError> {
    let name = record.file_path().as_bytes();
    let fail = |why: &dyn std::fmt::Display| UnpackError::of_entry(name, why);
    let path = relative(name).map_err(|why| fail(&why))?;
    if record.flags().is_encrypted() {
        return Err(fail(&"it is encrypted"));
    }
    let mode = record.mode().value();
    let meta = Meta { mode, mtime: time_of(record) };
    let task = Task {
        path,
        name: name.to_vec(),
        meta,
        method: record.compression_method(),
        size: record.uncompressed_size_hint(),
        at: record.wayfinder(),
    };
    match mode & TYPE {
        _ if name.ends_with(b"/") => {
            destination.directory(&task.path, meta).map_err(|why| UnpackError::of_io(name, &why))?
        }
        DIRECTORY => destination.directory(&task.path, meta).map_err(|why| UnpackError::of_io(name, &why))?,
        LINK => {
            let target = read_link(archive, &task).map_err(|why| UnpackError::of_io(name, &why))?;
            destination.link(task.path, target, meta.mtime).map_err(|why| UnpackError::of_io(name, &why))?;
        }
        REGULAR | 0 => return Ok(Prepared::File(Box::new(task))),
        _ => destination.warn(format!("{}: skipped: not a file, directory or link", String::from_utf8_lossy(name))),
    }
    Ok(Prepared::Done)
}

/// The modification time of an entry, as exact as the archive states it.
fn time_of(record: &ZipFileHeaderRecord<'_>) -> TimeSpec {
    let exact = record.extra_fields().filter(|(id, _)| *id == EXACT_TIME).find_map(|(_, field)| exact_time(field));
    exact.unwrap_or_else(|| {
        let seconds = match record.last_modified() {
            ZipDateTimeKind::Utc(time) => time.to_unix(),
            ZipDateTimeKind::Local(time) => rawzip::time::UtcDateTime::from_components(
                time.year(),
                time.month(),
                time.day(),
                time.hour(),
                time.minute(),
                time.second(),
                0,
            )
            .map_or(0, |time| time.to_unix()),
        };
        TimeSpec::new(seconds, 0)
    })
}

/// The first time in the field [`EXACT_TIME`].
fn exact_time(field: &[u8]) -> Option<TimeSpec> {
    let times = field.strip_prefix(&EXACT_TIME_START)?;
    let ticks = u64::from_le_bytes(*times.first_chunk()?);
    let seconds = (ticks / EXACT_TIME_TICKS).checked_sub(EXACT_TIME_EPOCH)?;
    let nanoseconds = ticks % EXACT_TIME_TICKS * 100;
    Some(TimeSpec::new(i64::try_from(seconds).ok()?, i64::try_from(nanoseconds).ok()?))
}

fn read_link(archive: &ZipArchive<FileReader>, task: &Task) -> io::Result<OsString> {
    let mut target = Vec::new();
    with_content(archive, task, &mut Decompressors::new(), &mut |content| {
        content.take(MAX_PATH_LENGTH as u64 + 1).read_to_end(&mut target).map(drop).map_err(unreadable)
    })?;
    link_target(target)
}

/// Passes the content of an entry to a function: at most the declared size, verified at the end.
fn with_content(
    archive: &ZipArchive<FileReader>,
    task: &Task,
    decompressors: &mut Decompressors,
    read: &mut dyn FnMut(&mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let entry = archive.get_entry(task.at).map_err(|why| unreadable(io::Error::other(why)))?;
    match task.method {
        CompressionMethod::STORE => read(&mut entry.verifying_reader(entry.reader())),
        CompressionMethod::DEFLATE => read(&mut entry.verifying_reader(decompressors.deflate(entry.reader()))),
        CompressionMethod::ZSTD => read(&mut entry.verifying_reader(decompressors.zstd(entry.reader()))),
        method => Err(unreadable(io::Error::other(format!("unsupported compression method {method}")))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::process::Command;

    use super::*;
    use crate::archive::testing::{Project, tool};
    use crate::archive::{ArchiveFormat, CompressionLevel, write};

    /// A file whose long runs of zeros are holes.
    struct Sparse(File);

    impl Write for Sparse {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];
            match data.len() > 4096 && ZEROS.get(..data.len()) == Some(data) {
                true => self.0.seek(SeekFrom::Current(data.len() as i64)).map(|_| data.len()),
                false => self.0.write(data),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn unpacks_a_file_that_needs_zip64() {
        // On a tmpfs, a hole in a file needs neither disk nor cache.
        let project = Project::new_in(std::path::Path::new("/dev/shm"));
        project.write("large", b"").write("later", b"x");
        let size = (4 << 30) + 12_345;
        File::options().write(true).open(project.path().join("large")).unwrap().set_len(size).unwrap();
        let sink = Sparse(File::create(project.beside("a.zip")).unwrap());
        let written =
            write(&project.root(), &project.entries(), ArchiveFormat::Zip, CompressionLevel::Fastest, sink).unwrap();
        assert_eq!((written.bytes, written.warnings.len()), (size + 1, 0));
        let listed = tool(Command::new("unzip").arg("-Zs").arg(project.beside("a.zip")));
        assert!(listed.contains(&size.to_string()), "{listed}");

        let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
        let archive = ZipArchive::from_file(File::open(project.beside("a.zip")).unwrap(), &mut buffer).unwrap();
        let mut records = vec![0; MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
        let mut entries = archive.entries(&mut records);
        let root = project.root();
        let destination = Destination::new(&root).unwrap();
        let mut sizes = Vec::new();
        while let Some(record) = entries.next_entry().unwrap() {
            let Prepared::File(task) = prepare(&archive, &record, &destination).unwrap() else { panic!("a file") };
            sizes.push(task.size);
            let mut start = Vec::new();
            let mut read = |content: &mut dyn Read| content.take(10).read_to_end(&mut start).map(drop);
            with_content(&archive, &task, &mut Decompressors::new(), &mut read).unwrap();
            assert_eq!(start, if task.size == 1 { &b"x"[..] } else { &[0; 10] });
        }
        assert_eq!(sizes, [size, 1]);
    }
}
