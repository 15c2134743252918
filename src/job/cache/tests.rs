//! Tests of caches between jobs, and of failures.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::SystemTime;

use super::*;
use crate::job::testing::{PreparedResponse, Server, response};

mod local_store;

struct Project {
    temp: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("project/vendor")).unwrap();
        fs::write(temp.path().join("project/vendor/lib"), "library").unwrap();
        // Older than any archive: a file with the same time counts as newer.
        for path in ["project/vendor/lib", "project/vendor"] {
            fs::File::open(temp.path().join(path)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        Self { temp }
    }

    fn place(&self) -> crate::job::transfer::ProjectDir {
        crate::job::transfer::ProjectDir {
            builds: self.temp.path().to_owned(),
            directory: self.path(),
            seen: self.path(),
        }
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join("project")
    }

    fn store(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    fn location(&self, key: &str, server: Option<&Server>) -> CacheLocation {
        let remote = server.map(|server| PresignedUrls {
            get: format!("{}/get", server.url),
            head: format!("{}/head", server.url),
            put: format!("{}/put", server.url),
            put_headers: vec![("x-amz-meta-cachekey".to_owned(), key.to_owned())],
            max_size: None,
        });
        CacheLocation { key: key.to_owned(), local: self.store().join(key).join("cache.zip"), remote }
    }

    fn save(&self, key: &str, server: Option<&Server>, limits: StorageLimits) -> i32 {
        save(&self.plan(key, server, limits))
    }

    fn plan(&self, key: &str, server: Option<&Server>, limits: StorageLimits) -> SavePlan {
        SavePlan {
            project: self.place(),
            warnings: Vec::new(),
            caches: vec![CacheSave::Files {
                location: self.location(key, server),
                paths: vec!["vendor".to_owned()],
                untracked: false,
                format: ArchiveFormat::Zip,
                level: CompressionLevel::Default,
                max_upload: None,
            }],
            transfer: transfer_settings(),
            limits,
            store: self.store(),
        }
    }

    fn restore(&self, keys: &[&str], server: Option<&Server>) -> i32 {
        self.restore_clearing(keys, server, &[])
    }

    fn restore_clearing(&self, keys: &[&str], server: Option<&Server>, clear: &[&str]) -> i32 {
        let locations = keys.iter().map(|key| self.location(key, server)).collect();
        let clear = clear.iter().map(|&path| path.to_owned()).collect();
        let caches = vec![CacheRestore::FirstOf { locations, clear }];
        restore(&RestorePlan {
            project: self.place(),
            warnings: Vec::new(),
            caches,
            transfer: transfer_settings(),
            limits: StorageLimits::default(),
            store: self.store(),
        })
    }

    /// Simulates a new checkout on the same machine.
    fn forget_files(&self) {
        fs::remove_dir_all(self.path().join("vendor")).unwrap();
    }

    fn library(&self) -> Option<String> {
        fs::read_to_string(self.path().join("vendor/lib")).ok()
    }

    fn archive(&self, key: &str) -> PathBuf {
        self.location(key, None).local
    }
}

fn transfer_settings() -> TransferSettings {
    let timeout = Duration::from_secs(10);
    TransferSettings { tls: TlsFiles::default(), user_agent: "mayfly".to_owned(), timeout, meter: None }
}

fn with_etag(body: &[u8], etag: &str) -> PreparedResponse {
    let headers = vec![("Last-Modified", NEW.to_owned()), ("ETag", etag.to_owned())];
    PreparedResponse { headers, ..response("200 OK", body) }
}

fn dated(body: &[u8], date: &str) -> PreparedResponse {
    PreparedResponse { headers: vec![("Last-Modified", date.to_owned())], ..response("200 OK", body) }
}

const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const NEW: &str = "Sun, 06 Nov 2044 08:49:37 GMT";

#[test]
fn the_next_job_restores_a_saved_cache() {
    let project = Project::new();
    assert_eq!(project.save("key", None, StorageLimits::default()), 0);
    let metadata = fs::read_to_string(project.store().join("key/metadata.json")).unwrap();
    assert_eq!(metadata, "{\"cachekey\":\"key\"}");
    project.forget_files();
    assert_eq!(project.restore(&["missing", "key"], None), 0);
    assert_eq!(project.library().as_deref(), Some("library"));
}

#[test]
fn does_not_pack_unchanged_files_again() {
    let project = Project::new();
    project.save("key", None, StorageLimits::default());
    let which = |project: &Project| fs::metadata(project.archive("key")).unwrap().ino();
    let first = which(&project);
    project.save("key", None, StorageLimits::default());
    assert_eq!(which(&project), first);
    fs::write(project.path().join("vendor/more"), "more").unwrap();
    project.save("key", None, StorageLimits::default());
    assert_ne!(which(&project), first, "also what is written in the same moment is packed");
}

#[test]
fn a_damaged_cache_is_a_miss() {
    let project = Project::new();
    project.save("key", None, StorageLimits::default());
    fs::write(project.archive("key"), "PK nonsense").unwrap();
    project.forget_files();
    assert_eq!(project.restore(&["key"], None), 0);
    assert_eq!(project.library(), None);
    assert!(!project.archive("key").exists(), "it helps nobody");
}

#[test]
fn replaces_a_damaged_copy_from_the_store() {
    let project = Project::new();
    project.save("key", None, StorageLimits::default());
    let packed = fs::read(project.archive("key")).unwrap();
    fs::write(project.archive("key"), &packed[..packed.len() / 2]).unwrap();
    project.forget_files();
    // The damaged copy looks newer than the object.
    let server = Server::start(vec![dated(b"", OLD), dated(&packed, OLD)]);
    assert_eq!(project.restore(&["key"], Some(&server)), 0);
    assert_eq!(project.library().as_deref(), Some("library"));
}

#[test]
fn removes_files_of_an_incomplete_extraction_on_request() {
    let project = Project::new();
    fs::write(project.path().join("vendor/more"), "more").unwrap();
    project.save("key", None, StorageLimits::default());
    // A bit in the content of the last file is flipped.
    let mut packed = fs::read(project.archive("key")).unwrap();
    let at = packed.windows(4).position(|window| window == b"more").unwrap();
    let at = at + packed[at + 4..].windows(4).position(|window| window == b"more").unwrap() + 4;
    packed[at] ^= 1;
    for (clear, left) in [(&[][..], true), (&["vendor/*"][..], false)] {
        fs::write(project.archive("key"), &packed).unwrap();
        project.forget_files();
        fs::write(project.path().join("source"), "stays").unwrap();
        assert_eq!(project.restore_clearing(&["key"], None, clear), 0);
        assert_eq!(project.library().is_some(), left);
        assert!(project.path().join("source").exists());
    }
}

#[test]
fn downloads_a_newer_archive_from_the_store() {
    let project = Project::new();
    project.save("key", None, StorageLimits::default());
    let packed = fs::read(project.archive("key")).unwrap();
    let other = Project::new();
    other.forget_files();
    let server = Server::start(vec![dated(&packed, OLD)]);
    assert_eq!(other.restore(&["key"], Some(&server)), 0);
    assert_eq!(other.library().as_deref(), Some("library"));
    assert_eq!(fs::metadata(other.archive("key")).unwrap().modified().unwrap(), crate::http::http_date(OLD).unwrap());

    // The next job on this machine downloads nothing: its copy is up to date.
    other.forget_files();
    let server = Server::start(vec![PreparedResponse { content_length: Some(9_999_999), ..dated(b"", OLD) }]);
    assert_eq!(other.restore(&["key"], Some(&server)), 0);
    assert_eq!(other.library().as_deref(), Some("library"));
}

#[test]
fn an_incomplete_archive_or_a_web_page_is_a_miss() {
    let project = Project::new();
    project.save("key", None, StorageLimits::default());
    let packed = fs::read(project.archive("key")).unwrap();
    let half = || PreparedResponse { content_length: Some(packed.len()), ..dated(&packed[..packed.len() / 2], NEW) };
    let other = Project::new();
    other.forget_files();
    let server = Server::start(vec![half(), half(), half()]);
    assert_eq!(other.restore(&["key"], Some(&server)), 0);
    assert_eq!(other.library(), None);
    assert_eq!(server.requests().len(), 3);
    for bad in [
        dated(b"<html>sign in</html>", NEW),
        response("403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"),
        response("404 Not Found", b""),
    ] {
        let other = Project::new();
        other.forget_files();
        let server = Server::start(vec![bad]);
        assert_eq!(other.restore(&["key"], Some(&server)), 0);
        assert_eq!(other.library(), None);
    }
}

#[test]
fn retries_an_incomplete_download() {
    let project = Project::new();
    project.save("key", None, StorageLimits::default());
    let packed = fs::read(project.archive("key")).unwrap();
    let half = PreparedResponse { content_length: Some(packed.len()), ..dated(&packed[..packed.len() / 2], NEW) };
    let other = Project::new();
    other.forget_files();
    let server = Server::start(vec![half, dated(&packed, NEW)]);
    assert_eq!(other.restore(&["key"], Some(&server)), 0);
    assert_eq!(other.library().as_deref(), Some("library"));
}

#[test]
fn uses_the_local_copy_if_the_store_fails() {
    let denied = || response("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>");
    for bad in [dated(b"<html>sign in</html>", NEW), denied()] {
        let project = Project::new();
        project.save("key", None, StorageLimits::default());
        project.forget_files();
        let server = Server::start(vec![bad]);
        assert_eq!(project.restore(&["key"], Some(&server)), 0);
        assert_eq!(project.library().as_deref(), Some("library"));
    }
}

#[test]
fn does_not_download_an_archive_with_the_same_etag() {
    let project = Project::new();
    let server = Server::start(vec![PreparedResponse {
        headers: vec![("ETag", "\"one\"".to_owned())],
        ..response("200 OK", b"")
    }]);
    assert_eq!(project.save("key", Some(&server), StorageLimits::default()), 0);
    project.forget_files();
    let server = Server::start(vec![response("304 Not Modified", b"")]);
    assert_eq!(project.restore(&["key"], Some(&server)), 0);
    assert_eq!(project.library().as_deref(), Some("library"));
    assert_eq!(server.requests()[0].header("if-none-match"), Some("\"one\""));

    // A newer one is downloaded, and its ETag is stored.
    let packed = fs::read(project.archive("key")).unwrap();
    for (known, body) in [("\"one\"", with_etag(&packed, "\"two\"")), ("\"two\"", response("304 Not Modified", b""))] {
        let server = Server::start(vec![body]);
        assert_eq!(project.restore(&["key"], Some(&server)), 0);
        assert_eq!(server.requests()[0].header("if-none-match"), Some(known));
    }
    // A newly packed archive has no ETag.
    let archive = fs::File::options().write(true).open(project.archive("key")).unwrap();
    archive.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    fs::write(project.path().join("vendor/lib"), "another").unwrap();
    project.save("key", None, StorageLimits::default());
    let server = Server::start(vec![response("404 Not Found", b"")]);
    assert_eq!(project.restore(&["key"], Some(&server)), 0);
    assert_eq!(server.requests()[0].header("if-none-match"), None);
}

#[test]
fn does_not_upload_an_archive_that_is_too_large() {
    let project = Project::new();
    let server = Server::start(Vec::new());
    for (max_upload, most) in [(Some(10), None), (None, Some(10))] {
        let mut location = project.location("key", Some(&server));
        location.remote.as_mut().unwrap().max_size = most;
        let plan = SavePlan {
            caches: vec![CacheSave::Files {
                location,
                paths: vec!["vendor".to_owned()],
                untracked: false,
                format: ArchiveFormat::TarZstd,
                level: CompressionLevel::Fast,
                max_upload,
            }],
            ..project.plan("key", Some(&server), StorageLimits::default())
        };
        assert_eq!(save(&plan), 0);
        fs::remove_file(project.archive("key")).unwrap();
    }
    assert!(server.requests().is_empty());
}

#[test]
fn uploads_an_archive_with_its_key() {
    let project = Project::new();
    let server = Server::start(vec![response("503 Slow Down", b""), response("200 OK", b"")]);
    assert_eq!(project.save("key", Some(&server), StorageLimits::default()), 0);
    let requests = server.requests();
    for put in &requests {
        assert_eq!(put.line, "PUT /put HTTP/1.1");
        assert_eq!(put.header("x-amz-meta-cachekey"), Some("key"));
        assert_eq!(put.header("transfer-encoding"), None);
        assert_eq!(put.body, fs::read(project.archive("key")).unwrap());
    }
    // The archive is unchanged and the store has it: a single HEAD request.
    let server = Server::start(vec![response("200 OK", b"")]);
    assert_eq!(project.save("key", Some(&server), StorageLimits::default()), 0);
    assert_eq!(server.requests()[0].line, "HEAD /head HTTP/1.1");
}

#[test]
fn an_unreachable_store_fails_no_job() {
    let project = Project::new();
    let server = Server::start(vec![response("403 Forbidden", b"<Error><Code>SignatureDoesNotMatch</Code></Error>")]);
    assert_eq!(project.save("key", Some(&server), StorageLimits::default()), 0);
    assert!(project.archive("key").exists(), "the local copy is there all the same");
}
