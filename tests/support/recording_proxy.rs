//! Forwards connections to a port of this machine, and records what the clients send.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The tap; it forwards until the process ends.
pub struct RecordingProxy {
    pub port: u16,
    /// The received bytes of each connection.
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RecordingProxy {
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let tap = Self { port, sent: Arc::default() };
        let sent = Arc::clone(&tap.sent);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let number = {
                    let mut sent = sent.lock().expect("the thread must not panic");
                    sent.push(Vec::new());
                    sent.len() - 1
                };
                let kept = Arc::clone(&sent);
                let (from, to) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                thread::spawn(move || {
                    forward_until_end(from, to, |bytes| {
                        kept.lock().expect("the thread must not panic")[number].extend(bytes)
                    })
                });
                thread::spawn(move || forward_until_end(server, client, |_| ()));
            }
        });
        tap
    }

    /// What all connections sent, as text.
    pub fn text(&self) -> String {
        let sent = self.sent.lock().expect("the thread must not panic");
        sent.iter().map(|bytes| format!("{}\n", String::from_utf8_lossy(bytes))).collect()
    }

    /// The JSON bodies of requests with this text in their first line.
    pub fn bodies(&self, line: &str) -> Vec<serde_json::Value> {
        let sent = self.sent.lock().expect("the thread must not panic");
        let texts = sent.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let bodies = |text: String| {
            let parts: Vec<String> = text.split(line).skip(1).map(str::to_owned).collect();
            parts.into_iter().filter_map(|part| {
                let (_, body) = part.split_once("\r\n\r\n")?;
                serde_json::Deserializer::from_str(body).into_iter().next()?.ok()
            })
        };
        texts.flat_map(bodies).collect()
    }
}

fn forward_until_end(mut from: TcpStream, mut to: TcpStream, mut keep: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        keep(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
