//! Verification of Signature Version 4, written from the AWS documentation independently of the code under test.

use ring::{digest, hmac};

use crate::support::http::Request;

/// The expected signer and scope.
pub struct Expected<'a> {
    pub access_key: &'a str,
    pub secret_key: &'a str,
    pub session_token: Option<&'a str>,
    pub region: &'a str,
    pub service: &'a str,
}

/// Verifies the signature of a request. The error says what is wrong.
pub fn check(request: &Request, expected: &Expected<'_>) -> Result<(), String> {
    let fields = request.header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").ok_or("it is not signed")?;
    let field = |name: &str| {
        let found = fields.split(", ").find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        found.ok_or_else(|| format!("the signature has no {name}"))
    };
    let (credential, signed, signature) = (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
    let time = request.header("x-amz-date");
    let date = time.get(..8).ok_or("there is no X-Amz-Date")?;
    let scope = format!("{date}/{}/{}/aws4_request", expected.region, expected.service);
    if credential != format!("{}/{scope}", expected.access_key) {
        return Err(format!("the credential {credential} is not for {}/{scope}", expected.access_key));
    }
    if is_far(time) {
        return Err(format!("the time of the signature is {time}"));
    }
    let names: Vec<&str> = signed.split(';').collect();
    let mut required = vec!["host", "x-amz-date", "content-type"];
    if let Some(token) = expected.session_token {
        required.push("x-amz-security-token");
        if request.header("x-amz-security-token") != token {
            return Err("the session token is not the one that belongs to the keys".to_owned());
        }
    }
    if let Some(missing) = required.iter().find(|name| !names.contains(name)) {
        return Err(format!("the header {missing} is not signed"));
    }
    if !names.is_sorted() {
        return Err(format!("the signed headers are not in order: {signed}"));
    }
    let headers: String = names.iter().map(|name| format!("{name}:{}\n", request.header(name))).collect();
    let body = hex(digest::digest(&digest::SHA256, &request.body).as_ref());
    let canonical = format!("{}\n{}\n{}\n{headers}\n{signed}\n{body}", request.method, request.path, request.query);
    let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}");
    let mut key = format!("AWS4{}", expected.secret_key).into_bytes();
    for part in scope.split('/') {
        key = mac(&key, part);
    }
    match hex(&mac(&key, &text)) == signature {
        true => Ok(()),
        false => Err(format!("the signature does not fit the request:\n{canonical}")),
    }
}

/// Whether a time differs by more than five minutes from now.
fn is_far(time: &str) -> bool {
    let Ok(moment) = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time) else { return true };
    let moment = jiff::tz::Offset::UTC.to_timestamp(moment).expect("a time");
    (moment.as_second() - jiff::Timestamp::now().as_second()).abs() > 300
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
