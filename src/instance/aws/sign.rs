//! AWS Signature Version 4, as `Authorization` header and as presigned URL.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use ring::hmac;

use crate::digest::{hex, sha256};

use super::credentials::AwsCredentials;
use crate::http::escape;

/// The region and the service of a signature.
#[derive(Clone, Copy, Debug)]
pub struct CredentialScope<'a> {
    /// Such as `eu-central-1`.
    pub region: &'a str,
    /// Such as `s3`.
    pub service: &'a str,
}

/// A request to sign.
#[derive(Clone, Debug)]
pub struct SignedRequest<'a> {
    /// `GET`, `PUT`, …
    pub method: &'a str,
    /// `https` or `http`.
    pub scheme: &'a str,
    /// With the port, unless it is the default.
    pub host: &'a str,
    /// Not escaped.
    pub path: &'a str,
    /// Names and values, not escaped.
    pub query: Vec<(String, String)>,
    /// Headers that are sent and signed besides `Host`.
    pub headers: Vec<(String, String)>,
}

/// A URL with its signature. Its holder may make this request, with these headers, until it expires.
pub fn presign(
    target: &SignedRequest<'_>,
    credentials: &AwsCredentials,
    scope: CredentialScope<'_>,
    now: Timestamp,
    expires: Duration,
) -> String {
    let stamp = SigningTime::new(now);
    let headers = canonical_headers(target, &[]);
    let mut query = target.query.clone();
    let mut add = |name: &str, value: String| query.push((name.to_owned(), value));
    add("X-Amz-Algorithm", ALGORITHM.to_owned());
    add("X-Amz-Credential", format!("{}/{}", credentials.access_key, stamp.scope(scope)));
    add("X-Amz-Date", stamp.time.clone());
    add("X-Amz-Expires", expires.as_secs().to_string());
    add("X-Amz-SignedHeaders", names(&headers));
    if let Some(token) = &credentials.session_token {
        add("X-Amz-Security-Token", token.reveal().to_owned());
    }
    let query = canonical_query(&query);
    let path = canonical_path(target.path, scope);
    let signature = stamp.sign(&request(target.method, &path, &query, &headers, UNSIGNED), credentials, scope);
    let path = escape(target.path, b"/");
    format!("{}://{}{path}?{query}&X-Amz-Signature={signature}", target.scheme, target.host)
}

/// The headers that authorize a request with this body, in addition to its own.
pub fn authorize(
    target: &SignedRequest<'_>,
    body: &[u8],
    credentials: &AwsCredentials,
    scope: CredentialScope<'_>,
    now: Timestamp,
) -> Vec<(String, String)> {
    let stamp = SigningTime::new(now);
    let mut added = vec![("X-Amz-Date".to_owned(), stamp.time.clone())];
    if let Some(token) = &credentials.session_token {
        added.push(("X-Amz-Security-Token".to_owned(), token.reveal().to_owned()));
    }
    let headers = canonical_headers(target, &added);
    let path = canonical_path(target.path, scope);
    let request = request(target.method, &path, &canonical_query(&target.query), &headers, &sha256(body));
    let signature = stamp.sign(&request, credentials, scope);
    let authorization = format!(
        "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={signature}",
        credentials.access_key,
        stamp.scope(scope),
        names(&headers)
    );
    added.push(("Authorization".to_owned(), authorization));
    added
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// A time in the formats of signatures.
struct SigningTime {
    date: String,
    time: String,
}

impl SigningTime {
    fn new(now: Timestamp) -> Self {
        Self { date: now.strftime("%Y%m%d").to_string(), time: now.strftime("%Y%m%dT%H%M%SZ").to_string() }
    }

    fn scope(&self, scope: CredentialScope<'_>) -> String {
        format!("{}/{}/{}/aws4_request", self.date, scope.region, scope.service)
    }

    fn sign(&self, request: &str, credentials: &AwsCredentials, scope: CredentialScope<'_>) -> String {
        let text = format!("{ALGORITHM}\n{}\n{}\n{}", self.time, self.scope(scope), sha256(request.as_bytes()));
        let mut key = format!("AWS4{}", credentials.secret_key.reveal()).into_bytes();
        for part in [self.date.as_str(), scope.region, scope.service, "aws4_request"] {
            key = mac(&key, part);
        }
        hex(&mac(&key, &text))
    }
}

fn request(method: &str, path: &str, query: &str, headers: &[(String, String)], body: &str) -> String {
    let mut lines = String::new();
    for (name, value) in headers {
        let _ = writeln!(lines, "{name}:{value}");
    }
    format!("{method}\n{path}\n{query}\n{lines}\n{}\n{body}", names(headers))
}

fn canonical_headers(target: &SignedRequest<'_>, added: &[(String, String)]) -> Vec<(String, String)> {
    let host = [("host".to_owned(), target.host.to_owned())];
    let all = host.iter().chain(&target.headers).chain(added);
    let mut headers: Vec<_> = all
        .map(|(name, value)| {
            (name.to_ascii_lowercase(), value.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
        })
        .collect();
    headers.sort_unstable();
    headers
}

fn names(headers: &[(String, String)]) -> String {
    headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";")
}

fn canonical_query(query: &[(String, String)]) -> String {
    let mut pairs: Vec<_> = query.iter().map(|(name, value)| (escape(name, b""), escape(value, b""))).collect();
    pairs.sort_unstable();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// S3 signs the path as it is sent; the other services escape it a second time.
fn canonical_path(path: &str, scope: CredentialScope<'_>) -> String {
    let once = escape(path, b"/");
    if scope.service == "s3" { once } else { escape(&once, b"/") }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target<'a>(host: &'a str, path: &'a str) -> SignedRequest<'a> {
        SignedRequest { method: "GET", scheme: "https", host, path, query: Vec::new(), headers: Vec::new() }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn signature(headers: &[(String, String)]) -> &str {
        headers
            .iter()
            .find(|(name, _)| name == "Authorization")
            .expect("the header")
            .1
            .rsplit('=')
            .next()
            .expect("a value")
    }

    /// The examples of the S3 manual ("Authenticating Requests").
    #[test]
    fn signs_the_examples_of_s3() {
        let credentials = AwsCredentials::fixed("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let scope = CredentialScope { region: "us-east-1", service: "s3" };
        let now = "2013-05-24T00:00:00Z".parse().expect("a time");
        let host = "examplebucket.s3.amazonaws.com";
        let url = presign(&target(host, "/test.txt"), &credentials, scope, now, Duration::from_secs(86_400));
        let expected = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert!(url.ends_with(&format!("&X-Amz-Signature={expected}")), "{url}");

        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let headers = pairs(&[("Range", "bytes=0-9"), ("x-amz-content-sha256", empty)]);
        let signed = authorize(&SignedRequest { headers, ..target(host, "/test.txt") }, b"", &credentials, scope, now);
        assert_eq!(signature(&signed), "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
    }

    /// Cases of the published test suite for Signature Version 4.
    #[test]
    fn signs_the_cases_of_the_test_suite() {
        let credentials = AwsCredentials::fixed("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let scope = CredentialScope { region: "us-east-1", service: "service" };
        let now = "2015-08-30T12:36:00Z".parse().expect("a time");
        let plain = target("example.amazonaws.com", "/");
        let query = pairs(&[("Param2", "value2"), ("Param1", "value1")]);
        let one = pairs(&[("Param1", "value1")]);
        let post = SignedRequest { method: "POST", ..plain.clone() };
        let spaces = pairs(&[("My-Header2", " \"a   b   c\" "), ("My-Header1", "  value1 ")]);
        let unreserved = "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        for (name, target, expected) in [
            ("get-vanilla", plain.clone(), "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            (
                "get-vanilla-query-order-key-case",
                SignedRequest { query, ..plain.clone() },
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            ("post-vanilla", post.clone(), "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            (
                "get-vanilla-empty-query-key",
                SignedRequest { query: one.clone(), ..plain.clone() },
                "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
            ),
            (
                "post-vanilla-query",
                SignedRequest { query: one, ..post.clone() },
                "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
            ),
            (
                "post-header-key-sort",
                SignedRequest { headers: pairs(&[("My-Header1", "value1")]), ..post },
                "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
            (
                "get-header-value-trim",
                SignedRequest { headers: spaces, ..plain.clone() },
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
            (
                "get-unreserved",
                target("example.amazonaws.com", unreserved),
                "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
            ),
        ] {
            let signed = authorize(&target, b"", &credentials, scope, now);
            assert_eq!(signature(&signed), expected, "{name}");
        }
    }

    /// `post-x-www-form-urlencoded` and `post-sts-header-before` of the same suite.
    #[test]
    fn signs_a_body_and_a_session_token() {
        let mut credentials = AwsCredentials::fixed("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let scope = CredentialScope { region: "us-east-1", service: "service" };
        let now = "2015-08-30T12:36:00Z".parse().expect("a time");
        let post = SignedRequest { method: "POST", ..target("example.amazonaws.com", "/") };
        let headers = pairs(&[("Content-Type", "application/x-www-form-urlencoded")]);
        let form = authorize(&SignedRequest { headers, ..post.clone() }, b"Param1=value1", &credentials, scope, now);
        assert_eq!(signature(&form), "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a");
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqT\
                     flfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU\
                     9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSY\
                     vKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        credentials.session_token = Some(crate::token::Token::new(token));
        let lent = authorize(&post, b"", &credentials, scope, now);
        assert_eq!(signature(&lent), "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead");
    }

    #[test]
    fn escapes_a_path_once_for_s3_and_twice_elsewhere() {
        let s3 = CredentialScope { region: "r", service: "s3" };
        assert_eq!(canonical_path("/a b/ü~", s3), "/a%20b/%C3%BC~");
        assert_eq!(canonical_path("/a b", CredentialScope { service: "sts", ..s3 }), "/a%2520b");
    }
}
