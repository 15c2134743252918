//! Tests of the requests for artifacts, and of how the agent handles the responses.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::*;
use crate::job::testing::{PreparedResponse, Server as Fake, response};

/// The exit status of an upload.
fn upload(plan: &UploadPlan) -> i32 {
    super::upload(plan).0
}

struct Project {
    temp: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for directory in ["project", "project.tmp"] {
            fs::create_dir(temp.path().join(directory)).unwrap();
        }
        fs::write(temp.path().join("project/a.txt"), "hello\n").unwrap();
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

    fn uploads(&self, server: &Fake, format: UploadFormat, paths: &[&str]) -> UploadPlan {
        UploadPlan {
            project: self.place(),
            server: api(server),
            job: 7.into(),
            token: "glcbt-64_secrettoken".to_owned(),
            uploads: vec![super::Upload {
                name: "out".to_owned(),
                kind: "archive".to_owned(),
                format,
                expire_in: String::new(),
                paths: paths.iter().map(|&path| path.to_owned()).collect(),
                exclude: Vec::new(),
                untracked: false,
            }],
            level: CompressionLevel::Default,
            timeout: Duration::from_secs(60),
            response_timeout: Duration::from_secs(60),
            meter: None,
            statement: None,
        }
    }

    fn downloads(&self, server: &Fake) -> DownloadPlan {
        DownloadPlan {
            project: self.place(),
            temporary: self.temp.path().join("project.tmp"),
            server: api(server),
            dependencies: vec![Dependency {
                id: 5.into(),
                name: "build".to_owned(),
                token: "dependency-token".to_owned(),
            }],
            direct: true,
            meter: None,
        }
    }
}

fn api(server: &Fake) -> ArtifactServer {
    ArtifactServer {
        api: format!("{}/api/v4", server.url),
        tls: TlsFiles::default(),
        user_agent: "mayfly 0".to_owned(),
        directory: None,
    }
}

fn redirect(status: &'static str, to: String) -> PreparedResponse {
    PreparedResponse { headers: vec![("Location", to)], ..response(status, b"") }
}

fn again(status: &'static str) -> PreparedResponse {
    PreparedResponse { headers: vec![("Retry-After", "1".to_owned())], ..response(status, b"") }
}

const ZIP: UploadFormat = UploadFormat::Archive(ArchiveFormat::Zip);

/// Head and content of the only part of a multipart body.
fn part(body: &[u8]) -> (String, Vec<u8>) {
    let at = body.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(body[..at].to_vec()).unwrap();
    let boundary = head.lines().next().unwrap();
    let tail = format!("\r\n{boundary}--\r\n");
    assert!(body.ends_with(tail.as_bytes()));
    (head.clone(), body[at + 4..body.len() - tail.len()].to_vec())
}

fn unzip(project: &Project, content: &[u8]) -> String {
    let file = project.temp.path().join("got.zip");
    fs::File::create(&file).unwrap().write_all(content).unwrap();
    let output = std::process::Command::new("unzip").arg("-p").arg(&file).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn uploads_an_archive_in_one_part_with_the_job_token() {
    let project = Project::new();
    let server = Fake::start(vec![response("201 Created", b"{}")]);
    assert_eq!(upload(&project.uploads(&server, ZIP, &["*.txt"])), 0);
    let requests = server.requests();
    assert_eq!(requests[0].line, "POST /api/v4/jobs/7/artifacts?artifact_format=zip&artifact_type=archive HTTP/1.1");
    assert_eq!(requests[0].header("job-token"), Some("glcbt-64_secrettoken"));
    let (head, content) = part(&requests[0].body);
    assert!(head.contains("name=\"file\"; filename=\"out.zip\""), "{head}");
    assert_eq!(unzip(&project, &content), "hello\n");
}

#[test]
fn format_raw_requires_exactly_one_file() {
    let project = Project::new();
    let server = Fake::start(vec![response("201 Created", b"{}")]);
    assert_eq!(upload(&project.uploads(&server, UploadFormat::Raw, &["a.txt"])), 0);
    assert_eq!(part(&server.requests()[0].body).1, b"hello\n");

    fs::write(project.path().join("b.txt"), "x").unwrap();
    let server = Fake::start(Vec::new());
    assert_eq!(upload(&project.uploads(&server, UploadFormat::Raw, &["*.txt"])), 1);
}

#[test]
fn nothing_to_upload_is_not_a_failure() {
    let project = Project::new();
    let server = Fake::start(Vec::new());
    assert_eq!(upload(&project.uploads(&server, ZIP, &["missing"])), 0);
    // A report needs files; a directory alone is not enough.
    fs::create_dir(project.path().join("hollow")).unwrap();
    assert_eq!(upload(&project.uploads(&server, UploadFormat::Archive(ArchiveFormat::Gzip), &["hollow"])), 0);
}

#[test]
fn each_attempt_sends_the_whole_archive() {
    let project = Project::new();
    let server = Fake::start(vec![again("500 X"), again("503 X"), response("201 Created", b"")]);
    assert_eq!(upload(&project.uploads(&server, ZIP, &["a.txt"])), 0);
    for request in server.requests() {
        assert_eq!(unzip(&project, &part(&request.body).1), "hello\n");
    }
}

#[test]
fn retries_temporary_errors_and_not_refusals() {
    for (responses, expected) in [
        (vec![response("403 Forbidden", b"")], 1),
        (vec![response("413 Too Large", b"")], 1),
        (vec![again("200 OK"), again("400 Bad"), again("404 X")], 3),
    ] {
        let project = Project::new();
        let server = Fake::start(responses);
        assert_eq!(upload(&project.uploads(&server, ZIP, &["a.txt"])), 1);
        assert_eq!(server.requests().len(), expected);
    }
}

#[test]
fn a_redirect_to_another_host_gets_no_token() {
    let project = Project::new();
    let server = Fake::start(vec![redirect("307 Temporary", "http://localhost.test:1/".to_owned())]);
    assert_eq!(upload(&project.uploads(&server, ZIP, &["a.txt"])), 1);

    let server = Fake::start(vec![response("201 Created", b"")]);
    let first = Fake::start(vec![redirect("307 Temporary", format!("{}/x", server.url))]);
    assert_eq!(upload(&project.uploads(&first, ZIP, &["a.txt"])), 0, "another port of the same host is followed");
    assert!(server.requests()[0].line.starts_with("POST /api/v4/jobs/7/artifacts?"));
}

#[test]
fn a_project_directory_that_became_a_link_is_not_followed() {
    let project = Project::new();
    fs::rename(project.path(), project.temp.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", project.path()).unwrap();
    let server = Fake::start(Vec::new());
    assert_eq!(upload(&project.uploads(&server, ZIP, &["a.txt"])), 1);
    assert_eq!(download(&project.downloads(&server)), 1);
}

fn archive() -> Vec<u8> {
    let project = Project::new();
    fs::write(project.path().join("from-build"), "built").unwrap();
    let root = crate::archive::root::ArchiveRoot::open(&project.path()).unwrap();
    let request =
        crate::archive::select::SelectionRequest { paths: vec!["from-build".to_owned()], ..Default::default() };
    let entries = crate::archive::select::select(&root, &request).entries;
    let mut archive = Vec::new();
    crate::archive::write(&root, &entries, ArchiveFormat::Zip, CompressionLevel::Default, &mut archive).unwrap();
    archive
}

fn built(project: &Project) -> Option<String> {
    fs::read_to_string(project.path().join("from-build")).ok()
}

#[test]
fn downloads_a_dependency_with_its_own_token_and_unpacks_it() {
    let project = Project::new();
    let server = Fake::start(vec![response("200 OK", &archive())]);
    assert_eq!(download(&project.downloads(&server)), 0);
    assert_eq!(built(&project).as_deref(), Some("built"));
    let requests = server.requests();
    assert_eq!(requests[0].line, "GET /api/v4/jobs/5/artifacts?direct_download=true HTTP/1.1");
    assert_eq!(requests[0].header("job-token"), Some("dependency-token"));
    assert_eq!(fs::read_dir(project.temp.path().join("project.tmp")).unwrap().count(), 0);
}

#[test]
fn sends_no_token_to_the_object_store() {
    let project = Project::new();
    let store = Fake::start(vec![response("200 OK", &archive())]);
    let server = Fake::start(vec![redirect("302 Found", format!("{}/bucket/x?signature=s", store.url))]);
    assert_eq!(download(&project.downloads(&server)), 0);
    assert_eq!(built(&project).as_deref(), Some("built"));
    let requests = store.requests();
    assert_eq!(requests[0].line, "GET /bucket/x?signature=s HTTP/1.1");
    assert_eq!(requests[0].header("job-token"), None);
}

#[test]
fn a_redirect_on_the_same_server_keeps_the_token() {
    let project = Project::new();
    let elsewhere = redirect("307 Temporary Redirect", "/elsewhere/artifacts".to_owned());
    let server = Fake::start(vec![elsewhere, response("200 OK", &archive())]);
    assert_eq!(download(&project.downloads(&server)), 0);
    let requests = server.requests();
    assert_eq!(requests[1].line, "GET /elsewhere/artifacts HTTP/1.1");
    assert_eq!(requests[1].header("job-token"), Some("dependency-token"));
}

#[test]
fn sends_tokens_only_to_the_server_or_its_https_address() {
    let of = |api: &str| ArtifactServer {
        api: api.to_owned(),
        tls: TlsFiles::default(),
        user_agent: String::new(),
        directory: None,
    };
    let (plain, tls) = (of("http://gitlab.test/api/v4"), of("https://gitlab.test:8443/api/v4"));
    assert!(plain.is_at("http://gitlab.test:80/x") && plain.is_at("https://gitlab.test/x"));
    assert!(!plain.is_at("https://gitlab.test:9000/x") && !plain.is_at("https://gitlab.test.evil/"));
    assert!(tls.is_at("https://GITLAB.test:8443/x") && !tls.is_at("http://gitlab.test:8443/x"));
}

#[test]
fn retries_an_incomplete_download_through_the_server() {
    let project = Project::new();
    let whole = archive();
    let half = PreparedResponse { content_length: Some(whole.len()), ..response("200 OK", &whole[..whole.len() / 2]) };
    let server = Fake::start(vec![half, response("200 OK", &whole)]);
    assert_eq!(download(&project.downloads(&server)), 0);
    assert_eq!(server.requests()[1].line, "GET /api/v4/jobs/5/artifacts HTTP/1.1");
}

#[test]
fn does_not_retry_missing_or_refused_artifacts() {
    for status in ["404 Not Found", "403 Forbidden", "401 Unauthorized"] {
        let project = Project::new();
        let server = Fake::start(vec![response(status, b"")]);
        assert_eq!(download(&project.downloads(&server)), 1);
        assert_eq!(built(&project), None);
    }
}

#[test]
fn a_broken_archive_fails_the_stage() {
    let project = Project::new();
    let server = Fake::start(vec![response("200 OK", b"<html>sign in</html>")]);
    assert_eq!(download(&project.downloads(&server)), 1);
    assert!(Path::new(&project.path()).join("a.txt").exists());
}
