//! Restoring caches before a job.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use super::store::{self, Draft};
use super::{Copy, Remote, Restore, RestorePlan, Wire};
use crate::archive::root::Root;
use crate::archive::unpack::unpack;
use crate::http::{Incoming, Method, Outgoing, Patience, Transfer, http_date};
use crate::instance::aws::xml::element;
use crate::job::transfer::{Meter, heading, rest, setback, warning};

const TRIES: u32 = 3;

/// Restores each cache from the first place that has it. Returns the exit status of the stage, which is always good.
pub fn run(plan: &RestorePlan) -> i32 {
    plan.warnings.iter().for_each(warning);
    let root = match Root::open(&plan.project) {
        Ok(root) => root,
        Err(why) => {
            warning(format_args!("{}: {why}", plan.project.display()));
            return 0;
        }
    };
    for cache in &plan.caches {
        match cache {
            Restore::Skip(why) => println!("{why}"),
            Restore::FirstOf(copies) => {
                _ = copies.iter().any(|copy| restore(copy, &plan.wire, &root));
            }
        }
    }
    0
}

fn restore(copy: &Copy, wire: &Wire, root: &Root) -> bool {
    heading(format_args!("Checking cache for {}...", copy.key));
    let restored = obtain(copy, wire).and_then(|archive| {
        let unpacked = unpack(&archive, root).map_err(|why| format!("the archive cannot be unpacked: {why}"))?;
        unpacked.warnings.iter().for_each(warning);
        Ok(())
    });
    match restored {
        Ok(()) => heading("Successfully extracted cache"),
        Err(ref why) => {
            warning(why);
            setback("Failed to extract cache");
        }
    }
    restored.is_ok()
}

/// The archive, fetched if the object store has a newer one.
fn obtain(copy: &Copy, wire: &Wire) -> Result<File, String> {
    match &copy.remote {
        Some(remote) => refresh(copy, remote, wire)?,
        None => println!(
            "No URL provided, cache will not be downloaded from shared cache server. Instead a local version of cache \
             will be extracted."
        ),
    }
    store::open(&copy.local).map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => "file does not exist".to_owned(),
        _ => format!("{}: {why}", copy.local.display()),
    })
}

fn refresh(copy: &Copy, remote: &Remote, wire: &Wire) -> Result<(), String> {
    let answer = ask(wire, Method::Get, &remote.get)?;
    match answer.status {
        200 => {}
        404 => return Err("file does not exist".to_owned()),
        _ => return Err(refusal(answer)),
    }
    let stamp = answer.header("Last-Modified").and_then(http_date);
    let own = copy.local.symlink_metadata().and_then(|metadata| metadata.modified()).ok();
    if own.zip(stamp).is_some_and(|(own, stamp)| own >= stamp) {
        println!("cache.zip is up to date");
        return Ok(());
    }
    let stored = store(copy, answer, stamp, wire);
    stored.map_err(|why| format!("the archive breaks off: {why}"))?;
    println!("Downloading cache from {}", crate::http::origin(&remote.get));
    Ok(())
}

fn store(copy: &Copy, answer: Incoming, stamp: Option<SystemTime>, wire: &Wire) -> io::Result<()> {
    let _lock = store::lock(&copy.local)?;
    let mut draft = Draft::new(&copy.local)?;
    let total = answer.length();
    io::copy(&mut Meter::new(answer.into_reader(), "Downloading cache", wire.meter, total), &mut draft.file)?;
    if let Some(stamp) = stamp {
        draft.file.set_modified(stamp)?;
    }
    draft.keep(&copy.key)
}

/// A request without a body; asked again when the store or the way there fails.
pub fn ask(wire: &Wire, method: Method, url: &str) -> Result<Incoming, String> {
    let patience = Patience { total: wire.timeout, answer: Duration::from_secs(30) };
    let transfer = Transfer::new(url, &wire.tls, &wire.user_agent, patience).map_err(|why| why.to_string())?;
    let mut tries = 0;
    loop {
        tries += 1;
        let answer = transfer.send(method, url, &[], Outgoing::Nothing);
        match answer {
            Ok(answer) if answer.status < 500 || tries == TRIES => return Ok(answer),
            Err(why) if tries == TRIES => return Err(why.to_string()),
            _ => rest(Duration::from_secs(1)),
        }
    }
}

/// What an object store says of an error.
pub fn refusal(answer: Incoming) -> String {
    let line = answer.status_line();
    let text = answer.explanation();
    let parts = ["Code", "Message"].map(|name| element(&text, name).unwrap_or_default());
    format!("received: {line} {}", parts.join(" ")).trim_end().to_owned()
}
