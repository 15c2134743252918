//! HTTP redirects of git: followed only if they stay on the same host.
//!
//! Git can follow every redirect or none. The agent disables them, since a repository may name any address for its
//! submodules, and that address may redirect to a server that only this machine can reach. But GitLab redirects an
//! address without `.git` to the one with `.git`, and servers redirect from http to https. So after a failed fetch, the
//! agent requests the address and reads the target of the redirect. If the target is on the same host, git uses the
//! target.

use std::io::{self, BufRead, BufReader, Read};
use std::process::Stdio;

use super::{SourcesError, SourcesPlan, external, git};
use crate::http::{is_same_server, origin, resolve};

/// Limit for consecutive redirects.
const MAX_HOPS: usize = 5;

/// Limit for git's trace of its requests, in bytes.
const MAX_TRACE_SIZE: u64 = 1 << 20;

/// The path that git appends to an address in its first request.
const FIRST_REQUEST: &str = "/info/refs?service=git-upload-pack";

/// Makes git use the targets of redirects from these addresses. Returns whether any address redirects.
pub fn follow(plan: &SourcesPlan, addresses: &[String]) -> Result<bool, SourcesError> {
    let mut rules = Vec::new();
    let mut moved = false;
    for address in addresses.iter().filter(|address| address.starts_with("http")).chain([&plan.url]) {
        let target = target(plan, address)?;
        moved |= target.is_some();
        // A rule applies to every address with the same prefix, so each address gets its own rule.
        let target = target.unwrap_or_else(|| address.clone());
        rules.push((address.clone(), with_login(plan, &target)));
    }
    if moved {
        external::write(plan, &rules)?;
    }
    Ok(moved)
}

/// The final target of an address, if it is another address on the same host.
fn target(plan: &SourcesPlan, address: &str) -> io::Result<Option<String>> {
    let mut at = address.to_owned();
    for _ in 0..MAX_HOPS {
        let Some(location) = location(plan, &at)? else { break };
        let first_request = format!("{}{FIRST_REQUEST}", at.trim_end_matches('/'));
        let next = resolve(&first_request, &location).ok();
        let next = next.as_deref().and_then(|next| next.strip_suffix(FIRST_REQUEST));
        match next.filter(|next| stays_on_host(&at, next)) {
            Some(next) => at = next.to_owned(),
            None => {
                println!("{} redirects to another host; git does not follow", origin(&at));
                break;
            }
        }
    }
    Ok((at != address).then_some(at))
}

/// Whether a redirect stays on the same server, or on the same host and adds encryption.
fn stays_on_host(from: &str, to: &str) -> bool {
    let encrypted = origin(from).replacen("http://", "https://", 1);
    is_same_server(from, to) || (origin(from).starts_with("http://") && is_same_server(&encrypted, to))
}

/// The `Location` header in the server's response to git.
fn location(plan: &SourcesPlan, address: &str) -> io::Result<Option<String>> {
    let include = format!("include.path={}", plan.external_config().display());
    let mut child = git::command(plan, &plan.project, &["-c", &include, "ls-remote", "--", address, "HEAD"])
        // The trace shows headers without secrets and without bodies; only the agent reads it.
        .env("GIT_TRACE_CURL", "1")
        .env("GIT_TRACE_CURL_NO_DATA", "1")
        .env("LC_ALL", "C")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut found = None;
    if let Some(trace) = child.stderr.take() {
        for line in BufReader::new(trace.take(MAX_TRACE_SIZE)).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            let Some((_, header)) = line.split_once("<= Recv header: ") else { continue };
            match header.split_once(':') {
                // Git first sends a request without credentials, then one with them. The last response counts.
                None if header.starts_with("HTTP/") => found = None,
                Some((name, value)) if name.eq_ignore_ascii_case("location") => found = Some(value.trim().to_owned()),
                _ => {}
            }
        }
    }
    child.wait()?;
    Ok(found)
}

/// The address with the job's credentials, if the job's rewrites contain its host.
fn with_login(plan: &SourcesPlan, address: &str) -> String {
    let host = |url: &str| origin(url).split_once("://").map(|(_, host)| host.to_owned());
    let logins = plan.rewrites.iter().filter(|(from, _)| host(from) == host(address));
    let login = logins.filter_map(|(_, to)| to.split_once("://")?.1.split_once('@').map(|(login, _)| login)).next();
    match (login, address.split_once("://")) {
        (Some(login), Some((scheme, rest))) if !rest.split('/').next().unwrap_or_default().contains('@') => {
            format!("{scheme}://{login}@{rest}")
        }
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_stays_on_its_host() {
        for (from, to) in [
            ("https://h/a", "https://h/a.git"),
            ("https://h:443/a", "https://h/b"),
            ("http://h/a", "https://h/a"),
            ("http://h:8080/a", "http://h:8080/b"),
        ] {
            assert!(stays_on_host(from, to), "{from} {to}");
        }
        for (from, to) in [
            ("https://h/a", "http://h/a"),
            ("https://h/a", "https://h.evil/a"),
            ("https://h/a", "https://h@evil/a"),
            ("http://h/a", "http://169.254.169.254/a"),
            ("http://h/a", "http://h:81/a"),
            ("http://h/a", "https://h:8443/a"),
        ] {
            assert!(!stays_on_host(from, to), "{from} {to}");
        }
    }
}
