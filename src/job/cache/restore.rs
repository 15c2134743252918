//! Restoring caches before a job.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use super::store::{self, PendingArchive};
use super::{CacheLocation, CacheRestore, PresignedUrls, RestorePlan, TransferSettings};
use crate::archive::root::Root;
use crate::archive::select::{SelectionRequest, select};
use crate::archive::unpack::{Fault, looks_like_cache, unpack};
use crate::http::{
    Failure, Incoming, Method, Outgoing, RetryBudget, Timeouts, Transfer, http_date, is_retryable, origin,
};
use crate::instance::aws::xml::element;
use crate::job::transfer::{Meter, heading, notice, wait_before_retry, warning};

/// How long a request to the object store is retried: a cache only saves time.
pub const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// Restores each cache from the first place that has it. Returns the exit status of the stage, which is always good.
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

fn restore(location: &CacheLocation, clear: &[String], transfer_settings: &TransferSettings, root: &Root) -> bool {
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

/// Unpacks an archive. One that is broken helps nobody: it goes, and where the object store may have a good one, that is
/// fetched.
fn extract(
    location: &CacheLocation,
    clear: &[String],
    transfer_settings: &TransferSettings,
    root: &Root,
) -> Result<(), String> {
    let mut may_fetch = location.remote.is_some();
    loop {
        let (archive, origin) = obtain(location, transfer_settings)?;
        let why = match unpack(&archive, root) {
            Ok(unpacked) => {
                unpacked.warnings.iter().for_each(warning);
                return Ok(());
            }
            Err(why) => why,
        };
        if why.fault == Fault::Archive {
            store::forget(&location.local, &archive);
            if may_fetch && origin == Origin::Local {
                warning(format_args!(
                    "cache {}: the copy on this machine is broken ({why}); it is fetched again",
                    location.key
                ));
                may_fetch = false;
                continue;
            }
        }
        remove_rest(root, clear);
        return Err(format!("the archive cannot be unpacked: {why}"));
    }
}

/// Removes what half an archive may have left (`FF_CLEAN_UP_FAILED_CACHE_EXTRACT`).
fn remove_rest(root: &Root, paths: &[String]) {
    let request = SelectionRequest { paths: paths.to_vec(), ..SelectionRequest::default() };
    for entry in select(root, &request).entries.iter().rev() {
        // A directory may hold what the cache has nothing to do with.
        let _ = root.remove(&entry.path, entry.kind);
    }
}

/// Where an archive comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This machine had it.
    Local,
    /// It has just come from the object store.
    Fetched,
}

/// Why there is no archive from the object store.
enum FetchError {
    /// It has none.
    Missing,
    /// This.
    Failed(String),
}

/// The archive, fetched if the object store has a newer one. While the store is in trouble, the copy on this machine is
/// better than none.
fn obtain(location: &CacheLocation, transfer_settings: &TransferSettings) -> Result<(File, Origin), String> {
    let missing = || "file does not exist".to_owned();
    let origin = match location.remote.as_ref().map(|remote| refresh(location, remote, transfer_settings)) {
        Some(Ok(origin)) => origin,
        Some(Err(FetchError::Missing)) => return Err(missing()),
        Some(Err(FetchError::Failed(why))) if location.local.is_file() => {
            warning(format_args!("cache {}: {why}; the copy on this machine is used", location.key));
            Origin::Local
        }
        Some(Err(FetchError::Failed(why))) => return Err(why),
        None => {
            println!(
                "No URL provided, cache will not be downloaded from shared cache server. Instead a local version of \
                 cache will be extracted."
            );
            Origin::Local
        }
    };
    let archive = store::open(&location.local).map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => missing(),
        _ => format!("{}: {why}", location.local.display()),
    })?;
    Ok((archive, origin))
}

fn refresh(
    location: &CacheLocation,
    remote: &PresignedUrls,
    transfer_settings: &TransferSettings,
) -> Result<Origin, FetchError> {
    let known: Vec<_> =
        store::etag(&location.local).map(|etag| ("If-None-Match".to_owned(), etag)).into_iter().collect();
    let mut budget = RetryBudget::new(RETRY_TIMEOUT);
    loop {
        let answer = send_request(transfer_settings, Method::Get, &remote.get, &known).map_err(FetchError::Failed)?;
        let stamp = answer.header("Last-Modified").and_then(http_date);
        match answer.status {
            200 if !is_current(location, stamp) => {}
            200 | 304 => {
                println!("cache.zip is up to date");
                return Ok(Origin::Local);
            }
            404 => return Err(FetchError::Missing),
            _ => return Err(FetchError::Failed(refusal(answer))),
        }
        let why = match fetch(location, answer, stamp, transfer_settings) {
            Ok(fetched) => {
                println!("Downloading cache from {}", origin(&remote.get));
                return Ok(fetched);
            }
            Err(why) => why,
        };
        match why.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let full = "the disk is full: the cache does not fit into";
                return Err(FetchError::Failed(format!("{full} {}", location.local.display())));
            }
            io::ErrorKind::InvalidData => return Err(FetchError::Failed(why.to_string())),
            _ => {}
        }
        let Some(wait) = budget.after(Failure::Broken, None) else {
            return Err(FetchError::Failed(format!("the archive breaks off: {why}")));
        };
        warning(format_args!("cache {}: the archive breaks off: {why}. Retrying...", location.key));
        wait_before_retry(wait);
    }
}

/// Whether the copy on this machine is not older than the object.
fn is_current(location: &CacheLocation, stamp: Option<SystemTime>) -> bool {
    let own = location.local.symlink_metadata().and_then(|metadata| metadata.modified()).ok();
    own.zip(stamp).is_some_and(|(own, stamp)| own >= stamp)
}

/// Keeps what comes from the object store, if it is an archive. Errors: `InvalidData` if it is none.
fn fetch(
    location: &CacheLocation,
    answer: Incoming,
    stamp: Option<SystemTime>,
    transfer_settings: &TransferSettings,
) -> io::Result<Origin> {
    let _lock = store::lock(&location.local)?;
    // Another slot may have fetched it while we waited.
    if is_current(location, stamp) {
        return Ok(Origin::Fetched);
    }
    let mut pending = PendingArchive::new(&location.local)?;
    let (total, etag) = (answer.length(), answer.header("ETag").map(str::to_owned));
    io::copy(
        &mut Meter::new(answer.into_reader(), "Downloading cache", transfer_settings.meter, total),
        &mut pending.file,
    )?;
    if !looks_like_cache(&pending.file)? {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what the store answers is no archive"));
    }
    if let Some(stamp) = stamp {
        pending.file.set_modified(stamp)?;
    }
    pending.commit(&location.key)?;
    if let Some(etag) = etag {
        store::set_etag(&location.local, &etag);
    }
    Ok(Origin::Fetched)
}

/// A request without a body; asked again when the store or the way there fails.
pub fn send_request(
    transfer_settings: &TransferSettings,
    method: Method,
    url: &str,
    headers: &[(String, String)],
) -> Result<Incoming, String> {
    let timeouts = Timeouts { total: transfer_settings.timeout, response: Duration::from_secs(30) };
    let transfer = Transfer::new(url, &transfer_settings.tls, &transfer_settings.user_agent, timeouts)
        .map_err(|why| why.to_string())?;
    let mut budget = RetryBudget::new(RETRY_TIMEOUT);
    loop {
        let outcome = transfer.send(method, url, headers, Outgoing::Nothing);
        let (failure, asked) = match &outcome {
            Ok(answer) if !is_retryable(answer.status) => (None, None),
            Ok(answer) => (Some(Failure::Status(answer.status)), answer.asked_wait()),
            Err(_) => (Some(Failure::Broken), None),
        };
        match failure.and_then(|failure| budget.after(failure, asked)) {
            Some(wait) => wait_before_retry(wait),
            None => return outcome.map_err(|why| why.to_string()),
        }
    }
}

/// What an object store says of an error.
pub fn refusal(answer: Incoming) -> String {
    let line = match answer.header("Location").filter(|_| (300..400).contains(&answer.status)) {
        Some(location) => format!("{} to {}, which is not followed", answer.status_line(), origin(location)),
        None => answer.status_line(),
    };
    let text = answer.explanation();
    let parts = ["Code", "Message"].map(|name| element(&text, name).unwrap_or_default());
    format!("received: {line} {}", parts.join(" ")).trim_end().to_owned()
}
