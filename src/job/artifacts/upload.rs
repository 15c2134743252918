//! Uploads artifacts: an archive is sent while it is being created.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::{ArtifactServer, Upload, UploadFormat, UploadPlan, local_archive};
use crate::archive::entry::ArchiveEntry;
use crate::archive::root::{ArchiveRoot, FileKind};
use crate::archive::select::{SelectionRequest, select};
use crate::archive::stream::{PipeWriter, pipe};
use crate::archive::{self, ArchiveFormat, Written};
use crate::http::{Failure, HttpError, Incoming, Method, Outgoing, RetryBudget, Timeouts, Transfer, escape, origin};
use crate::job::transfer::{
    ARTIFACT_RETRY_TIMEOUT, Meter, bytes, error, fatal, heading, notes, wait_before_retry, warning,
};
use crate::job_id::JobId;
use crate::random;
use crate::token::Token;

/// Uploads all artifacts in order; stops at the first failure. Returns the exit status of the stage, and the number of
/// bytes that GitLab accepted.
pub fn run(plan: &UploadPlan) -> (i32, u64) {
    let root = match plan.project.open() {
        Ok(root) => root,
        Err(why) => return (fatal(why), 0),
    };
    let mut accepted = 0;
    for upload in &plan.uploads {
        heading("Uploading artifacts...");
        match upload_one(plan, upload, &root) {
            Ok(bytes) => accepted += bytes,
            Err(why) => return (fatal(format_args!("{} ({}): {why}", file_name(upload), upload.kind)), accepted),
        }
    }
    (0, accepted)
}

/// Uploads one artifact; returns the number of bytes that GitLab accepted.
fn upload_one(plan: &UploadPlan, upload: &Upload, root: &ArchiveRoot) -> Result<u64, String> {
    let request =
        SelectionRequest { paths: upload.paths.clone(), exclude: upload.exclude.clone(), untracked: upload.untracked };
    let mut selection = select(root, &request);
    notes(&selection.notes);
    // Only an archive can contain directories and links.
    if matches!(upload.format, UploadFormat::Raw | UploadFormat::Archive(ArchiveFormat::Gzip)) {
        selection.entries.retain(|entry| entry.kind != FileKind::Directory);
    }
    if selection.entries.is_empty() {
        error("No files to upload");
        return Ok(0);
    }
    if let (Some(statement), UploadFormat::Archive(ArchiveFormat::Zip)) = (&plan.statement, upload.format) {
        match statement.write(root, &selection.entries, &upload.name) {
            Ok(entry) => {
                selection.entries.push(entry);
                selection.entries.sort_unstable();
                selection.entries.dedup();
            }
            Err(why) => warning(format_args!("cannot write the provenance statement: {why}")),
        }
    }
    let is_one_file = matches!(&selection.entries[..], [ArchiveEntry { kind: FileKind::File, .. }]);
    if upload.format == UploadFormat::Raw && !is_one_file {
        return Err(format!("format raw needs exactly one file, but {} were found", selection.entries.len()));
    }
    match &plan.server.directory {
        Some(directory) => write_local(plan, upload, root, &selection.entries, directory),
        None => send(plan, upload, root, &selection.entries),
    }
}

/// Writes an archive to the local artifacts directory (`mayfly exec`).
fn write_local(
    plan: &UploadPlan,
    upload: &Upload,
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    directory: &Path,
) -> Result<u64, String> {
    let path = local_archive(directory, &plan.job, &upload.kind);
    let failed = |why: io::Error| format!("{}: {why}", path.display());
    let UploadFormat::Archive(format) = upload.format else {
        return Err("format raw needs a server".to_owned());
    };
    fs::create_dir_all(path.parent().unwrap_or(directory)).map_err(failed)?;
    let mut sink = BufWriter::with_capacity(256 * 1024, File::create(&path).map_err(failed)?);
    let written = archive::write(root, entries, format, plan.level, &mut sink).map_err(failed)?;
    sink.flush().map_err(failed)?;
    print_warnings(&written);
    Ok(written.bytes)
}

/// Retries until GitLab accepts or refuses the upload.
fn send(plan: &UploadPlan, upload: &Upload, root: &ArchiveRoot, entries: &[ArchiveEntry]) -> Result<u64, String> {
    let (mut server, mut budget) = (plan.server.clone(), RetryBudget::new(ARTIFACT_RETRY_TIMEOUT));
    let sent = Cell::new(0);
    loop {
        let (line, wait) = match attempt(plan, &server, upload, root, entries, &sent) {
            Ok(response) => {
                let line = describe(upload, &response, plan);
                match classify(&response, &server) {
                    UploadVerdict::Accepted => {
                        println!("{line}");
                        return Ok(sent.get());
                    }
                    UploadVerdict::Refused(why) => {
                        error(line);
                        return Err(why.to_owned());
                    }
                    UploadVerdict::Moved(api) => {
                        server.api = api;
                        let wait = budget.after(Failure::Status(response.status), None);
                        (line, wait.map(|_| Duration::ZERO))
                    }
                    UploadVerdict::Retry => {
                        let wait = budget.after(Failure::Status(response.status), response.requested_delay());
                        (format!("{line} {}", first_line(&response.explanation())), wait)
                    }
                }
            }
            Err(HttpError::Configuration(why)) => return Err(why),
            Err(why) => {
                let line = format!("Uploading artifacts as {:?} to coordinator... error: {why}", upload.kind);
                (line, budget.after(Failure::Broken, None))
            }
        };
        let Some(wait) = wait else {
            error(line);
            return Err("GitLab did not accept the upload after all retries".to_owned());
        };
        warning(format_args!("{} Retrying...", line.trim_end()));
        wait_before_retry(wait);
    }
}

/// The first line of a server's explanation, for the log.
fn first_line(explanation: &str) -> String {
    const MAX_LENGTH: usize = 200;
    explanation.lines().next().unwrap_or_default().chars().take(MAX_LENGTH).collect()
}

/// What follows from the response to an upload.
enum UploadVerdict {
    Accepted,
    /// GitLab refuses the upload, for this reason.
    Refused(&'static str),
    /// Repeat the upload at this base URL.
    Moved(String),
    Retry,
}

fn classify(response: &Incoming, server: &ArtifactServer) -> UploadVerdict {
    match response.status {
        201 => UploadVerdict::Accepted,
        401 | 403 => UploadVerdict::Refused("permission denied"),
        413 => UploadVerdict::Refused(
            "too large for this GitLab; see the maximum artifacts size of the project or instance",
        ),
        301 | 302 | 307 | 308 => match response.header("Location").map(|location| moved_api(&server.api, location)) {
            Some(Some(api)) => UploadVerdict::Moved(api),
            Some(None) => UploadVerdict::Refused(
                "redirected to another host, which must not get the token; correct the runner's `url`",
            ),
            None => UploadVerdict::Retry,
        },
        _ => UploadVerdict::Retry,
    }
}

/// The base URL of the API after a redirect; `None` if it leads to another host or away from https.
fn moved_api(api: &str, location: &str) -> Option<String> {
    let (from, to) = (origin(api), origin(location));
    let host = |origin: &str| {
        let authority = origin.split_once("://")?.1.to_owned();
        let end = authority.rfind(':').filter(|_| !authority.ends_with(']')).unwrap_or(authority.len());
        Some(authority[..end].to_owned())
    };
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(api.to_owned());
    }
    let safe = to.starts_with("https://") || from.starts_with("http://");
    (safe && host(&from).is_some() && host(&from) == host(&to)).then(|| format!("{to}{}", &api[from.len()..]))
}

fn describe(upload: &Upload, response: &Incoming, plan: &UploadPlan) -> String {
    let correlation = response.header("X-Request-Id").unwrap_or_default();
    format!(
        "Uploading artifacts as {:?} to coordinator... {}  correlation_id={correlation} id={} token={}",
        upload.kind,
        response.status_line(),
        plan.job,
        Token::new(plan.token.as_str()).short(),
    )
}

/// Makes one attempt to upload.
fn attempt(
    plan: &UploadPlan,
    server: &ArtifactServer,
    upload: &Upload,
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    sent: &Cell<u64>,
) -> Result<Incoming, HttpError> {
    let timeouts = Timeouts { total: plan.timeout, response: plan.response_timeout };
    let transfer = Transfer::new(&server.api, &server.tls, &server.user_agent, timeouts)?;
    let boundary = format!("mayfly{:08x}{:08x}{:08x}", random::number(), random::number(), random::number());
    let url = url(server, &plan.job, upload);
    let headers = [
        ("JOB-TOKEN".to_owned(), plan.token.clone()),
        ("X-Request-Id".to_owned(), crate::coordinator::gitlab::request_id()),
        ("Content-Type".to_owned(), format!("multipart/form-data; boundary={boundary}")),
    ];
    let (head, tail) = (part_head(&boundary, &file_name(upload)), format!("\r\n--{boundary}--\r\n"));
    let post = |content: &mut dyn Read| {
        let mut content = Meter::new(content, "Uploading artifacts", plan.meter, None);
        let mut body = head.as_bytes().chain(&mut content).chain(tail.as_bytes());
        let response = transfer.send(Method::Post, &url, &headers, Outgoing::Stream(&mut body));
        sent.set(content.done());
        response
    };
    match upload.format {
        UploadFormat::Raw => {
            let unreadable = |why: io::Error| HttpError::Transport(format!("{}: {why}", entries[0].path.display()));
            let (file, stat) = root.open_file(&entries[0].path).map_err(unreadable)?;
            post(&mut File::take(file, stat.st_size as u64))
        }
        UploadFormat::Archive(format) => thread::scope(|scope| {
            let (sink, mut source) = pipe();
            let packer = scope.spawn(move || pack(root, entries, format, plan, sink));
            let response = post(&mut source);
            // Stops a thread that still writes the archive.
            drop(source);
            match packer.join() {
                Ok(Ok(written)) if response.as_ref().is_ok_and(|response| response.status == 201) => {
                    print_warnings(&written)
                }
                _ => {}
            }
            response
        }),
    }
}

fn pack(
    root: &ArchiveRoot,
    entries: &[ArchiveEntry],
    format: ArchiveFormat,
    plan: &UploadPlan,
    mut sink: PipeWriter,
) -> io::Result<Written> {
    match archive::write(root, entries, format, plan.level, &mut sink) {
        Ok(written) => sink.end().map(|()| written),
        Err(why) => {
            sink.fail(io::Error::new(why.kind(), why.to_string()));
            Err(why)
        }
    }
}

fn print_warnings(written: &Written) {
    written.warnings.iter().for_each(warning);
    log::debug!("archive written entries={} bytes={}", written.entries, bytes(written.bytes as f64));
}

fn file_name(upload: &Upload) -> String {
    let ending = match upload.format {
        UploadFormat::Archive(ArchiveFormat::Zip | ArchiveFormat::ZipZstd) => ".zip",
        UploadFormat::Archive(ArchiveFormat::Gzip) => ".gz",
        UploadFormat::Archive(ArchiveFormat::TarZstd) => ".tar.zst",
        UploadFormat::Raw => "",
    };
    format!("{}{ending}", upload.name)
}

/// The multipart header before the content.
fn part_head(boundary: &str, name: &str) -> String {
    let name = name.replace('\\', "\\\\").replace('"', "\\\"").replace('\r', "%0D").replace('\n', "%0A");
    format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
}

fn url(server: &ArtifactServer, job: &JobId, upload: &Upload) -> String {
    let format = match upload.format {
        UploadFormat::Archive(ArchiveFormat::Zip) => "zip",
        UploadFormat::Archive(ArchiveFormat::ZipZstd) => "zipzstd",
        UploadFormat::Archive(ArchiveFormat::Gzip) => "gzip",
        UploadFormat::Archive(ArchiveFormat::TarZstd) => "tarzstd",
        UploadFormat::Raw => "raw",
    };
    let mut url = format!("{}/jobs/{job}/artifacts?artifact_format={format}", server.api);
    for (key, value) in [("artifact_type", &upload.kind), ("expire_in", &upload.expire_in)] {
        if !value.is_empty() {
            let _ = write!(url, "&{key}={}", escape(value, b""));
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(format: UploadFormat) -> Upload {
        Upload {
            name: "a \"b\"".to_owned(),
            kind: "junit".to_owned(),
            format,
            expire_in: "1 week & 2 days".to_owned(),
            paths: Vec::new(),
            exclude: Vec::new(),
            untracked: false,
        }
    }

    #[test]
    fn the_url_describes_the_file() {
        let server = ArtifactServer {
            api: "http://h/api/v4".to_owned(),
            tls: Default::default(),
            user_agent: String::new(),
            directory: None,
        };
        assert_eq!(
            url(&server, &7.into(), &upload(UploadFormat::Archive(ArchiveFormat::Gzip))),
            "http://h/api/v4/jobs/7/artifacts?artifact_format=gzip&artifact_type=junit&\
             expire_in=1%20week%20%26%202%20days"
        );
        assert!(part_head("B", &file_name(&upload(UploadFormat::Raw))).contains("filename=\"a \\\"b\\\"\""));
    }

    #[test]
    fn follows_redirects_on_the_same_host_only() {
        let api = "http://gitlab.test:8080/api/v4";
        assert_eq!(moved_api(api, "https://gitlab.test/x").as_deref(), Some("https://gitlab.test/api/v4"));
        assert_eq!(moved_api(api, "/elsewhere").as_deref(), Some(api));
        assert_eq!(moved_api(api, "https://evil.test/api/v4"), None);
        assert_eq!(moved_api(api, "//evil.test/api/v4"), None);
        assert_eq!(moved_api("https://gitlab.test/api/v4", "http://gitlab.test/"), None);
    }
}
