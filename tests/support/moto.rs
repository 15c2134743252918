//! A real server for the AWS APIs: moto, with signature and policy checks enabled.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::ports::free_port;
use super::{TIMEOUT, wait_until};

/// The server; it ends with the test.
pub struct Moto {
    pub url: String,
    process: Child,
}

/// The key pair of a user with one policy.
pub struct User {
    pub access_key: String,
    pub secret_key: String,
}

impl User {
    /// The variables with which mayfly calls moto as this user.
    pub fn environment(&self, moto: &Moto) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", moto.url.as_str()),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", &self.access_key),
            ("AWS_SECRET_ACCESS_KEY", &self.secret_key),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

impl Moto {
    /// Starts an empty server, which `tests/setup.sh` installs.
    pub fn start() -> Self {
        let port = free_port();
        let process = Command::new(program("moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .env("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
            .env("MOTO_IAM_LOAD_MANAGED_POLICIES", "false")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto_server, which tests/setup.sh installs");
        let mut moto = Self { url: format!("http://127.0.0.1:{port}"), process };
        wait_until("the start of moto", || {
            let ended = moto.process.try_wait().expect("read the state of the process");
            assert!(ended.is_none(), "moto does not start: {ended:?}");
            moto.post("/moto-api/reset", "")
        });
        moto
    }

    /// Runs Python code to set up a test. `client("ssm")` is a boto3 client; `out` is printed at the end and returned.
    pub fn python(&self, lines: &str) -> String {
        let head = format!(
            "import boto3, json\ndef client(name):\n    return boto3.client(name, endpoint_url='{}', \
             region_name='eu-west-1', aws_access_key_id='k', aws_secret_access_key='s')\n",
            self.url
        );
        let output = Command::new(program("python")).args(["-c", &format!("{head}{lines}")]).env_clear().output();
        let output = output.expect("run python");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("the text must be UTF-8").trim().to_owned()
    }

    /// Stores a parameter, also while permissions are checked.
    pub fn put_parameter(&self, name: &str, value: &str) {
        self.ignore_permissions();
        self.python(&format!(
            "client('ssm').put_parameter(Name='{name}', Type='SecureString', Value='{value}', Overwrite=True)"
        ));
        self.enforce_permissions();
    }

    /// A user that may perform only these actions (`["ssm:GetParameter"]`), on all resources.
    pub fn user(&self, name: &str, actions: &[&str]) -> User {
        let policy = serde_json::json!({
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}],
        });
        let keys = self.python(&format!(
            "iam = client('iam')\niam.create_user(UserName='{name}')\n\
             iam.put_user_policy(UserName='{name}', PolicyName='p', PolicyDocument='''{policy}''')\n\
             key = iam.create_access_key(UserName='{name}')['AccessKey']\n\
             print(key['AccessKeyId'], key['SecretAccessKey'])"
        ));
        let (access_key, secret_key) = keys.split_once(' ').expect("an access key and a secret key");
        User { access_key: access_key.to_owned(), secret_key: secret_key.to_owned() }
    }

    /// Enables the checks of signatures and policies.
    pub fn enforce_permissions(&self) {
        self.allow_unchecked_requests("0");
    }

    /// Disables these checks.
    pub fn ignore_permissions(&self) {
        self.allow_unchecked_requests("inf");
    }

    /// Sets after how many requests moto begins to check them.
    fn allow_unchecked_requests(&self, count: &str) {
        assert!(self.post("/moto-api/reset-auth", count), "moto does not answer");
    }

    fn post(&self, path: &str, body: &str) -> bool {
        let address = self.url.trim_start_matches("http://");
        let Ok(mut stream) = TcpStream::connect(address) else { return false };
        stream.set_read_timeout(Some(TIMEOUT)).expect("set the timeout");
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        let sent = stream.write_all(request.as_bytes());
        sent.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.contains(" 200 ")
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A program in the Python environment that `tests/setup.sh` creates.
fn program(name: &str) -> PathBuf {
    super::installed("moto/bin").join(name)
}
