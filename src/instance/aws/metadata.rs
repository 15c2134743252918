//! The instance metadata service, version 2: requests need a session token.
//!
//! The service is link-local, answers within milliseconds, and all processes of the machine share it: the agent never
//! uses a proxy for it and limits its own request rate.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ureq::{Agent, Timeout, http};

use crate::backoff::Backoff;
use crate::http::http_date;
use crate::sync;
use crate::token::Token;

const ADDRESS: &str = "http://169.254.169.254";
const ADDRESS_IPV6: &str = "http://[fd00:ec2::254]";
/// Lifetime of a session token: the maximum that the service allows.
const TOKEN_SECONDS: u64 = 21_600;
/// The header with the lifetime of a session token, in seconds.
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";
/// Only the response with the token is subject to the IP hop limit.
const HOP_LIMIT: &str = "; in a container the instance's hop limit must be 2: aws ec2 \
                         modify-instance-metadata-options --http-put-response-hop-limit 2";
/// Requests per second; the instance as a whole may send about a thousand packets per second.
const REQUESTS_A_SECOND: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The default of `AWS_METADATA_SERVICE_TIMEOUT`.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The default and the maximum of `AWS_METADATA_SERVICE_NUM_ATTEMPTS`.
const DEFAULT_ATTEMPTS: u32 = 3;
const MAX_ATTEMPTS: u32 = 10;
/// The delay before another attempt. No stop interrupts it, because it is short.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
/// Maximum size of a response, in bytes.
const MAX_RESPONSE: u64 = 1 << 20;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataError {
    /// The path does not exist: normal for notices.
    Absent,
    /// The service is disabled, for the instance or for this process.
    Disabled,
    /// There is no usable response: why, and what to do.
    Unusable(String),
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the instance metadata service does not have this item"),
            Self::Disabled => f.write_str(
                "the instance metadata service is disabled; enable it for the instance, or unset \
                 AWS_EC2_METADATA_DISABLED",
            ),
            Self::Unusable(why) => write!(f, "the instance metadata service cannot be used: {why}"),
        }
    }
}

/// An item of the metadata.
pub struct Item {
    /// The trimmed text.
    pub text: String,
    /// The `Date` of the response.
    pub at: Option<SystemTime>,
}

/// A client of the metadata service; shared by threads.
pub struct Metadata {
    base: String,
    is_disabled: bool,
    attempts: u32,
    agent: Agent,
    session: Mutex<Session>,
}

#[derive(Default)]
struct Session {
    /// The session token, and when it must be renewed.
    token: Option<(Token, Instant)>,
    /// The times of the last requests.
    recent: VecDeque<Instant>,
}

impl Metadata {
    /// The client of this process; there is one, because it limits the request rate.
    pub fn of_process() -> &'static Self {
        static CLIENT: OnceLock<Metadata> = OnceLock::new();
        CLIENT.get_or_init(|| Self::new(&|name| std::env::var(name).ok().filter(|value| !value.is_empty())))
    }

    /// A client configured by the environment variables of the AWS tools.
    pub fn new(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let is = |name: &str, value: &str| variable(name).is_some_and(|given| given.eq_ignore_ascii_case(value));
        let address = if is("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6") { ADDRESS_IPV6 } else { ADDRESS };
        let base = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| address.to_owned());
        let seconds = variable("AWS_METADATA_SERVICE_TIMEOUT").and_then(|text| text.parse::<f64>().ok());
        let timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let timeout = timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(RESPONSE_TIMEOUT);
        let attempts = variable("AWS_METADATA_SERVICE_NUM_ATTEMPTS").and_then(|text| text.parse().ok());
        let config = crate::http::plain_config()
            .proxy(None)
            .user_agent("mayfly")
            .allow_non_standard_methods(true)
            .max_idle_age(Duration::from_secs(10))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(timeout.max(CONNECT_TIMEOUT)));
        Self {
            base: base.trim_end_matches('/').to_owned(),
            is_disabled: is("AWS_EC2_METADATA_DISABLED", "true"),
            attempts: attempts.unwrap_or(DEFAULT_ATTEMPTS).clamp(1, MAX_ATTEMPTS),
            agent: config.build().into(),
            session: Mutex::default(),
        }
    }

    /// Reads `path` below `/latest/`, with retries if there is no usable response. Errors: see [`MetadataError`].
    pub fn get(&self, path: &str) -> Result<Item, MetadataError> {
        for failures in 0..self.attempts - 1 {
            match self.get_once(path) {
                Err(MetadataError::Unusable(why)) => {
                    log::debug!("retrying the metadata service path={path} error={why}");
                    thread::sleep(RETRY.delay(failures));
                }
                outcome => return outcome,
            }
        }
        self.get_once(path)
    }

    /// Reads `path` without retries, for a caller that polls.
    pub fn get_once(&self, path: &str) -> Result<Item, MetadataError> {
        if self.is_disabled {
            return Err(MetadataError::Disabled);
        }
        let mut session = sync::lock(&self.session);
        let had_token = session.token.is_some();
        let response = self.request_item(&mut session, path)?;
        if response.status != 401 || !had_token {
            return item_of_response(response);
        }
        // The token may have expired while the machine slept, or the service was restarted.
        session.token = None;
        item_of_response(self.request_item(&mut session, path)?)
    }

    fn request_item(&self, session: &mut Session, path: &str) -> Result<Response, MetadataError> {
        let token = self.token(session)?;
        session.pace();
        let request = http::Request::get(format!("{}/latest/{path}", self.base))
            .header("X-aws-ec2-metadata-token", token.reveal())
            .body(());
        self.exchange(request, "")
    }

    fn token(&self, session: &mut Session) -> Result<Token, MetadataError> {
        if let Some((token, _)) = session.token.as_ref().filter(|(_, end)| Instant::now() < *end) {
            return Ok(token.clone());
        }
        session.pace();
        let request = http::Request::put(format!("{}/latest/api/token", self.base))
            .header(TTL, TOKEN_SECONDS.to_string())
            .header("Content-Length", "0")
            .body(());
        let began = Instant::now();
        let response = self.exchange(request, HOP_LIMIT)?;
        let seconds = response.headers.get(TTL).and_then(|text| text.to_str().ok()?.parse().ok());
        let life = Duration::from_secs(seconds.unwrap_or(TOKEN_SECONDS).min(TOKEN_SECONDS));
        let text = match item_of_response(response) {
            Err(MetadataError::Absent) => {
                return Err(MetadataError::Unusable(
                    "it returns 404 for IMDSv2 tokens, so it is not the service of EC2".to_owned(),
                ));
            }
            settled => settled?.text,
        };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=+/.".contains(&byte)) {
            return Err(MetadataError::Unusable("it returned an invalid token".to_owned()));
        }
        let token = Token::new(text);
        session.token = Some((token.clone(), began + life.saturating_sub(life / 10)));
        Ok(token)
    }

    /// Sends one request. `hint` is added to the error if the service accepts the connection but does not respond.
    fn exchange(&self, request: Result<http::Request<()>, http::Error>, hint: &str) -> Result<Response, MetadataError> {
        let request = request.map_err(|why| MetadataError::Unusable(format!("{}: {why}", self.base)))?;
        let describe = |error: ureq::Error| {
            let is_connected = matches!(&error, ureq::Error::Timeout(reason) if !matches!(reason, Timeout::Connect));
            MetadataError::Unusable(format!("{}: {error}{}", self.base, if is_connected { hint } else { "" }))
        };
        let mut response = self.agent.run(request).map_err(describe)?;
        let text = response.body_mut().with_config().limit(MAX_RESPONSE).read_to_string().map_err(describe)?;
        Ok(Response { status: response.status().as_u16(), headers: response.headers().clone(), text })
    }
}

struct Response {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

/// Maps the HTTP status.
fn item_of_response(response: Response) -> Result<Item, MetadataError> {
    match response.status {
        200 => {
            let at = response.headers.get("Date").and_then(|date| http_date(date.to_str().ok()?));
            Ok(Item { text: response.text.trim().to_owned(), at })
        }
        403 => Err(MetadataError::Disabled),
        404 => Err(MetadataError::Absent),
        status => Err(MetadataError::Unusable(format!("status {status}"))),
    }
}

impl Session {
    /// Waits until the request rate allows one more request. The lock is held meanwhile, so that all threads together
    /// keep the rate.
    fn pace(&mut self) {
        if self.recent.len() == REQUESTS_A_SECOND
            && let Some(oldest) = self.recent.pop_front()
        {
            thread::sleep(Duration::from_secs(1).saturating_sub(oldest.elapsed()));
        }
        self.recent.push_back(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::TestServer;

    const TOKEN: &str =
        "HTTP/1.1 200 OK\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 5\r\n\r\nTOKEN";

    fn client(server: &TestServer, more: &[(&str, &str)]) -> Metadata {
        Metadata::new(&|name| match name {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT" => Some(format!("{}/", server.url)),
            name => more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        })
    }

    fn answer(status: u16, text: &str) -> String {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{text}", text.len())
    }

    #[test]
    fn one_session_token_serves_all_requests() {
        let server = TestServer::new(&[TOKEN, &answer(200, "i-1\n"), &answer(404, "")]);
        let client = client(&server, &[]);
        assert_eq!(client.get("meta-data/instance-id").expect("the instance id").text, "i-1");
        assert_eq!(client.get("meta-data/spot/instance-action").err(), Some(MetadataError::Absent));
        let seen = server.seen();
        assert!(seen[0].head.starts_with("put /latest/api/token "), "{}", seen[0].head);
        assert_eq!(seen[0].header("x-aws-ec2-metadata-token-ttl-seconds"), Some("21600"));
        assert_eq!(seen[0].header("x-forwarded-for"), None);
        assert!(seen[1].head.starts_with("get /latest/meta-data/instance-id "));
        assert_eq!(seen[2].header("x-aws-ec2-metadata-token"), Some("token"));
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_token_that_is_refused_is_replaced() {
        let server =
            TestServer::new(&[TOKEN, &answer(200, "a"), &answer(401, ""), TOKEN, &answer(200, "b"), &answer(401, "")]);
        let client = client(&server, &[]);
        assert_eq!(client.get("x").expect("an item").text, "a");
        assert_eq!(client.get("x").expect("an item").text, "b");
    }

    #[test]
    fn a_token_is_replaced_before_its_end() {
        let short = TOKEN.replace("21600", "0");
        let server = TestServer::new(&[&short, &answer(200, "a"), TOKEN, &answer(200, "b")]);
        let client = client(&server, &[]);
        assert_eq!(client.get("x").expect("an item").text, "a");
        assert_eq!(client.get("x").expect("an item").text, "b");
    }

    #[test]
    fn retries_without_an_answer() {
        let server = TestServer::new(&[TOKEN, &answer(503, ""), "", &answer(200, "a"), &answer(503, "")]);
        let client = client(&server, &[]);
        assert_eq!(client.get("x").expect("an item").text, "a");
        assert!(matches!(client.get_once("x"), Err(MetadataError::Unusable(why)) if why.contains("503")));
    }

    #[test]
    fn explains_errors_of_the_service() {
        let off = TestServer::new(&[&answer(403, "")]);
        assert_eq!(client(&off, &[]).get("x").err(), Some(MetadataError::Disabled));
        let disabled = client(&off, &[("AWS_EC2_METADATA_DISABLED", "true")]);
        assert_eq!(disabled.get("x").err(), Some(MetadataError::Disabled));
        assert_eq!(off.seen().len(), 1, "a disabled service gets no request");
        let one = [("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")];
        for (answer, part) in
            [(answer(404, ""), "not the service of EC2"), (answer(200, "<html>\n"), "an invalid token")]
        {
            let server = TestServer::new(&[&answer]);
            let why = client(&server, &one).get("x").err().expect("must be refused").to_string();
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn a_missing_session_token_gets_a_hint() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", silent.local_addr().expect("an address"));
        let client = Metadata::new(&|name| match name {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT" => Some(url.clone()),
            "AWS_METADATA_SERVICE_NUM_ATTEMPTS" => Some("1".to_owned()),
            _ => None,
        });
        let why = client.get("x").err().expect("must be refused").to_string();
        assert!(why.contains("hop limit"), "{why}");
    }

    #[test]
    fn keeps_its_request_rate() {
        let answers: Vec<String> = (0..12).map(|_| answer(404, "")).collect();
        let all: Vec<&str> = [TOKEN].into_iter().chain(answers.iter().map(String::as_str)).collect();
        let server = TestServer::new(&all);
        let client = client(&server, &[]);
        let began = Instant::now();
        for _ in 0..12 {
            assert!(client.get_once("x").is_err());
        }
        assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    }
}
