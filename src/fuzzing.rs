//! The fuzz targets: each reader of untrusted bytes as a function that takes any bytes and must return.
//!
//! The targets of `fuzz/` call these functions with inputs that libFuzzer finds. The unit tests call these functions
//! with the corpora of `fuzz/corpus` and with mutations of them, so that each change passes a short run without the
//! tools for fuzzing.

mod archives;
mod servers;
mod sources;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::json;

use crate::archive::glob::GlobPattern;
use crate::config::Config;
use crate::pipeline::syntax;
use crate::{config, job, payload};

/// The name of a target and of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets; each has a file in `fuzz/fuzz_targets` and a directory in `fuzz/corpus`.
pub const TARGETS: [Target; 12] = [
    ("payload", payload),
    ("job_inputs", job_inputs),
    ("rules", sources::rules),
    ("pipeline", sources::pipeline),
    ("yaml", yaml),
    ("configuration", configuration),
    ("glob", glob),
    ("zip", archives::zip),
    ("tar", archives::tar),
    ("tar_zstd", archives::tar_zstd),
    ("gzip", archives::gzip),
    ("http", servers::http),
];

/// Returns the target with this name.
///
/// # Panics
///
/// Panics if no target has this name.
pub fn target(name: &str) -> fn(&[u8]) {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target).expect("the name of a target")
}

/// Decodes the input as a job payload.
fn payload(body: &[u8]) {
    match payload::decode(body) {
        Ok(mut payload) => {
            let _ = payload.is_protected();
            let _ = payload.timeout_seconds();
            let _ = job::inputs::fill_in(&mut payload);
        }
        Err(undecodable) => assert!(!undecodable.why.is_empty()),
    }
}

/// Interpolates the input as a script line with expressions of job inputs.
fn job_inputs(line: &[u8]) {
    let Ok(line) = std::str::from_utf8(line) else { return };
    let inputs = json!([
        {"key": "name", "value": {"type": "string", "content": "it's"}},
        {"key": "count", "value": {"type": "number", "content": 3}},
        {"key": "list", "value": {"type": "array", "content": ["a", 1.5, null]}},
        {"key": "secret", "value": {"type": "string", "content": "never shown", "sensitive": true}},
    ]);
    let body = json!({"id": 1, "token": "t", "inputs": inputs, "steps": [{"name": "script", "script": [line]}]});
    let mut payload = payload::decode(body.to_string().as_bytes()).expect("a payload");
    if job::inputs::fill_in(&mut payload).is_ok() {
        let shows = |text: &str| text.contains("never shown");
        assert!(shows(line) || !shows(&payload.steps[0].script[0]), "a sensitive input got into a script");
    }
}

/// Parses a YAML document, prints it, and parses the output: the result must be equal.
fn yaml(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let parse = |text: &str| syntax::parse(text, 0, &|line| line, &mut syntax::Budget::default());
    let Ok(document) = parse(text) else { return };
    if syntax::written_size(&document.root) > 1 << 20 {
        return;
    }
    let printed = syntax::print(&document.root);
    let again = parse(&printed).unwrap_or_else(|error| panic!("{}: {}\n{printed}", error.line, error.message));
    assert_eq!(again.root.to_json(), document.root.to_json(), "{printed}");
}

/// Parses the input as a `config.toml`.
fn configuration(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(config) = Config::parse(Path::new("/etc/mayfly/config.toml"), text) {
        let _ = config::state_dir(&config);
    }
}

/// Matches the pattern in the first line (`artifacts:paths`) against the paths in the other lines.
fn glob(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let mut lines = text.lines();
    let Ok(pattern) = GlobPattern::parse(lines.next().unwrap_or_default()) else { return };
    for path in lines.take(64) {
        let _ = pattern.matches(path.as_bytes());
    }
}
