//! The part of HTTP/1.1 that agents use: requests with a length, one after the other on a connection.

use std::fmt::Write;

/// The maximum size of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The maximum size of a body: an agent sends its data and its list of jobs.
const MAX_BODY_BYTES: usize = 256 << 10;

/// What happens to a connection after the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterResponse {
    #[default]
    KeepOpen,
    Close,
}

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerRequest {
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// Names in lower case, and values.
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The client's wish for the connection.
    pub after_response: AfterResponse,
}

impl ServerRequest {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The state of the received bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// More bytes are needed.
    Incomplete,
    /// A request, and its size in bytes.
    Request(ServerRequest, usize),
    /// The request is refused with this status.
    Refused(u16, &'static str),
}

/// Reads a request from the bytes of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return match bytes.len() > MAX_HEAD_BYTES {
            true => Parsed::Refused(431, "the head is too long"),
            false => Parsed::Incomplete,
        };
    };
    let read = parse_head(&bytes[..end]).and_then(|request| Ok((body_length(&request)?, request)));
    let (length, mut request) = match read {
        Ok(read) => read,
        Err((status, why)) => return Parsed::Refused(status, why),
    };
    let size = end + 4 + length;
    if bytes.len() < size {
        return Parsed::Incomplete;
    }
    request.body = bytes[end + 4..size].to_vec();
    Parsed::Request(request, size)
}

/// The status and the reason of a refusal.
type Refusal = (u16, &'static str);

/// Reads the head of a request, without the empty line at its end.
fn parse_head(head: &[u8]) -> Result<ServerRequest, Refusal> {
    const NOT_HTTP: Refusal = (400, "this is not HTTP");
    let mut lines = std::str::from_utf8(head).map_err(|_| NOT_HTTP)?.split("\r\n");
    let (method, path, version) = lines.next().and_then(request_line).ok_or(NOT_HTTP)?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.map(header).collect::<Option<Vec<_>>>().ok_or((400, "a header has no colon"))?;
    let mut request =
        ServerRequest { method: method.to_owned(), path: path.to_owned(), headers, ..ServerRequest::default() };
    let is_closed_by_client = match request.header("connection") {
        Some(option) => option.eq_ignore_ascii_case("close"),
        None => version != "HTTP/1.1",
    };
    if is_closed_by_client {
        request.after_response = AfterResponse::Close;
    }
    Ok(request)
}

/// The length of the body, as the head announces it.
fn body_length(request: &ServerRequest) -> Result<usize, Refusal> {
    if request.header("transfer-encoding").is_some() {
        return Err((411, "send a Content-Length"));
    }
    let mut lengths = request.headers.iter().filter(|(name, _)| name == "content-length").map(|(_, value)| value);
    let Some(first) = lengths.next() else { return Ok(0) };
    if lengths.any(|other| other != first) {
        return Err((400, "there are two different Content-Lengths"));
    }
    match first.parse::<usize>() {
        Ok(length) if length <= MAX_BODY_BYTES => Ok(length),
        Ok(_) => Err((413, "the body is too long")),
        Err(_) => Err((400, "the Content-Length is not a number")),
    }
}

fn request_line(line: &str) -> Option<(&str, &str, &str)> {
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_valid = words.next().is_none() && version.starts_with("HTTP/1.") && target.starts_with('/');
    is_valid.then(|| (method, target.split(['?', '#']).next().unwrap_or_default(), version))
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerResponse {
    pub status: u16,
    /// Headers in addition to those of every response.
    pub headers: Vec<(&'static str, String)>,
    /// JSON; may be empty.
    pub body: Vec<u8>,
}

impl ServerResponse {
    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// A response with a JSON body.
    pub fn json(status: u16, body: &impl serde::Serialize) -> Self {
        // The types of this program can always be encoded as JSON.
        Self { status, headers: Vec::new(), body: serde_json::to_vec(body).unwrap_or_default() }
    }

    /// A response with an error message in GitLab's format.
    pub fn message(status: u16, why: &str) -> Self {
        Self::json(status, &serde_json::json!({ "message": why }))
    }

    /// Adds a header.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The response as bytes.
    pub fn encode(&self, after: AfterResponse) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            // Writing to a string cannot fail.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if !self.body.is_empty() {
            head.push_str("Content-Type: application/json\r\n");
        }
        if self.status != 204 {
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        head.push_str(match after {
            AfterResponse::KeepOpen => "\r\n",
            AfterResponse::Close => "Connection: close\r\n\r\n",
        });
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_request_when_it_is_whole() {
        let text = b"PUT /api/v4/jobs/7?x HTTP/1.1\r\nRunner-Token: t\r\nContent-Length: 4\r\n\r\n{\"a\"rest";
        for length in 0..text.len() - 4 {
            assert_eq!(parse(&text[..length]), Parsed::Incomplete, "{length}");
        }
        let Parsed::Request(request, length) = parse(text) else { panic!("no request") };
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/api/v4/jobs/7"));
        assert_eq!(request.after_response, AfterResponse::KeepOpen);
        assert_eq!((request.header("RUNNER-TOKEN"), request.body.as_slice()), (Some("t"), &b"{\"a\""[..]));
        assert_eq!(&text[length..], b"rest");
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for (text, status) in [
            ("nonsense\r\n\r\n".to_owned(), 400),
            ("GET http://h/ HTTP/1.1\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 411),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_owned(), 400),
            (format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_BODY_BYTES + 1), 413),
            ("x".repeat(MAX_HEAD_BYTES + 1), 431),
        ] {
            assert!(matches!(parse(text.as_bytes()), Parsed::Refused(found, _) if found == status), "{text:.60}");
        }
    }

    #[test]
    fn keeps_a_connection_unless_the_client_closes_it() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", AfterResponse::KeepOpen),
            ("GET / HTTP/1.0\r\n\r\n", AfterResponse::Close),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", AfterResponse::Close),
        ] {
            let Parsed::Request(request, _) = parse(head.as_bytes()) else { panic!("no request: {head}") };
            assert_eq!(request.after_response, expected, "{head}");
        }
        let text = ServerResponse::message(409, "too late").with_header("X-A", "b").encode(AfterResponse::Close);
        let text = String::from_utf8(text).expect("the text must be UTF-8");
        assert!(
            text.starts_with("HTTP/1.1 409 Conflict\r\nX-A: b\r\n") && text.ends_with("{\"message\":\"too late\"}")
        );
    }
}
