//! A registry with a password, in the network namespace of the tests' engine: Debian's `docker-registry`.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;

use super::docker::{Docker, REGISTRY_PORTS};
use super::pki::Pki;
use super::{send_signal, wait_or_explain};

/// The name of its user.
pub const USER: &str = "ci";
/// The password of that user.
pub const PASSWORD: &str = "secret123";
/// The htpasswd line for that user (bcrypt).
const USERS: &str = "ci:$2b$05$WoX6iB9ngNLWmDNoZXHjKuVaQgD6CIh/LIasbc6/1W0emK5.Xh7gu\n";
/// The host name of an Amazon ECR registry.
pub const AMAZON: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// The login for that registry, with the token that moto returns.
const AMAZON_LOGIN: (&str, &str) = ("AWS", "123456789012-auth-token");
/// The htpasswd line for that login.
const AMAZON_USERS: &str = "AWS:$2b$05$YikHSR1CsldzEX/JvacEqO5WqlM4ZsCXdj..rn7ws0dSqGsXsZoB.\n";

/// The registry; it ends with the test.
pub struct Registry<'a> {
    docker: &'a Docker,
    directory: tempfile::TempDir,
    process: Child,
    login: (&'static str, &'static str),
    /// Host and port, as in image names.
    pub address: String,
}

impl<'a> Registry<'a> {
    /// Starts a registry on a port of the engine's loopback.
    pub fn start(docker: &'a Docker) -> Self {
        // Only other tests of this process use that namespace.
        static STARTED: AtomicU16 = AtomicU16::new(0);
        let address = format!("127.0.0.1:{}", REGISTRY_PORTS.start + STARTED.fetch_add(1, Ordering::Relaxed));
        Self::start_at(docker, &address, &address, (USER, PASSWORD), USERS, "")
    }

    /// Starts a registry that an engine takes for Amazon ECR. The engine must not be shared with other tests.
    pub fn of_amazon(docker: &'a Docker) -> Self {
        let pki = Pki::new();
        let identity = pki.server_of(AMAZON);
        let directory = docker.private_directory("amazon");
        let path = |name: &str| directory.join(name).display().to_string();
        fs::create_dir_all(directory.join(format!("etc/certs.d/{AMAZON}"))).expect("create the directory");
        for (name, text) in [
            (format!("etc/certs.d/{AMAZON}/ca.crt").as_str(), pki.root.as_str()),
            ("hosts", &format!("127.0.0.1 localhost\n10.99.0.1 {AMAZON}\n")),
            ("chain.pem", &identity.chain),
            ("key.pem", &identity.key),
        ] {
            fs::write(directory.join(name), text).expect("write a file");
        }
        // Not a loopback address: for those, engines fall back to HTTP.
        let added = docker.inside("ip").args(["address", "add", "10.99.0.1/32", "dev", "lo"]).status();
        assert!(added.expect("run ip").success());
        docker.mount(&directory.join("hosts"), "/etc/hosts");
        docker.mount(&directory.join("etc"), "/etc/docker");
        // The daemon caches the previous content of the file for some seconds.
        docker.restart();
        let tls = format!("  tls: {{certificate: {}, key: {}}}", path("chain.pem"), path("key.pem"));
        Self::start_at(docker, "10.99.0.1:443", AMAZON, AMAZON_LOGIN, AMAZON_USERS, &tls)
    }

    /// Starts a registry that listens at one address and is named by another, with further lines below `http`.
    fn start_at(
        docker: &'a Docker,
        listen: &str,
        address: &str,
        login: (&'static str, &'static str),
        users: &str,
        http: &str,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::write(path("users"), users).expect("write a file");
        let text = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\nhttp:\n  addr: \"{listen}\"\n{http}\n",
            path("data"),
            path("users")
        );
        fs::write(path("config.yml"), text).expect("write a file");
        let process = docker
            .inside("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).expect("a log"))
            .spawn()
            .expect("docker-registry, which tests/setup.sh installs");
        let registry = Self { docker, directory, process, login, address: address.to_owned() };
        registry.wait_until_up(listen);
        registry
    }

    fn wait_until_up(&self, listen: &str) {
        let (host, port) = listen.rsplit_once(':').expect("a port");
        let connects = || {
            let mut command = self.docker.inside("busybox");
            command.args(["nc", "-w", "1", host, port]).stdin(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        wait_or_explain(connects, || format!("the start of the registry:\n{}", log()));
    }

    /// Tags an image of the engine for this registry, pushes it, and removes it from the engine. Returns the name.
    pub fn push(&self, image: &str, name: &str) -> String {
        let full = format!("{}/{name}", self.address);
        let home = self.directory.path().join("docker");
        fs::create_dir_all(&home).expect("create the directory");
        fs::write(home.join("config.json"), login(&self.address, self.login.0, self.login.1)).expect("write a file");
        let config = home.display().to_string();
        self.docker.run(&["tag", image, &full]);
        self.docker.run(&["--config", &config, "push", "--quiet", &full]);
        self.docker.run(&["rmi", &full]);
        full
    }

    /// Stops the registry process (SIGSTOP): it keeps its connections and does not respond.
    pub fn freeze(&self) {
        send_signal(self.process.id().cast_signed(), Signal::SIGSTOP);
    }

    /// Truncates the largest blob to half its size.
    pub fn cut_largest_blob(&self) {
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        let entries =
            |path: PathBuf| fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path());
        let all = entries(blobs).flat_map(entries).map(|blob| blob.join("data"));
        let length = |path: &PathBuf| fs::metadata(path).expect("the file must exist").len();
        let largest = all.max_by_key(length).expect("a blob");
        let file = fs::OpenOptions::new().write(true).open(&largest).expect("open a file");
        file.set_len(length(&largest) / 2).expect("set the length of the file");
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A Docker configuration file with one login.
pub fn login(registry: &str, user: &str, password: &str) -> String {
    let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
    serde_json::json!({"auths": {registry: {"auth": auth}}}).to_string()
}
