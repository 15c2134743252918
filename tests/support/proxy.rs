//! Proxies: squid with Debian's default rules, and a slow proxy that only opens tunnels.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::ports::free_port;
use super::send_signal;

/// A running squid; it ends with the value.
pub struct Squid {
    pub url: String,
    directory: tempfile::TempDir,
    process: Child,
}

impl Squid {
    /// Starts squid. It resolves `gitlab.test` to loopback, and opens tunnels only to port 443 and to `tls_ports`.
    pub fn start(tls_ports: &[u16]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // squid, started as root, changes to another user, which writes its logs here.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(directory.path(), open).expect("set the permissions");
        let at = |name: &str| directory.path().join(name).display().to_string();
        let port = free_port();
        let tls: String = tls_ports.iter().map(|port| format!("acl SSL_ports port {port}\n")).collect();
        let config = format!(
            "http_port 127.0.0.1:{port}\nacl SSL_ports port 443\n{tls}acl Safe_ports port 80 443 1025-65535\n\
             http_access deny !Safe_ports\nhttp_access deny CONNECT !SSL_ports\nhttp_access allow localhost\n\
             http_access deny all\nhosts_file {}\npid_filename {}\ncache_log {}\naccess_log stdio:{}\n\
             coredump_dir {}\ncache deny all\nshutdown_lifetime 0 seconds\npinger_enable off\n",
            at("hosts"),
            at("pid"),
            at("cache.log"),
            at("access.log"),
            directory.path().display(),
        );
        std::fs::write(at("squid.conf"), config).expect("write a file");
        std::fs::write(at("hosts"), "127.0.0.1 gitlab.test\n").expect("write a file");
        let mut command = Command::new("squid");
        // Names the shared memory; a squid that still runs would have the default name.
        let service = format!("mayfly{}", super::unique_number());
        command.args(["-N", "-n", &service, "-f", &at("squid.conf")]).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("squid: run tests/setup.sh");
        let squid = Self { url: format!("http://127.0.0.1:{port}"), directory, process };
        super::wait_until("the start of squid", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        squid
    }

    /// The requests so far, one line each: method and URL.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        let request = |line: &str| Some(line.split_whitespace().skip(5).take(2).collect::<Vec<_>>().join(" "));
        // The probe of `start` is not a request.
        log.lines().filter(|line| !line.contains("error:transaction-end")).filter_map(request).collect()
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        // On SIGTERM squid removes its shared memory.
        send_signal(self.process.id().cast_signed(), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// A proxy that opens tunnels to port 443 only, connects all of them to `to`, and pauses after each piece of data.
/// Returns its URL.
pub fn tunnel_proxy(to: &str, pause: Duration) -> String {
    let target = to.split_once("://").map_or(to, |(_, target)| target).to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut reader = BufReader::new(client.try_clone().expect("a stream"));
            let (mut head, mut line) = (String::new(), String::new());
            while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
                head.push_str(&std::mem::take(&mut line));
            }
            if !(head.starts_with("CONNECT ") && head.contains(":443 HTTP/1.1\r\n")) {
                (&client).write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").expect("send the response");
                continue;
            }
            let server = TcpStream::connect(&target).expect("the server");
            (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").expect("send the response");
            let (to_client, from_server) =
                (client.try_clone().expect("a stream"), server.try_clone().expect("a stream"));
            std::thread::spawn(move || forward_until_end(from_server, &to_client, pause));
            std::thread::spawn(move || forward_until_end(reader, &server, pause));
        }
    });
    url
}

fn forward_until_end(mut from: impl Read, mut to: &TcpStream, pause: Duration) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
        std::thread::sleep(pause);
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
