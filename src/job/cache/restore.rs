//! Restoring caches before a job.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use super::store::{self, Draft};
use super::{Copy, Remote, Restore, RestorePlan, Wire};
use crate::archive::root::Root;
use crate::archive::select::{Request, select};
use crate::archive::unpack::{Fault, looks_like_cache, unpack};
use crate::http::{
    Failure, Incoming, Method, Outgoing, RetryBudget, Timeouts, Transfer, http_date, is_retryable, origin,
};
use crate::instance::aws::xml::element;
use crate::job::transfer::{Meter, heading, rest, setback, warning};

/// How long a request to the object store is retried: a cache only saves time.
pub const RETRIED_FOR: Duration = Duration::from_secs(15);

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
            Restore::Skip(why) => println!("{why}"),
            Restore::FirstOf { copies, clear } => {
                _ = copies.iter().any(|copy| restore(copy, clear, &plan.wire, &root));
            }
        }
    }
    store::tidy(&plan.store, plan.limits);
    0
}

fn restore(copy: &Copy, clear: &[String], wire: &Wire, root: &Root) -> bool {
    heading(format_args!("Checking cache for {}...", copy.key));
    let restored = extract(copy, clear, wire, root);
    match &restored {
        Ok(()) => heading("Successfully extracted cache"),
        Err(why) => {
            warning(format_args!("cache {}: {why}", copy.key));
            setback("Failed to extract cache");
        }
    }
    restored.is_ok()
}

/// Unpacks an archive. One that is broken helps nobody: it goes, and where the object store may have a good one, that is
/// fetched.
fn extract(copy: &Copy, clear: &[String], wire: &Wire, root: &Root) -> Result<(), String> {
    let mut may_fetch = copy.remote.is_some();
    loop {
        let (archive, origin) = obtain(copy, wire)?;
        let why = match unpack(&archive, root) {
            Ok(unpacked) => {
                unpacked.warnings.iter().for_each(warning);
                return Ok(());
            }
            Err(why) => why,
        };
        if why.fault == Fault::Archive {
            store::forget(&copy.local, &archive);
            if may_fetch && origin == Origin::Kept {
                warning(format_args!(
                    "cache {}: the copy on this machine is broken ({why}); it is fetched again",
                    copy.key
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
    let request = Request { paths: paths.to_vec(), ..Request::default() };
    for entry in select(root, &request).entries.iter().rev() {
        // A directory may hold what the cache has nothing to do with.
        let _ = root.remove(&entry.path, entry.kind);
    }
}

/// Where an archive comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This machine had it.
    Kept,
    /// It has just come from the object store.
    Fetched,
}

/// Why there is no archive from the object store.
enum Missed {
    /// It has none.
    Missing,
    /// This.
    Trouble(String),
}

/// The archive, fetched if the object store has a newer one. While the store is in trouble, the copy on this machine is
/// better than none.
fn obtain(copy: &Copy, wire: &Wire) -> Result<(File, Origin), String> {
    let missing = || "file does not exist".to_owned();
    let origin = match copy.remote.as_ref().map(|remote| refresh(copy, remote, wire)) {
        Some(Ok(origin)) => origin,
        Some(Err(Missed::Missing)) => return Err(missing()),
        Some(Err(Missed::Trouble(why))) if copy.local.is_file() => {
            warning(format_args!("cache {}: {why}; the copy on this machine is used", copy.key));
            Origin::Kept
        }
        Some(Err(Missed::Trouble(why))) => return Err(why),
        None => {
            println!(
                "No URL provided, cache will not be downloaded from shared cache server. Instead a local version of \
                 cache will be extracted."
            );
            Origin::Kept
        }
    };
    let archive = store::open(&copy.local).map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => missing(),
        _ => format!("{}: {why}", copy.local.display()),
    })?;
    Ok((archive, origin))
}

fn refresh(copy: &Copy, remote: &Remote, wire: &Wire) -> Result<Origin, Missed> {
    let known: Vec<_> = store::etag(&copy.local).map(|etag| ("If-None-Match".to_owned(), etag)).into_iter().collect();
    let mut budget = RetryBudget::new(RETRIED_FOR);
    loop {
        let answer = ask(wire, Method::Get, &remote.get, &known).map_err(Missed::Trouble)?;
        let stamp = answer.header("Last-Modified").and_then(http_date);
        match answer.status {
            200 if !is_current(copy, stamp) => {}
            200 | 304 => {
                println!("cache.zip is up to date");
                return Ok(Origin::Kept);
            }
            404 => return Err(Missed::Missing),
            _ => return Err(Missed::Trouble(refusal(answer))),
        }
        let why = match fetch(copy, answer, stamp, wire) {
            Ok(fetched) => {
                println!("Downloading cache from {}", origin(&remote.get));
                return Ok(fetched);
            }
            Err(why) => why,
        };
        match why.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let full = "the disk is full: the cache does not fit into";
                return Err(Missed::Trouble(format!("{full} {}", copy.local.display())));
            }
            io::ErrorKind::InvalidData => return Err(Missed::Trouble(why.to_string())),
            _ => {}
        }
        let Some(wait) = budget.after(Failure::Broken, None) else {
            return Err(Missed::Trouble(format!("the archive breaks off: {why}")));
        };
        warning(format_args!("cache {}: the archive breaks off: {why}. Retrying...", copy.key));
        rest(wait);
    }
}

/// Whether the copy on this machine is not older than the object.
fn is_current(copy: &Copy, stamp: Option<SystemTime>) -> bool {
    let own = copy.local.symlink_metadata().and_then(|metadata| metadata.modified()).ok();
    own.zip(stamp).is_some_and(|(own, stamp)| own >= stamp)
}

/// Keeps what comes from the object store, if it is an archive. Errors: `InvalidData` if it is none.
fn fetch(copy: &Copy, answer: Incoming, stamp: Option<SystemTime>, wire: &Wire) -> io::Result<Origin> {
    let _lock = store::lock(&copy.local)?;
    // Another slot may have fetched it while we waited.
    if is_current(copy, stamp) {
        return Ok(Origin::Fetched);
    }
    let mut draft = Draft::new(&copy.local)?;
    let (total, etag) = (answer.length(), answer.header("ETag").map(str::to_owned));
    io::copy(&mut Meter::new(answer.into_reader(), "Downloading cache", wire.meter, total), &mut draft.file)?;
    if !looks_like_cache(&draft.file)? {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what the store answers is no archive"));
    }
    if let Some(stamp) = stamp {
        draft.file.set_modified(stamp)?;
    }
    draft.keep(&copy.key)?;
    if let Some(etag) = etag {
        store::set_etag(&copy.local, &etag);
    }
    Ok(Origin::Fetched)
}

/// A request without a body; asked again when the store or the way there fails.
pub fn ask(wire: &Wire, method: Method, url: &str, headers: &[(String, String)]) -> Result<Incoming, String> {
    let timeouts = Timeouts { total: wire.timeout, response: Duration::from_secs(30) };
    let transfer = Transfer::new(url, &wire.tls, &wire.user_agent, timeouts).map_err(|why| why.to_string())?;
    let mut budget = RetryBudget::new(RETRIED_FOR);
    loop {
        let outcome = transfer.send(method, url, headers, Outgoing::Nothing);
        let (failure, asked) = match &outcome {
            Ok(answer) if !is_retryable(answer.status) => (None, None),
            Ok(answer) => (Some(Failure::Status(answer.status)), answer.asked_wait()),
            Err(_) => (Some(Failure::Broken), None),
        };
        match failure.and_then(|failure| budget.after(failure, asked)) {
            Some(wait) => rest(wait),
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
