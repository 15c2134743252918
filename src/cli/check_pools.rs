//! The checks of `lint` and `check` for the pools of a manager.

use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::report::Report;
use crate::config::Config;
use crate::config::manager::Manager;
use crate::http::chain;
use crate::manager::engine::{self, CheckResult};
use crate::manager::pool::PoolSettings;
use crate::manager::server::certificate;
use crate::manager::{findings, settings};
use crate::monitor::address;

/// The manager's certificate should be renewed this long before it expires.
const RENEWAL: Duration = Duration::from_secs(14 * 24 * 3600);

/// The findings of `lint`, from the configuration file alone.
#[derive(Default)]
pub struct PoolFindings {
    /// Errors: pools that cannot be used, each with the reason.
    pub errors: Vec<String>,
    /// Warnings: settings that contradict each other.
    pub warnings: Vec<String>,
    /// The number of pools without errors.
    pub usable: usize,
}

/// Checks the pools of a manager's configuration without network access.
pub fn lint(config: &Config) -> PoolFindings {
    let settings = match settings::read(config.clone()) {
        Ok(settings) => settings,
        Err(why) => return PoolFindings { errors: vec![why], ..PoolFindings::default() },
    };
    let warning = |pool: &PoolSettings| {
        let name = pool.name.clone();
        findings::warnings(pool).into_iter().map(move |finding| format!("pool `{name}`: {finding}"))
    };
    PoolFindings {
        warnings: settings.pools.iter().flat_map(warning).collect(),
        usable: settings.pools.len(),
        errors: settings.refused,
    }
}

/// Checks the manager and each pool, with requests to GitLab and to the engine.
pub fn check(report: &mut Report, config: &Config) {
    let settings = match settings::read(config.clone()) {
        Ok(settings) => settings,
        Err(why) => return report.fail("pools", &why),
    };
    for why in &settings.refused {
        report.fail("pools", why);
    }
    check_listener(report, &settings.manager);
    check_certificate(report, &settings.manager);
    for pool in &settings.pools {
        check_pool(report, pool);
    }
}

fn check_listener(report: &mut Report, manager: &Manager) {
    match address::bind(&manager.listen) {
        Ok(_) => report.ok("listen", &format!("{} is free", manager.listen)),
        Err(why) => report.warn(
            "listen",
            &format!("`listen = \"{}\"`: {why}; unless the manager runs already, free the port", manager.listen),
        ),
    }
}

/// Checks that the certificate and key can be read and match, prints the host names of the certificate, and warns
/// before it expires.
fn check_certificate(report: &mut Report, manager: &Manager) {
    let Some((certificate, key)) = &manager.certificate else {
        return report.warn(
            "certificate",
            "plain HTTP: agents send their tokens, and get the variables of jobs, without encryption; use it only where \
             nothing else is on the network",
        );
    };
    if let Err(why) = certificate::load(certificate, key) {
        return report.fail("certificate", &format!("{why}; correct certificate_file or key_file"));
    }
    let pem = std::fs::read(certificate).unwrap_or_default();
    let der = CertificateDer::pem_slice_iter(&pem).next().and_then(Result::ok);
    let Some(read) = der.and_then(|der| chain::read(&der)) else {
        return report.warn("certificate", &format!("{}: its names cannot be read", certificate.display()));
    };
    if read.names().is_empty() {
        return report.fail(
            "certificate",
            "it names no host (subjectAltName), so agents refuse it; make one with the name in their `url`",
        );
    }
    let (names, ends) = (read.names().join(", "), read.not_after());
    let now = UnixTime::now();
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + RENEWAL);
    if let Err(why) = read.check_dates(now) {
        report.fail("certificate", &format!("for {names}, until {ends}: {why:?}, so agents refuse it; renew it"));
    } else if read.check_dates(soon).is_err() {
        report.warn("certificate", &format!("for {names}; it ends {ends}: renew it, and send SIGHUP"));
    } else {
        report.ok("certificate", &format!("for {names}, until {ends}; the `url` of agents must have such a name"));
    }
}

fn check_pool(report: &mut Report, pool: &PoolSettings) {
    let subject = format!("pool `{}`", pool.name);
    for finding in findings::warnings(pool) {
        report.warn(&subject, &finding);
    }
    let engine = engine::for_pool(&pool.engine, &pool.name);
    for check in engine.check(pool.max_instances).into_iter().chain(engine.check_permissions()) {
        let subject = format!("{subject}: {}", check.subject);
        match check.result {
            CheckResult::Passed => report.ok(&subject, &check.text),
            CheckResult::Warning => report.warn(&subject, &check.text),
            CheckResult::Failed => report.fail(&subject, &check.text),
        }
    }
}
