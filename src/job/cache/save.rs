//! Saves caches after a job.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::restore::{refusal, send_request};
use super::store::{self, PendingArchive};
use super::{CacheLocation, CacheSave, PresignedUrls, SavePlan, TransferSettings};
use crate::archive::entry::ArchiveEntry;
use crate::archive::root::ArchiveRoot;
use crate::archive::select::{SelectionRequest, select};
use crate::archive::{self, ArchiveFormat, CompressionLevel};
use crate::http::{Failure, Method, Outgoing, RetryBudget, Timeouts, Transfer, is_retryable, origin};
use crate::job::transfer::{CACHE_RETRY_TIMEOUT, Meter, bytes, heading, notes, notice, wait_before_retry, warning};

/// Saves each cache. Returns the exit status of the stage, which is always 0.
pub fn run(plan: &SavePlan) -> i32 {
    plan.warnings.iter().for_each(warning);
    let root = match plan.project.open() {
        Ok(root) => root,
        Err(why) => {
            warning(why);
            return 0;
        }
    };
    for cache in &plan.caches {
        match cache {
            CacheSave::Skip(why) => println!("{why}"),
            CacheSave::Files { location, paths, untracked, format, level, max_upload } => {
                heading(format_args!("Creating cache {}...", location.key));
                let request = SelectionRequest { paths: paths.clone(), exclude: Vec::new(), untracked: *untracked };
                match save(&root, &request, location, (*format, *level), *max_upload, &plan.transfer) {
                    Ok(()) => heading("Created cache"),
                    Err(why) => {
                        warning(format_args!("cache {}: {why}", location.key));
                        notice("Failed to create cache");
                    }
                }
            }
        }
    }
    store::enforce_limits(&plan.store, plan.limits);
    0
}

fn save(
    root: &ArchiveRoot,
    request: &SelectionRequest,
    location: &CacheLocation,
    compression: (ArchiveFormat, CompressionLevel),
    max_upload: Option<u64>,
    transfer_settings: &TransferSettings,
) -> Result<(), String> {
    let selection = select(root, request);
    notes(&selection.notes);
    if selection.entries.is_empty() {
        warning("No files to cache.");
        return Ok(());
    }
    let with_path = |why: io::Error| match why.kind() {
        io::ErrorKind::StorageFull => format!("the disk is full: {}", location.local.display()),
        _ => format!("{}: {why}", location.local.display()),
    };
    let _lock = store::lock(&location.local).map_err(with_path)?;
    let unchanged = is_up_to_date(root, &selection.entries, &location.local);
    if !unchanged {
        pack(root, &selection.entries, location, compression).map_err(with_path)?;
    }
    let Some(remote) = &location.remote else {
        println!(
            "No URL provided, cache will not be uploaded to shared cache server. Cache will be stored only locally."
        );
        return Ok(());
    };
    if unchanged
        && send_request(transfer_settings, Method::Head, &remote.head, &[]).is_ok_and(|response| response.status == 200)
    {
        println!("Archive is up to date!");
        return Ok(());
    }
    let archive = store::open(&location.local).map_err(with_path)?;
    let size = archive.metadata().map_err(with_path)?.len();
    if let Some(why) = too_large(size, max_upload, remote) {
        warning(format_args!("cache {}: {why}; it stays local", location.key));
        return Ok(());
    }
    if let Some(etag) = upload(archive, size, remote, transfer_settings)? {
        store::set_etag(&location.local, &etag);
    }
    Ok(())
}

/// Why an archive of this size is not uploaded; `None` if it is small enough.
fn too_large(size: u64, max_upload: Option<u64>, remote: &PresignedUrls) -> Option<String> {
    if let Some(max) = max_upload.filter(|max| size > *max) {
        return Some(format!("{size} bytes exceed the upload limit of {max}"));
    }
    let max = remote.max_size.filter(|max| size > *max)?;
    Some(format!("{} exceeds the {} that S3 accepts in one request", bytes(size as f64), bytes(max as f64)))
}

/// Whether the archive is newer than all files that would go into it.
fn is_up_to_date(root: &ArchiveRoot, entries: &[ArchiveEntry], archive: &Path) -> bool {
    let Some(packed) = archive.symlink_metadata().and_then(|metadata| metadata.modified()).ok() else { return false };
    let Ok(packed) = packed.duration_since(SystemTime::UNIX_EPOCH) else { return false };
    let packed = (packed.as_secs().cast_signed(), i64::from(packed.subsec_nanos()));
    entries.iter().all(|entry| root.stat(&entry.path).is_ok_and(|stat| (stat.st_mtime, stat.st_mtime_nsec) < packed))
}

fn pack(
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    location: &CacheLocation,
    (format, level): (ArchiveFormat, CompressionLevel),
) -> io::Result<()> {
    let mut pending = PendingArchive::new(&location.local)?;
    // The time is taken from a new file, because file timestamps lag some milliseconds behind the system clock.
    let started = pending.file.metadata()?.modified()?;
    let mut sink = BufWriter::with_capacity(256 * 1024, &mut pending.file);
    let written = archive::write(root, entries, format, level, &mut sink)?;
    sink.flush()?;
    drop(sink);
    written.warnings.iter().for_each(warning);
    // A file that changes during packing must look newer than the archive.
    pending.file.set_modified(started)?;
    pending.commit(&location.key)
}

/// Uploads the archive; returns its ETag.
fn upload(
    mut archive: File,
    size: u64,
    remote: &PresignedUrls,
    transfer_settings: &TransferSettings,
) -> Result<Option<String>, String> {
    let timeouts = Timeouts {
        total: transfer_settings.timeout,
        response: Duration::from_secs(30).max(transfer_settings.timeout / 2),
    };
    let transfer = Transfer::new(&remote.put, &transfer_settings.tls, &transfer_settings.user_agent, timeouts)
        .map_err(|why| why.to_string())?;
    let mut headers = remote.put_headers.clone();
    headers.push(("Content-Type".to_owned(), "application/octet-stream".to_owned()));
    println!("Uploading cache.zip to {}", origin(&remote.put));
    let mut budget = RetryBudget::new(CACHE_RETRY_TIMEOUT);
    loop {
        archive.rewind().map_err(|why| why.to_string())?;
        let mut content = Meter::new(&archive, "Uploading cache", transfer_settings.meter, Some(size));
        let (why, wait) = match transfer.send(Method::Put, &remote.put, &headers, Outgoing::Sized(&mut content, size)) {
            Ok(response) if (200..300).contains(&response.status) => {
                return Ok(response.header("ETag").map(str::to_owned));
            }
            Ok(response) if !is_retryable(response.status) => return Err(refusal(response)),
            Ok(response) => match budget.after(Failure::Status(response.status), response.requested_delay()) {
                Some(wait) => (response.status_line(), wait),
                None => return Err(refusal(response)),
            },
            Err(why) => match budget.after(Failure::Broken, None) {
                Some(wait) => (why.to_string(), wait),
                None => return Err(why.to_string()),
            },
        };
        warning(format_args!("{why}. Retrying..."));
        wait_before_retry(wait);
    }
}
