//! Repositories over smart HTTP: the real `git http-backend`, which requires a login with a job token.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::ServerConfig;

use super::http::{Answer, Connection, Request, listen, read_request, write_answer, write_half};

/// A server for the repositories below a directory.
pub struct GitServer {
    pub url: String,
    root: PathBuf,
    seen: Arc<Seen>,
}

/// The recorded requests, and the failures to inject.
#[derive(Default)]
struct Seen {
    authorizations: Mutex<Vec<String>>,
    /// Values of the header `X-Test`.
    marks: Mutex<Vec<String>>,
    failure: Mutex<Option<(String, Failure)>>,
}

/// The failure of a request.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// A response with this status.
    Status(u16),
    /// The connection is closed without a response.
    Reset,
    /// The connection is closed in the middle of the response.
    Cut,
}

impl GitServer {
    /// Serves the repositories below `root`. Clients log in as `gitlab-ci-token` with a job token.
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, None)
    }

    /// The same over HTTPS.
    pub fn start_with(root: &Path, tls: Option<Arc<ServerConfig>>) -> Self {
        let seen = Arc::new(Seen::default());
        let (served, shared) = (root.to_owned(), Arc::clone(&seen));
        let url = listen(tls, move |connection| serve(connection, &served, &shared));
        Self { url, root: root.to_owned(), seen }
    }

    /// Makes requests fail whose method and path contain this text (`GET /team/demo.git`), until [`GitServer::heal`].
    pub fn fail(&self, part: &str, failure: Failure) {
        *self.seen.failure.lock().expect("the thread must not panic") = Some((part.to_owned(), failure));
    }

    /// Ends [`GitServer::fail`].
    pub fn heal(&self) {
        *self.seen.failure.lock().expect("the thread must not panic") = None;
    }

    /// The values of the header `X-Test` in all requests.
    pub fn marks(&self) -> Vec<String> {
        self.seen.marks.lock().expect("the thread must not panic").clone()
    }

    /// Creates a branch of a bare repository at its latest commit.
    pub fn branch(&self, name: &str, branch: &str) {
        git(&self.root.join(format!("{name}.git")), &["branch", "-f", branch, "main"]);
    }

    /// Creates a repository with these files on branch `main`; returns its URL and commit.
    pub fn repository(&self, name: &str, files: &[(&str, &str)]) -> (String, String) {
        let bare = self.root.join(format!("{name}.git"));
        let work = self.root.join(format!("{name}.work"));
        std::fs::create_dir_all(&work).expect("create the directory");
        git(&self.root, &["init", "-q", "--bare", "-b", "main", &bare.display().to_string()]);
        git(&bare, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
        git(&work, &["init", "-q", "-b", "main"]);
        self.commit(name, files, "first");
        (format!("{}/{name}.git", self.url), git(&work, &["rev-parse", "HEAD"]))
    }

    /// Stores an LFS object for a repository; returns its pointer file.
    pub fn large_file(&self, name: &str, content: &[u8]) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, content);
        let oid: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let store = self.root.join(format!("{name}.lfs"));
        std::fs::create_dir_all(&store).expect("create the directory");
        std::fs::write(store.join(&oid), content).expect("write a file");
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n", content.len())
    }

    /// Adds a submodule at the latest commit of the library (`team/library`), with any address; returns the commit.
    pub fn add_submodule(&self, name: &str, path: &str, address: &str) -> String {
        self.add_submodule_of(name, "team/library", path, address, "")
    }

    /// The same with another repository, and with more lines for `.gitmodules`.
    pub fn add_submodule_of(&self, name: &str, library: &str, path: &str, address: &str, lines: &str) -> String {
        let work = self.root.join(format!("{name}.work"));
        let library = git(&self.root.join(format!("{library}.git")), &["rev-parse", "main"]);
        let modules = format!("[submodule \"lib\"]\n\tpath = \"{path}\"\n\turl = \"{address}\"\n{lines}");
        std::fs::write(work.join(".gitmodules"), modules).expect("write a file");
        git(&work, &["update-index", "--add", "--cacheinfo", &format!("160000,{library},{path}")]);
        std::fs::create_dir_all(work.join(path)).expect("create the directory");
        self.commit(name, &[], "with a submodule")
    }

    /// Adds a commit and returns its id.
    pub fn commit(&self, name: &str, files: &[(&str, &str)], message: &str) -> String {
        let work = self.root.join(format!("{name}.work"));
        for (path, content) in files {
            let path = work.join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("create the directory");
            std::fs::write(path, content).expect("write a file");
        }
        git(&work, &["add", "-A"]);
        git(&work, &["-c", "user.name=Dev", "-c", "user.email=dev@example.test", "commit", "-q", "-m", message]);
        let bare = self.root.join(format!("{name}.git")).display().to_string();
        git(&work, &["push", "-q", &bare, "main"]);
        git(&work, &["rev-parse", "HEAD"])
    }

    /// The `Authorization` headers of all requests.
    pub fn authorizations(&self) -> Vec<String> {
        self.seen.authorizations.lock().expect("the thread must not panic").clone()
    }
}

/// Runs git, which must succeed.
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    // A machine-wide git-lfs set-up would push to an LFS server.
    command.args(arguments).current_dir(directory).env("GIT_LFS_SKIP_PUSH", "1");
    let output = command.output().expect("run git");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The beginning of the `Authorization` header for `gitlab-ci-token` with a token that begins with `glcbt-`.
const LOGIN: &str = "Basic Z2l0bGFiLWNpLXRva2VuOmdsY2J0L";

fn serve(mut connection: Connection, root: &Path, seen: &Seen) {
    while let Some(request) = read_request(&mut connection) {
        seen.marks.lock().expect("the thread must not panic").extend(request.headers.get("x-test").cloned());
        let failure = seen.failure.lock().expect("the thread must not panic").clone();
        let line = format!("{} {}", request.method, request.path);
        let failure = failure.filter(|(part, _)| line.contains(part.as_str())).map(|(_, failure)| failure);
        let login = request.header("Authorization").to_owned();
        let answer = if let Some(Failure::Status(status)) = failure {
            Answer::new(status).with("WWW-Authenticate", "Basic realm=\"git\"")
        } else if let Some(Failure::Reset) = failure {
            return;
        } else if let Some(location) = redirect(&request) {
            Answer::new(301).with("Location", &location)
        } else if login.starts_with(LOGIN) {
            seen.authorizations.lock().expect("the thread must not panic").push(login);
            match request.path.split_once("/info/lfs/") {
                Some((repository, rest)) => large_files(root, repository, rest, &request),
                None => backend(root, &request),
            }
        } else {
            Answer::new(401).with("WWW-Authenticate", "Basic realm=\"git\"")
        };
        if let Some(Failure::Cut) = failure {
            let _ = write_half(connection.get_mut(), &answer);
            return;
        }
        if write_answer(connection.get_mut(), &answer).is_err() {
            return;
        }
    }
}

/// As on GitLab, an address without `.git` redirects to the one with it, for every client. `/elsewhere/HOST/...`
/// redirects to another host.
fn redirect(request: &Request) -> Option<String> {
    let (repository, rest) = request.path.split_once("/info/refs")?;
    if let Some(other) = repository.strip_prefix("/elsewhere/") {
        return Some(format!("http://{other}{rest}"));
    }
    (!repository.ends_with(".git")).then(|| format!("{repository}.git/info/refs{rest}?{}", request.query))
}

/// Git LFS (batch API, basic transfer): downloads of the objects in `<repository>.lfs`, by their SHA-256.
fn large_files(root: &Path, repository: &str, rest: &str, request: &Request) -> Answer {
    const KIND: &str = "application/vnd.git-lfs+json";
    let store = root.join(repository.trim_matches('/').trim_end_matches(".git").to_owned() + ".lfs");
    if let Some(oid) = rest.strip_prefix("store/") {
        return std::fs::read(store.join(oid)).map_or_else(|_| Answer::new(404), |file| Answer::new(200).body(file));
    }
    if rest != "objects/batch" || request.json()["operation"] != "download" {
        return Answer::new(404);
    }
    let base = format!("http://{}{repository}/info/lfs/store", request.header("Host"));
    let asked = request.json()["objects"].as_array().cloned().unwrap_or_default();
    let objects: Vec<serde_json::Value> = asked
        .iter()
        .map(|object| {
            let oid = object["oid"].as_str().unwrap_or_default();
            let download = serde_json::json!({"download": {"href": format!("{base}/{oid}")}});
            serde_json::json!({"oid": oid, "size": object["size"], "actions": download})
        })
        .collect();
    let body = serde_json::json!({"transfer": "basic", "objects": objects});
    Answer::new(200).with("Content-Type", KIND).body(body.to_string())
}

/// Runs one request through `git http-backend` (CGI).
fn backend(root: &Path, request: &Request) -> Answer {
    let header = |name: &str| request.headers.get(name).cloned().unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", &request.path)
        .env("QUERY_STRING", &request.query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_USER", "gitlab-ci-token")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("git http-backend");
    let mut stdin = child.stdin.take().expect("a pipe");
    let body = request.body.clone();
    let feeder = thread::spawn(move || stdin.write_all(&body));
    let mut output = Vec::new();
    child.stdout.take().expect("a pipe").read_to_end(&mut output).expect("read the output");
    let _ = feeder.join();
    let _ = child.wait();
    let split = output.windows(4).position(|window| window == b"\r\n\r\n").expect("CGI headers");
    let mut answer = Answer::new(200).body(&output[split + 4..]);
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let (name, value) = line.split_once(": ").expect("a header");
        match name {
            "Status" => answer.status = value[..3].parse().expect("a status"),
            _ => answer = answer.with(name, value),
        }
    }
    answer
}
