//! Checks a runner's server: the TLS chain, the token, and the clock.

use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use super::TIMEOUT;
use crate::agent;
use crate::cli::report::Report;
use crate::config::{Config, Runner};
use crate::coordinator::gitlab::{ApiError, GitLab, TokenStatus};
use crate::http::{self, diagnose::diagnose};
use crate::sync;

/// With a larger clock error, checks of certificates and tokens can fail.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);
/// The stack size, in bytes, of the thread that calls GitLab.
const VERIFY_STACK: usize = 1 << 20;

/// Checks that the server of a runner (`subject`) is trusted and knows the runner's token.
pub fn check(report: &mut Report, subject: &str, config: &Config, runner: &Runner, system_id: &str) {
    match (&runner.token_reference, runner.token.is_empty()) {
        (Some(reference), true) => {
            return report
                .warn(subject, &format!("not checked with GitLab: the token {reference} could not be fetched"));
        }
        (None, true) => return report.fail(subject, "`token` is empty; register the runner again"),
        (_, false) => {}
    }
    let handshake = runner.url.starts_with("https://").then(|| diagnose(&runner.url, &runner.tls));
    let gitlab = match agent::gitlab(config, runner) {
        Ok(gitlab) => Arc::new(gitlab),
        Err(why) => return report.fail(subject, &why),
    };
    let Some(status) = verify_token(&gitlab, runner, system_id) else {
        let (server, seconds) = (http::origin(&runner.url), TIMEOUT.as_secs());
        let why = format!("{server} does not answer within {seconds} seconds; check DNS, the firewall and the proxy");
        return report.fail(subject, &why);
    };
    match (handshake, &status) {
        (Some(Ok(text)), _) => report.ok(subject, &text),
        // GitLab answered over TLS, so the failed handshake is due to the proxy.
        (Some(Err(why)), Ok(_)) => report.warn(subject, &format!("the TLS chain could not be checked: {why}")),
        (Some(Err(why)), Err(_)) => return report.fail(subject, &why),
        (None, _) if is_loopback(&runner.url) => {}
        (None, _) => report
            .warn(subject, "`url` is plain http: everyone on the network path can read tokens and sources; use https"),
    }
    report_token(report, subject, runner, status);
    if let Some(date) = gitlab.server_date() {
        check_clock(report, date);
    }
}

fn report_token(report: &mut Report, subject: &str, runner: &Runner, status: Result<TokenStatus, ApiError>) {
    let server = http::origin(&runner.url);
    let error = match status {
        Ok(TokenStatus::Valid(_)) => return report.ok(subject, &format!("the token is valid at {server}")),
        Ok(TokenStatus::Invalid) => {
            return report.fail(subject, &format!("{server} does not know the token; register the runner again"));
        }
        Err(error) => error,
    };
    let why = match (http::redirect_to_https(&runner.url, &runner.tls), &error) {
        (Some(target), _) => {
            format!("`url = \"{}\"`: the server redirects to {target}; write that address as `url`", runner.url)
        }
        (None, ApiError::Unreachable(_)) => {
            format!("the token cannot be verified: {error}; check `url`, DNS, the firewall and the proxy")
        }
        (None, ApiError::Refused(_) | ApiError::Status(..)) => format!("the token cannot be verified: {error}"),
    };
    report.fail(subject, &why);
}

/// Verifies the token; `None` if GitLab does not answer in time. The agent itself would wait for minutes.
fn verify_token(gitlab: &Arc<GitLab>, runner: &Runner, system_id: &str) -> Option<Result<TokenStatus, ApiError>> {
    let (sender, verdict) = mpsc::channel();
    let (client, token, system_id) = (Arc::clone(gitlab), runner.token.clone(), system_id.to_owned());
    let thread = sync::spawn("verify", VERIFY_STACK, move || {
        // The receiver is gone after the timeout.
        let _ = sender.send(client.verify(&token, &system_id));
    });
    thread.ok()?;
    verdict.recv_timeout(TIMEOUT).ok()
}

fn is_loopback(url: &str) -> bool {
    let origin = http::origin(url);
    let host = origin.trim_start_matches("http://");
    ["localhost", "127.", "[::1]"].iter().any(|prefix| host.starts_with(prefix))
}

fn check_clock(report: &mut Report, server: SystemTime) {
    let now = SystemTime::now();
    let off = now.duration_since(server).or_else(|_| server.duration_since(now)).unwrap_or_default();
    match off > CLOCK_TOLERANCE {
        true => report.warn(
            "clock",
            &format!("differs from the clock of GitLab by {} seconds; synchronise it (NTP)", off.as_secs()),
        ),
        false => report.ok("clock", "agrees with the clock of GitLab"),
    }
}
