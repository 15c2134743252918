//! What a job in a container may tell git that runs outside of it: how to fetch, and nothing by which git starts a program,
//! reads a file or writes one.

use crate::failure::JobError;

/// Variables whose text can do nothing.
const PLAIN: [&str; 17] = [
    "ALL_PROXY",
    "CI_JOB_TOKEN",
    "GIT_HTTP_LOW_SPEED_LIMIT",
    "GIT_HTTP_LOW_SPEED_TIME",
    "GIT_HTTP_MAX_REQUESTS",
    "GIT_HTTP_USER_AGENT",
    "GIT_LFS_PROGRESS_INTERVAL",
    "GIT_PROTOCOL",
    "GIT_SSL_NO_VERIFY",
    "GIT_SSL_VERSION",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Variables that are switches, or else the names of files to write into.
const SWITCHES: [&str; 7] = [
    "GIT_CURL_VERBOSE",
    "GIT_TRACE",
    "GIT_TRACE_CURL",
    "GIT_TRACE_PACKET",
    "GIT_TRACE_PERFORMANCE",
    "GIT_TRACE_SETUP",
    "GIT_TRANSFER_TRACE",
];

/// Beginnings of settings (`GIT_CONFIG_KEY_n`) that are about the way to a server.
const SETTINGS: [&str; 8] = ["advice.", "checkout.", "fetch.", "http.", "lfs.", "pack.", "transfer.", "url."];

/// Ends of such settings that name a file or a program all the same.
const NAMES_A_FILE: [&str; 12] = [
    "cert",
    "cainfo",
    "capath",
    "command",
    "cookiefile",
    "customtransfer",
    "helper",
    "key",
    "path",
    "proxyauthmethod",
    "savecookies",
    "storage",
];

/// The variables of a job that git outside its container gets.
pub fn environment(exports: &[(String, String)]) -> Vec<(String, String)> {
    let is_switch = |value: &str| matches!(value, "0" | "1" | "2" | "true" | "false");
    let harmless = |(key, value): &&(String, String)| {
        PLAIN.contains(&key.as_str()) || (SWITCHES.contains(&key.as_str()) && is_switch(value))
    };
    let mut kept: Vec<(String, String)> = exports.iter().filter(harmless).cloned().collect();
    kept.extend(settings(exports));
    kept
}

/// `GIT_CONFIG_COUNT`, `GIT_CONFIG_KEY_n`, `GIT_CONFIG_VALUE_n`, counted anew.
fn settings(exports: &[(String, String)]) -> Vec<(String, String)> {
    let value = |key: &str| exports.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let count = value("GIT_CONFIG_COUNT").and_then(|count| count.parse::<u16>().ok()).unwrap_or(0);
    let pair = |number: u16| {
        let key = value(&format!("GIT_CONFIG_KEY_{number}"))?;
        is_harmless_setting(key).then_some((key, value(&format!("GIT_CONFIG_VALUE_{number}"))?))
    };
    let kept: Vec<(&str, &str)> = (0..count).filter_map(pair).collect();
    let mut variables = vec![("GIT_CONFIG_COUNT".to_owned(), kept.len().to_string())];
    for (number, (key, value)) in kept.iter().enumerate() {
        variables.push((format!("GIT_CONFIG_KEY_{number}"), (*key).to_owned()));
        variables.push((format!("GIT_CONFIG_VALUE_{number}"), (*value).to_owned()));
    }
    variables
}

fn is_harmless_setting(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let last = key.rsplit('.').next().unwrap_or_default();
    SETTINGS.iter().any(|begin| key.starts_with(begin))
        && !NAMES_A_FILE.iter().any(|end| last.ends_with(end))
        && !key.contains("customtransfer")
        && !key.contains("extension")
}

/// Errors: a flag names a program.
pub fn check_flags(flags: &[String]) -> Result<(), JobError> {
    // Git takes any beginning of an option's name that no other option has.
    match flags.iter().find(|flag| flag.starts_with("--upl")) {
        Some(flag) => Err(JobError::configuration(format!(
            "GIT_FETCH_EXTRA_FLAGS: `{flag}` would run a program outside of the job's container; leave it out"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let exports: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        environment(&exports)
    }

    #[test]
    fn nothing_that_starts_a_program_or_names_a_file_reaches_git() {
        for key in [
            "GIT_SSH_COMMAND",
            "GIT_SSH",
            "GIT_EXEC_PATH",
            "GIT_EXTERNAL_DIFF",
            "GIT_ASKPASS",
            "GIT_PAGER",
            "GIT_DIR",
            "GIT_CONFIG_GLOBAL",
            "GIT_CONFIG_PARAMETERS",
            "GIT_TEMPLATE_DIR",
            "GIT_PROXY_COMMAND",
            "GIT_TRACE2_EVENT",
            "GIT_ALLOW_PROTOCOL",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "PATH",
            "HOME",
            "BASH_ENV",
            "ENV",
            "PAGER",
            "EDITOR",
            "SSL_CERT_FILE",
            "GIT_SSL_CAINFO",
            "CURL_HOME",
        ] {
            assert_eq!(kept(&[(key, "/builds/evil")]).len(), 1, "{key}");
        }
        assert_eq!(kept(&[("GIT_TRACE", "/etc/cron.d/x")]).len(), 1);
        assert_eq!(kept(&[("GIT_TRACE", "1"), ("https_proxy", "http://p:3128")]).len(), 3);
    }

    #[test]
    fn settings_on_the_way_to_the_server_are_counted_anew() {
        let variables = kept(&[
            ("GIT_CONFIG_COUNT", "5"),
            ("GIT_CONFIG_KEY_0", "core.fsmonitor"),
            ("GIT_CONFIG_VALUE_0", "evil"),
            ("GIT_CONFIG_KEY_1", "http.extraHeader"),
            ("GIT_CONFIG_VALUE_1", "X: y"),
            ("GIT_CONFIG_KEY_2", "http.https://h.sslCAInfo"),
            ("GIT_CONFIG_VALUE_2", "/etc/shadow"),
            ("GIT_CONFIG_KEY_3", "lfs.customtransfer.x.path"),
            ("GIT_CONFIG_VALUE_3", "evil"),
        ]);
        let expected =
            [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "http.extraHeader"), ("GIT_CONFIG_VALUE_0", "X: y")];
        assert_eq!(variables, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_flag_that_names_a_program_is_refused() {
        let check = |flags: &str| check_flags(&flags.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert!(check("--prune --quiet --tags").is_ok());
        for flags in ["--upload-pack=evil", "--upload-pac evil", "-q --upl=x"] {
            assert!(check(flags).is_err(), "{flags}");
        }
    }
}
