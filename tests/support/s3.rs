//! A real S3 server that verifies signatures: `s3s-fs`, which `tests/setup.sh` installs.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::ports::free_port;

/// The access key of the only key pair that the server accepts.
pub const ACCESS_KEY: &str = "AKIDOFTHETESTS";
/// The secret key of that pair.
pub const SECRET_KEY: &str = "secret+of/the=tests";
pub const BUCKET: &str = "caches";

/// The server; it ends with the test.
pub struct S3 {
    /// Host and port.
    pub address: String,
    directory: tempfile::TempDir,
    child: Child,
}

impl S3 {
    pub fn start() -> Self {
        let program = super::installed("bin/s3s-fs");
        assert!(program.exists(), "run tests/setup.sh: {} is missing", program.display());
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join(BUCKET)).expect("create the directory");
        let port = free_port();
        let child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY])
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start s3s-fs");
        let server = Self { address: format!("127.0.0.1:{port}"), directory, child };
        super::wait_until("the start of the S3 server", || TcpStream::connect(&server.address).is_ok());
        server
    }

    /// The runner's configuration for this server, with further keys below `[runners.cache]` and `[runners.cache.s3]`.
    pub fn configuration(&self, cache: &str, s3: &str) -> String {
        format!(
            "[runners.cache]\nType = \"s3\"\n{cache}\n[runners.cache.s3]\nServerAddress = \"{}\"\nInsecure = true\n\
             BucketName = \"{BUCKET}\"\n{s3}\n",
            self.address
        )
    }

    /// The key pair in the form of a configuration.
    pub fn keys() -> String {
        format!("AccessKey = \"{ACCESS_KEY}\"\nSecretKey = \"{SECRET_KEY}\"")
    }

    pub fn objects(&self) -> Vec<String> {
        let bucket = self.bucket();
        let mut found = Vec::new();
        let mut directories = vec![bucket.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("list the directory").flatten() {
                let name = entry
                    .path()
                    .strip_prefix(&bucket)
                    .expect("the path must be below the bucket")
                    .display()
                    .to_string();
                match entry.file_type().expect("a type").is_dir() {
                    true => directories.push(entry.path()),
                    false => found.push(name),
                }
            }
        }
        found.sort();
        found
    }

    /// The directory of the bucket; objects are files in it.
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join(BUCKET)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
