//! Checks variables that configure the runner, before the job starts. If a value is invalid, the agent uses the default
//! and writes one warning at the beginning of the log.

use std::time::Duration;

use super::deadlines::format_duration;
use crate::config::duration;
use crate::payload::lenient::boolean;
use crate::payload::variables::Variables;

/// Booleans and their defaults.
const SWITCHES: [(&str, bool); 7] = [
    ("AFTER_SCRIPT_IGNORE_ERRORS", true),
    ("CI_DEBUG_SERVICES", false),
    ("CI_DEBUG_TRACE", false),
    ("GIT_CHECKOUT", true),
    ("GIT_LFS_SKIP_SMUDGE", false),
    ("GIT_SUBMODULE_FORCE_HTTPS", false),
    ("RUNNER_GENERATE_ARTIFACTS_METADATA", false),
];

/// The number of attempts of stages.
const ATTEMPTS: [&str; 4] =
    ["ARTIFACT_DOWNLOAD_ATTEMPTS", "EXECUTOR_JOB_SECTION_ATTEMPTS", "GET_SOURCES_ATTEMPTS", "RESTORE_CACHE_ATTEMPTS"];

/// Timeouts of stages.
const TIMEOUTS: [&str; 2] = ["RUNNER_AFTER_SCRIPT_TIMEOUT", "RUNNER_SCRIPT_TIMEOUT"];

/// Variables with a fixed set of values; the first one is the default.
const CHOICES: [(&str, &[&str]); 3] = [
    ("ARTIFACT_COMPRESSION_LEVEL", &["default", "fastest", "fast", "slow", "slowest"]),
    ("CACHE_COMPRESSION_FORMAT", &["zip", "tarzstd", "zipzstd"]),
    ("CACHE_COMPRESSION_LEVEL", &["default", "fastest", "fast", "slow", "slowest"]),
];

/// Numbers and their defaults.
const COUNTS: [(&str, std::ops::RangeInclusive<u64>, &str); 2] =
    [("CACHE_MAX_UPLOADED_ARCHIVE_SIZE", 0..=u64::MAX, "no limit"), ("CACHE_REQUEST_TIMEOUT", 1..=1440, "10 minutes")];

/// Warnings about the settings of a job with this timeout.
pub fn warnings(variables: &Variables, timeout: Duration) -> Vec<String> {
    let set = |key: &str| variables.value(key).filter(|text| !text.trim().is_empty());
    let mut warnings = Vec::new();
    for (key, default) in SWITCHES {
        if let Some(text) = set(key).filter(|text| boolean(text).is_none()) {
            warnings.push(format!("{key}: `{text}` is not a boolean; using {default}"));
        }
    }
    for key in ATTEMPTS {
        let used = variables.attempts(key);
        if let Some(text) = set(key).filter(|text| text.trim() != used.to_string()) {
            warnings.push(format!("{key}: `{text}` is not a number from 1 to 10; using {used}"));
        }
    }
    for (key, words) in CHOICES {
        if let Some(text) = set(key).filter(|text| !words.iter().any(|word| word.eq_ignore_ascii_case(text.trim()))) {
            warnings.push(format!("{key}: `{text}` is not one of {}; using {}", words.join(", "), words[0]));
        }
    }
    for (key, range, default) in COUNTS {
        let fits = |text: &String| text.trim().parse().is_ok_and(|count: u64| range.contains(&count));
        if let Some(text) = set(key).filter(|text| !fits(text)) {
            warnings.push(format!("{key}: `{text}` is not a valid number; using {default}"));
        }
    }
    if let Some(text) = set("TRANSFER_METER_FREQUENCY").filter(|text| duration::parse(text).is_none()) {
        warnings.push(format!("TRANSFER_METER_FREQUENCY: `{text}` is not a duration such as `10s`; ignored"));
    }
    for key in TIMEOUTS {
        match set(key).map(|text| (duration::parse(&text), text)) {
            Some((None, text)) => {
                warnings
                    .push(format!("{key}: `{text}` is not a duration; write for example `90s` or `1h30m`; ignored"));
            }
            Some((Some(limit), text)) if limit > timeout => {
                warnings.push(format!(
                    "{key}: `{text}` is longer than the timeout of the job; using {}",
                    format_duration(timeout)
                ));
            }
            _ => {}
        }
    }
    warnings
}

/// A warning about variables whose names cannot be exported.
pub fn name_warning(variables: &Variables) -> Option<String> {
    const MAX_SHOWN: usize = 5;
    let names = variables.unusable_names();
    let shown: Vec<String> = names.iter().take(MAX_SHOWN).map(|name| format!("`{}`", name.escape_debug())).collect();
    (!names.is_empty()).then(|| format!("no shell can export the variable(s) {}", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn of(key: &str, value: &str) -> Vec<String> {
        let mut variables = Variables::new(Path::new("/t"));
        variables.set(key, value);
        warnings(&variables, Duration::from_secs(3600))
    }

    #[test]
    fn warns_of_invalid_values() {
        for (key, value, word) in [
            ("GIT_CHECKOUT", "yes", "using true"),
            ("CI_DEBUG_TRACE", "on", "using false"),
            ("GET_SOURCES_ATTEMPTS", "99", "using 10"),
            ("EXECUTOR_JOB_SECTION_ATTEMPTS", "many", "using 1"),
            ("RESTORE_CACHE_ATTEMPTS", "0", "using 1"),
            ("ARTIFACT_DOWNLOAD_ATTEMPTS", "two", "using 1"),
            ("RUNNER_SCRIPT_TIMEOUT", "90", "not a duration"),
            ("RUNNER_SCRIPT_TIMEOUT", "-5m", "not a duration"),
            ("RUNNER_AFTER_SCRIPT_TIMEOUT", "2h", "using 1h0m0s"),
            ("ARTIFACT_COMPRESSION_LEVEL", "best", "using default"),
            ("CACHE_COMPRESSION_FORMAT", "tar.gz", "using zip"),
            ("CACHE_REQUEST_TIMEOUT", "10m", "10 minutes"),
            ("CACHE_MAX_UPLOADED_ARCHIVE_SIZE", "5GB", "no limit"),
            ("TRANSFER_METER_FREQUENCY", "5", "not a duration"),
        ] {
            let warnings = of(key, value);
            assert!(
                warnings.len() == 1 && warnings[0].starts_with(key) && warnings[0].contains(word),
                "{key}={value}: {warnings:?}"
            );
        }
    }

    #[test]
    fn does_not_warn_of_valid_values() {
        for (key, value) in [
            ("GIT_CHECKOUT", "False"),
            ("GIT_CHECKOUT", ""),
            ("GET_SOURCES_ATTEMPTS", "3"),
            ("RUNNER_SCRIPT_TIMEOUT", "1h"),
            ("ARTIFACT_COMPRESSION_LEVEL", "Fastest"),
            ("CACHE_COMPRESSION_FORMAT", "zipzstd"),
            ("CACHE_REQUEST_TIMEOUT", " 20"),
            ("TRANSFER_METER_FREQUENCY", "0"),
            ("TRANSFER_METER_FREQUENCY", "5s"),
            ("OTHER", "whatever"),
        ] {
            assert!(of(key, value).is_empty(), "{key}={value}");
        }
    }
}
