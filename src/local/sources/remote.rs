//! Files at URLs, over HTTP.

use std::io::Read;
use std::time::Duration;

use crate::http::tls::TlsFiles;
use crate::http::{Method, Outgoing, Timeouts, Transfer, resolve};
use crate::pipeline::request::SourceError;
use crate::version::user_agent;

const TIMEOUTS: Timeouts = Timeouts { total: Duration::from_secs(60), response: Duration::from_secs(30) };
const MAX_REDIRECTS: usize = 5;

/// Fetches a URL; reads at most `limit` + 1 bytes.
pub fn get(url: &str, limit: usize) -> Result<Vec<u8>, SourceError> {
    let failed = |why: String| SourceError::Failed(format!("{url} cannot be fetched: {why}"));
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err(SourceError::Missing(format!("`{url}` is not an http or https URL")));
    }
    let mut target = url.to_owned();
    for _ in 0..=MAX_REDIRECTS {
        let transfer = Transfer::new(&target, &TlsFiles::default(), &user_agent(), TIMEOUTS);
        let response = transfer
            .and_then(|transfer| transfer.send(Method::Get, &target, &[], Outgoing::Nothing))
            .map_err(|error| failed(error.to_string()))?;
        match response.status {
            200 => {
                let mut body = Vec::new();
                let read = response.into_reader().take(limit as u64 + 1).read_to_end(&mut body);
                return read.map(|_| body).map_err(|error| failed(error.to_string()));
            }
            301 | 302 | 303 | 307 | 308 => {
                let location = response.header("Location").unwrap_or_default().to_owned();
                target = resolve(&target, &location).map_err(|error| failed(error.to_string()))?;
            }
            404 => return Err(SourceError::Missing(format!("{url} does not exist (404)"))),
            _ => return Err(failed(response.status_line())),
        }
    }
    Err(failed(format!("more than {MAX_REDIRECTS} redirects")))
}
