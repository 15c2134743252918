//! Downloads the artifacts of other jobs and unpacks them into the project directory.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;
use std::time::Duration;

use super::{ArtifactServer, Dependency, DownloadPlan, local_archive};
use crate::archive::unpack::unpack;
use crate::http::tls::TlsFiles;
use crate::http::{Failure, HttpError, Incoming, Method, Outgoing, RetryBudget, Timeouts, Transfer, origin, resolve};
use crate::job::transfer::{
    ARTIFACT_RETRY_TIMEOUT, Meter, error, fatal, heading, scratch_file, wait_before_retry, warning,
};
use crate::token::Token;

const MAX_REDIRECTS: u32 = 5;
const TIMEOUTS: Timeouts = Timeouts { total: Duration::from_secs(3600), response: Duration::from_secs(600) };

/// The server that sends an archive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ArchiveSource {
    /// The object store, to which GitLab redirects (`FF_USE_DIRECT_DOWNLOAD`).
    ObjectStore,
    /// GitLab, which proxies the archive.
    GitLab,
}

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
    let mut budget = RetryBudget::new(ARTIFACT_RETRY_TIMEOUT);
    loop {
        // Only the first attempt downloads from the object store: if the store is unreachable, GitLab proxies the file.
        let source = if plan.direct && budget.is_first() { ArchiveSource::ObjectStore } else { ArchiveSource::GitLab };
        let failed = match attempt(plan, dependency, source) {
            Ok(file) => return Ok(file),
            Err(DownloadError::Final(why)) => return Err(why),
            Err(DownloadError::Temporary(failed)) => failed,
        };
        let Some(wait) = budget.after(failed.failure, failed.requested_delay) else {
            error(failed.message);
            return Err("the download failed after all retries".to_owned());
        };
        warning(format_args!("{}. Retrying...", failed.message));
        wait_before_retry(wait);
    }
}

/// Why an attempt to download an archive failed.
enum DownloadError {
    /// Another attempt would fail for the same reason.
    Final(String),
    Temporary(FailedAttempt),
}

/// An attempt after which a retry is useful.
struct FailedAttempt {
    message: String,
    failure: Failure,
    /// The delay that the server requests.
    requested_delay: Option<Duration>,
}

impl FailedAttempt {
    /// An attempt without a complete response.
    fn broken(message: String) -> Self {
        Self { message, failure: Failure::Broken, requested_delay: None }
    }
}

/// Makes one attempt to download an archive; prints the response.
fn attempt(plan: &DownloadPlan, dependency: &Dependency, source: ArchiveSource) -> Result<File, DownloadError> {
    let response = request(&plan.server, dependency, source).map_err(|why| match why {
        HttpError::Configuration(why) => DownloadError::Final(why),
        why => DownloadError::Temporary(FailedAttempt::broken(why.to_string())),
    })?;
    let line = describe(&response, plan, dependency);
    match response.status {
        200 => {
            let file = store(response, &plan.temporary, plan.meter).map_err(|why| incomplete(plan, &why))?;
            println!("{line}");
            Ok(file)
        }
        401 | 403 => {
            error(line);
            Err(DownloadError::Final("permission denied".to_owned()))
        }
        404 => {
            error("Downloading artifacts from coordinator... not found");
            Err(DownloadError::Final("file does not exist: the artifacts expired, or there are none".to_owned()))
        }
        status => {
            let (message, requested_delay) = match status {
                301..=303 | 307 | 308 => (format!("more than {MAX_REDIRECTS} redirects; {line}"), None),
                _ => (line, response.requested_delay()),
            };
            Err(DownloadError::Temporary(FailedAttempt { message, failure: Failure::Status(status), requested_delay }))
        }
    }
}

/// The error of an archive that could not be stored completely.
fn incomplete(plan: &DownloadPlan, why: &io::Error) -> DownloadError {
    if why.kind() == io::ErrorKind::StorageFull {
        let directory = plan.project.seen.display();
        return DownloadError::Final(format!("the disk is full; no space for the archive beside {directory}"));
    }
    DownloadError::Temporary(FailedAttempt::broken(format!("the archive is incomplete: {why}")))
}

/// Sends the request to GitLab and follows redirects. The token is never sent to another server.
fn request(server: &ArtifactServer, dependency: &Dependency, source: ArchiveSource) -> Result<Incoming, HttpError> {
    let query = if source == ArchiveSource::ObjectStore { "?direct_download=true" } else { "" };
    let mut url = format!("{}/jobs/{}/artifacts{query}", server.api, dependency.id);
    let id = crate::coordinator::gitlab::request_id();
    let mut headers = vec![("X-Request-Id".to_owned(), id), ("JOB-TOKEN".to_owned(), dependency.token.clone())];
    let mut redirects = 0;
    loop {
        let tls = files_for(server, &url);
        let response = Transfer::new(&url, &tls, &server.user_agent, TIMEOUTS)?.send(
            Method::Get,
            &url,
            &headers,
            Outgoing::Nothing,
        )?;
        let location = response.header("Location").filter(|_| matches!(response.status, 301 | 302 | 303 | 307 | 308));
        let Some(location) = location.filter(|_| redirects < MAX_REDIRECTS) else {
            return Ok(response);
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

fn store(response: Incoming, directory: &Path, meter: Option<Duration>) -> io::Result<File> {
    let mut file = scratch_file(directory)?;
    let total = response.length();
    let mut content = Meter::new(response.into_reader(), "Downloading artifacts", meter, total);
    io::copy(&mut content, &mut file)?;
    file.rewind()?;
    Ok(file)
}

fn describe(response: &Incoming, plan: &DownloadPlan, dependency: &Dependency) -> String {
    let what = if response.status == 200 { "ok" } else { "error" };
    format!(
        "Downloading artifacts from coordinator... {what}  host={} id={} responseStatus={} token={}",
        origin(&plan.server.api).split_once("://").map_or("", |(_, host)| host),
        dependency.id,
        response.status_line(),
        Token::new(dependency.token.as_str()).short(),
    )
}
