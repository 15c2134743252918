//! Upload and download of artifacts.

use std::io::BufReader;
use std::net::TcpListener;
use std::thread;
use std::time::SystemTime;

use serde_json::json;

use super::super::http::{Answer, Request, read_request, write_answer};
use super::{Artifact, GitLab, own_job};

impl GitLab {
    pub(super) fn take_artifact(&self, request: &Request) -> Answer {
        let Some(artifact) = multipart(request) else {
            self.violation("artifacts: not one part called `file`".to_owned());
            return Answer::new(400);
        };
        let mut state = self.lock();
        let Some(job) = own_job(&mut state, request, request.header("JOB-TOKEN")) else { return Answer::new(403) };
        if !job.is_live() {
            return Answer::new(403).with("Job-Status", &job.state.clone());
        }
        job.artifacts.push(artifact);
        Answer::json(201, &json!({"id": job.id}))
    }

    /// The archive of a job, for a client with a valid token; on request through a redirect to another host, which must
    /// not get the token.
    pub(super) fn give_artifact(&self, request: &Request) -> Answer {
        let mut state = self.lock();
        let Some(job) = own_job(&mut state, request, request.header("JOB-TOKEN")) else { return Answer::new(403) };
        let Some(artifact) = job.artifacts.iter().find(|artifact| artifact.kind == "archive").cloned() else {
            return Answer::new(404);
        };
        drop(state);
        if request.query != "direct_download=true" {
            return Answer::new(200).with("Content-Type", "application/octet-stream").body(artifact.content);
        }
        Answer::new(302).with("Location", &self.object_store(artifact.content))
    }

    /// Another host, which serves this content once.
    fn object_store(&self, content: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://localhost:{}/object", listener.local_addr().expect("an address").port());
        let server = self.clone();
        thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let Some(request) = read_request(&mut reader) else { return };
            if request.headers.contains_key("job-token") || request.headers.contains_key("authorization") {
                server.violation("the object store was sent a token".to_owned());
            }
            let _ = write_answer(&mut stream, &Answer::new(200).body(content));
        });
        url
    }
}

/// The only part of a multipart body, with the parameters of the query.
fn multipart(request: &Request) -> Option<Artifact> {
    let boundary = request.header("Content-Type").split_once("boundary=")?.1.to_owned();
    let head_end = request.body.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&request.body[..head_end]).into_owned();
    let tail = format!("\r\n--{boundary}--");
    let content = &request.body[head_end + 4..];
    let end = content.windows(tail.len()).rposition(|window| window == tail.as_bytes())?;
    if !head.contains("name=\"file\"") || head.matches("Content-Disposition").count() != 1 {
        return None;
    }
    let name = head.split_once("filename=\"")?.1.split_once('"')?.0.to_owned();
    let parameter = |key: &str| {
        let pair = request.query.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
        pair.unwrap_or_default().replace("%20", " ").replace('+', " ")
    };
    let (kind, format, expire_in) = (parameter("artifact_type"), parameter("artifact_format"), parameter("expire_in"));
    Some(Artifact { kind, format, expire_in, name, content: content[..end].to_vec(), at: Some(SystemTime::now()) })
}
