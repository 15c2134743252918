//! Restores caches before a job.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use super::store::{self, PendingArchive};
use super::{CacheLocation, CacheRestore, PresignedUrls, RestorePlan, TransferSettings};
use crate::archive::root::ArchiveRoot;
use crate::archive::select::{SelectionRequest, select};
use crate::archive::unpack::{UnpackFault, looks_like_cache, unpack};
use crate::http::{
    Failure, Incoming, Method, Outgoing, RetryBudget, Timeouts, Transfer, http_date, is_retryable, origin,
};
use crate::instance::aws::xml::element;
use crate::job::transfer::{CACHE_RETRY_TIMEOUT, Meter, heading, notice, wait_before_retry, warning};

/// Restores each cache from its first existing location. Returns the exit status of the stage, which is always 0.
pub fn run(plan: &RestorePlan) -> i32 {
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
            CacheRestore::Skip(why) => println!("{why}"),
            CacheRestore::FirstOf { locations, clear } => {
                _ = locations.iter().any(|location| restore(location, clear, &plan.transfer, &root));
            }
        }
    }
    store::enforce_limits(&plan.store, plan.limits);
    0
}

/// Restores the cache at one location; returns whether that succeeded.
fn restore(
    location: &CacheLocation,
    clear: &[String],
    transfer_settings: &TransferSettings,
    root: &ArchiveRoot,
) -> bool {
    heading(format_args!("Checking cache for {}...", location.key));
    let restored = extract(location, clear, transfer_settings, root);
    match &restored {
        Ok(()) => heading("Successfully extracted cache"),
        Err(why) => {
            warning(format_args!("cache {}: {why}", location.key));
            notice("Failed to extract cache");
        }
    }
    restored.is_ok()
}

/// Unpacks an archive. Deletes a damaged local copy, and downloads the archive again if the object store may have a
/// valid one.
fn extract(
    location: &CacheLocation,
    clear: &[String],
    transfer_settings: &TransferSettings,
    root: &ArchiveRoot,
) -> Result<(), String> {
    let mut may_fetch = location.remote.is_some();
    loop {
        let (archive, source) = obtain(location, transfer_settings)?;
        let why = match unpack(&archive, root) {
            Ok(unpacked) => {
                unpacked.warnings.iter().for_each(warning);
                return Ok(());
            }
            Err(why) => why,
        };
        if why.fault == UnpackFault::Archive {
            store::forget(&location.local, &archive);
            if may_fetch && source == ArchiveSource::Local {
                warning(format_args!(
                    "cache {}: the local copy is damaged ({why}); downloading it again",
                    location.key
                ));
                may_fetch = false;
                continue;
            }
        }
        remove_rest(root, clear);
        return Err(format!("cannot extract the archive: {why}"));
    }
}

/// Removes files that an incomplete extraction may have left (`FF_CLEAN_UP_FAILED_CACHE_EXTRACT`).
fn remove_rest(root: &ArchiveRoot, paths: &[String]) {
    let request = SelectionRequest { paths: paths.to_vec(), ..SelectionRequest::default() };
    for entry in select(root, &request).entries.iter().rev() {
        // The removal fails for a directory that contains other files.
        let _ = root.remove(&entry.path, entry.kind);
    }
}

/// Where an archive came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ArchiveSource {
    /// This machine.
    Local,
    /// The object store: the archive was just downloaded.
    ObjectStore,
}

/// Why the object store provided no archive.
enum FetchError {
    /// The object store has no archive.
    Missing,
    Failed(String),
}

/// Opens the archive; downloads it first if the object store has a newer one. If the store fails, the local copy is
/// used.
fn obtain(location: &CacheLocation, transfer_settings: &TransferSettings) -> Result<(File, ArchiveSource), String> {
    let missing = || "file does not exist".to_owned();
    let source = match location.remote.as_ref().map(|remote| refresh(location, remote, transfer_settings)) {
        Some(Ok(source)) => source,
        Some(Err(FetchError::Missing)) => return Err(missing()),
        Some(Err(FetchError::Failed(why))) if location.local.is_file() => {
            warning(format_args!("cache {}: {why}; using the local copy", location.key));
            ArchiveSource::Local
        }
        Some(Err(FetchError::Failed(why))) => return Err(why),
        None => {
            println!(
                "No URL provided, cache will not be downloaded from shared cache server. Instead a local version of \
                 cache will be extracted."
            );
            ArchiveSource::Local
        }
    };
    let archive = store::open(&location.local).map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => missing(),
        _ => format!("{}: {why}", location.local.display()),
    })?;
    Ok((archive, source))
}

/// Downloads the archive if the object store has a newer one than this machine.
fn refresh(
    location: &CacheLocation,
    remote: &PresignedUrls,
    transfer_settings: &TransferSettings,
) -> Result<ArchiveSource, FetchError> {
    let known: Vec<_> =
        store::etag(&location.local).map(|etag| ("If-None-Match".to_owned(), etag)).into_iter().collect();
    let mut budget = RetryBudget::new(CACHE_RETRY_TIMEOUT);
    loop {
        let response = send_request(transfer_settings, Method::Get, &remote.get, &known).map_err(FetchError::Failed)?;
        let stamp = response.header("Last-Modified").and_then(http_date);
        match response.status {
            200 if !is_current(location, stamp) => {}
            200 | 304 => {
                println!("cache.zip is up to date");
                return Ok(ArchiveSource::Local);
            }
            404 => return Err(FetchError::Missing),
            _ => return Err(FetchError::Failed(refusal(response))),
        }
        let why = match fetch(location, response, stamp, transfer_settings) {
            Ok(fetched) => {
                println!("Downloading cache from {}", origin(&remote.get));
                return Ok(fetched);
            }
            Err(why) => why,
        };
        match why.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let full = "the disk is full; no space for the cache in";
                return Err(FetchError::Failed(format!("{full} {}", location.local.display())));
            }
            io::ErrorKind::InvalidData => return Err(FetchError::Failed(why.to_string())),
            _ => {}
        }
        let Some(wait) = budget.after(Failure::Broken, None) else {
            return Err(FetchError::Failed(format!("the archive is incomplete: {why}")));
        };
        warning(format_args!("cache {}: the archive is incomplete: {why}. Retrying...", location.key));
        wait_before_retry(wait);
    }
}

/// Whether the local copy is at least as new as the object.
fn is_current(location: &CacheLocation, stamp: Option<SystemTime>) -> bool {
    let own = location.local.symlink_metadata().and_then(|metadata| metadata.modified()).ok();
    own.zip(stamp).is_some_and(|(own, stamp)| own >= stamp)
}

/// Stores a downloaded archive. Fails with `InvalidData` if it is not an archive.
fn fetch(
    location: &CacheLocation,
    response: Incoming,
    stamp: Option<SystemTime>,
    transfer_settings: &TransferSettings,
) -> io::Result<ArchiveSource> {
    let _lock = store::lock(&location.local)?;
    // Another slot may have downloaded the archive during the wait for the lock.
    if is_current(location, stamp) {
        return Ok(ArchiveSource::ObjectStore);
    }
    let mut pending = PendingArchive::new(&location.local)?;
    let (total, etag) = (response.length(), response.header("ETag").map(str::to_owned));
    io::copy(
        &mut Meter::new(response.into_reader(), "Downloading cache", transfer_settings.meter, total),
        &mut pending.file,
    )?;
    if !looks_like_cache(&pending.file)? {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the store did not return an archive"));
    }
    if let Some(stamp) = stamp {
        pending.file.set_modified(stamp)?;
    }
    pending.commit(&location.key)?;
    if let Some(etag) = etag {
        store::set_etag(&location.local, &etag);
    }
    Ok(ArchiveSource::ObjectStore)
}

/// Sends a request without a body; retries failures of the store and of the network.
pub fn send_request(
    transfer_settings: &TransferSettings,
    method: Method,
    url: &str,
    headers: &[(String, String)],
) -> Result<Incoming, String> {
    let timeouts = Timeouts { total: transfer_settings.timeout, response: Duration::from_secs(30) };
    let transfer = Transfer::new(url, &transfer_settings.tls, &transfer_settings.user_agent, timeouts)
        .map_err(|why| why.to_string())?;
    let mut budget = RetryBudget::new(CACHE_RETRY_TIMEOUT);
    loop {
        let outcome = transfer.send(method, url, headers, Outgoing::Nothing);
        let (failure, asked) = match &outcome {
            Ok(response) if !is_retryable(response.status) => (None, None),
            Ok(response) => (Some(Failure::Status(response.status)), response.requested_delay()),
            Err(_) => (Some(Failure::Broken), None),
        };
        match failure.and_then(|failure| budget.after(failure, asked)) {
            Some(wait) => wait_before_retry(wait),
            None => return outcome.map_err(|why| why.to_string()),
        }
    }
}

/// Describes an error response of an object store.
pub fn refusal(response: Incoming) -> String {
    let line = match response.header("Location").filter(|_| (300..400).contains(&response.status)) {
        Some(location) => format!("{} to {}; redirects are not followed", response.status_line(), origin(location)),
        None => response.status_line(),
    };
    let text = response.explanation();
    let parts = ["Code", "Message"].map(|name| element(&text, name).unwrap_or_default());
    format!("received: {line} {}", parts.join(" ")).trim_end().to_owned()
}
