//! Downloads the artifacts of other jobs and unpacks them into the project directory.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;
use std::time::Duration;

use super::{ArtifactServer, Dependency, DownloadPlan, RETRY_TIMEOUT, local_archive};
use crate::archive::unpack::unpack;
use crate::http::tls::TlsFiles;
use crate::http::{Failure, HttpError, Incoming, Method, Outgoing, RetryBudget, Timeouts, Transfer, origin, resolve};
use crate::job::transfer::{Meter, error, fatal, heading, scratch_file, wait_before_retry, warning};
use crate::token::Token;

const REDIRECTS: u32 = 5;
const TIMEOUTS: Timeouts = Timeouts { total: Duration::from_secs(3600), response: Duration::from_secs(600) };

/// Downloads and unpacks all artifacts in order; stops at the first failure. Returns the exit status of the stage.
pub fn run(plan: &DownloadPlan) -> i32 {
    let root = match plan.project.open() {
        Ok(root) => root,
        Err(why) => return fatal(why),
    };
    for dependency in &plan.dependencies {
        heading(format_args!("Downloading artifacts for {} ({})...", dependency.name, dependency.id));
        let archive = match &plan.server.directory {
            Some(directory) => open_local(directory, dependency),
            None => fetch(plan, dependency),
        };
        let archive = match archive {
            Ok(archive) => archive,
            Err(why) => return fatal(format_args!("the artifacts of {} ({}): {why}", dependency.name, dependency.id)),
        };
        match unpack(&archive, &root) {
            Ok(unpacked) => {
                unpacked.warnings.iter().for_each(warning);
                println!("Extracted {} files and directories", unpacked.entries);
            }
            Err(why) => return fatal(format_args!("the artifacts of {} ({}): {why}", dependency.name, dependency.id)),
        }
    }
    0
}

/// Opens the archive in the local artifacts directory (`mayfly exec`).
fn open_local(directory: &Path, dependency: &Dependency) -> Result<File, String> {
    let path = local_archive(directory, &dependency.id, "archive");
    File::open(&path).map_err(|why| format!("{}: {why}", path.display()))
}

/// Downloads the whole archive into an unnamed file.
fn fetch(plan: &DownloadPlan, dependency: &Dependency) -> Result<File, String> {
    let mut tries = RetryBudget::new(RETRY_TIMEOUT);
    loop {
        // Only the first attempt downloads from the object store: if the store is unreachable, GitLab proxies the file.
        let direct = plan.direct && tries.is_first();
        let (trouble, wait) = match request(&plan.server, dependency, direct) {
            Ok(answer) => {
                let line = describe(&answer, plan, dependency);
                match answer.status {
                    200 => match store(answer, &plan.temporary, plan.meter) {
                        Ok(file) => {
                            println!("{line}");
                            return Ok(file);
                        }
                        Err(why) if why.kind() == io::ErrorKind::StorageFull => {
                            return Err(format!(
                                "the disk is full; no space for the archive beside {}",
                                plan.project.seen.display()
                            ));
                        }
                        Err(why) => {
                            let wait = tries.after(Failure::Broken, None);
                            (format!("the archive is incomplete: {why}"), wait)
                        }
                    },
                    401 | 403 => {
                        error(line);
                        return Err("permission denied".to_owned());
                    }
                    404 => {
                        error("Downloading artifacts from coordinator... not found");
                        return Err("file does not exist: the artifacts expired, or there are none".to_owned());
                    }
                    status @ (301..=303 | 307 | 308) => {
                        let line = format!("more than {REDIRECTS} redirects; {line}");
                        (line, tries.after(Failure::Status(status), None))
                    }
                    status => (line, tries.after(Failure::Status(status), answer.asked_wait())),
                }
            }
            Err(HttpError::Configuration(why)) => return Err(why),
            Err(why) => (why.to_string(), tries.after(Failure::Broken, None)),
        };
        let Some(wait) = wait else {
            error(trouble);
            return Err("the download failed after all retries".to_owned());
        };
        warning(format_args!("{trouble}. Retrying..."));
        wait_before_retry(wait);
    }
}

/// Sends the request to GitLab and follows redirects. The token is never sent to another server.
fn request(server: &ArtifactServer, dependency: &Dependency, direct: bool) -> Result<Incoming, HttpError> {
    let direct = if direct { "?direct_download=true" } else { "" };
    let mut url = format!("{}/jobs/{}/artifacts{direct}", server.api, dependency.id);
    let id = crate::coordinator::gitlab::request_id();
    let mut headers = vec![("X-Request-Id".to_owned(), id), ("JOB-TOKEN".to_owned(), dependency.token.clone())];
    let mut redirects = 0;
    loop {
        let tls = files_for(server, &url);
        let answer = Transfer::new(&url, &tls, &server.user_agent, TIMEOUTS)?.send(
            Method::Get,
            &url,
            &headers,
            Outgoing::Nothing,
        )?;
        let location = answer.header("Location").filter(|_| matches!(answer.status, 301 | 302 | 303 | 307 | 308));
        let Some(location) = location.filter(|_| redirects < REDIRECTS) else {
            return Ok(answer);
        };
        redirects += 1;
        url = resolve(&url, location)?;
        if !server.is_at(&url) {
            headers.clear();
        }
    }
}

/// The TLS files for a request to `url`: the client certificate is sent only to GitLab, not to an object store.
fn files_for(server: &ArtifactServer, url: &str) -> TlsFiles {
    match server.is_at(url) {
        true => server.tls.clone(),
        false => server.tls.authorities(),
    }
}

fn store(answer: Incoming, directory: &Path, meter: Option<Duration>) -> io::Result<File> {
    let mut file = scratch_file(directory)?;
    let total = answer.length();
    let mut content = Meter::new(answer.into_reader(), "Downloading artifacts", meter, total);
    io::copy(&mut content, &mut file)?;
    file.rewind()?;
    Ok(file)
}

fn describe(answer: &Incoming, plan: &DownloadPlan, dependency: &Dependency) -> String {
    let what = if answer.status == 200 { "ok" } else { "error" };
    format!(
        "Downloading artifacts from coordinator... {what}  host={} id={} responseStatus={} token={}",
        origin(&plan.server.api).split_once("://").map_or("", |(_, host)| host),
        dependency.id,
        answer.status_line(),
        Token::new(dependency.token.as_str()).short(),
    )
}
