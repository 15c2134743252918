//! The variables of a job that the agent's own git receives.
//!
//! With the shell executor, git runs as the job's user, who may run any program. Git receives all variables except
//! those that select another repository and those that print HTTP headers or bodies into the log. If the job runs in a
//! container, git runs outside and receives only variables from a list: those that configure the connection to a
//! server. None of them makes git start a program or read or write a file.

use super::config_file::Setting;
use super::git_context::GitContext;
use super::settings::{self, ReportedSettings};

/// Variables that select a proxy.
pub const PROXIES: [&str; 8] =
    ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "all_proxy", "http_proxy", "https_proxy", "no_proxy"];

/// Variables that only configure the connection to a server.
const ALLOWED_VARIABLES: [&str; 17] = [
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

/// Traces that show the work of git but not the data that it sends and receives. The value is a switch or a file name.
const TRACE_VARIABLES: [&str; 4] = ["GIT_TRACE", "GIT_TRACE_PERFORMANCE", "GIT_TRACE_SETUP", "GIT_TRACE_SHALLOW"];

/// Git LFS prints response bodies if one of these is set.
pub const LFS_TRACE_VARIABLES: [&str; 2] = ["GIT_TRACE", "GIT_TRANSFER_TRACE"];

/// Variables that make git work on another repository than the checkout (`git rev-parse --local-env-vars`), run other
/// programs, or print headers and bodies.
const REFUSED_VARIABLES: [&str; 27] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_ATTR_SOURCE",
    "GIT_CEILING_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CURL_VERBOSE",
    "GIT_DEFAULT_HASH",
    "GIT_DIR",
    "GIT_EXEC_PATH",
    "GIT_EXTERNAL_DIFF",
    "GIT_GRAFT_FILE",
    "GIT_GLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_LITERAL_PATHSPECS",
    "GIT_NAMESPACE",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_TEMPLATE_DIR",
    "GIT_WORK_TREE",
];

/// The variables of a job that git receives, and log lines about settings in them that git ignores.
pub fn git_variables(exports: Vec<(String, String)>, context: GitContext) -> (Vec<(String, String)>, Vec<String>) {
    if context == GitContext::AsJob {
        let kept = |key: &str| {
            !REFUSED_VARIABLES.contains(&key) && (!key.starts_with("GIT_TRACE") || TRACE_VARIABLES.contains(&key))
        };
        return (exports.into_iter().filter(|(key, _)| kept(key)).collect(), Vec::new());
    }
    let is_switch = |value: &str| matches!(value, "0" | "1" | "2" | "true" | "false");
    let is_allowed = |(key, value): &&(String, String)| {
        ALLOWED_VARIABLES.contains(&key.as_str()) || (TRACE_VARIABLES.contains(&key.as_str()) && is_switch(value))
    };
    let mut kept: Vec<(String, String)> = exports.iter().filter(is_allowed).cloned().collect();
    let checked = settings::check(settings_in(&exports), context, ReportedSettings::All);
    write_settings(&mut kept, &checked.honoured);
    (kept, checked.ignored)
}

/// The settings in `GIT_CONFIG_COUNT`, `GIT_CONFIG_KEY_n`, `GIT_CONFIG_VALUE_n`.
fn settings_in(variables: &[(String, String)]) -> Vec<Setting> {
    let value = |key: &str| variables.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let count = value("GIT_CONFIG_COUNT").and_then(|count| count.parse::<u16>().ok()).unwrap_or(0);
    let pair = |number: u16| {
        let key = value(&format!("GIT_CONFIG_KEY_{number}"))?;
        let value = value(&format!("GIT_CONFIG_VALUE_{number}"))?;
        Some((key.to_owned(), value.to_owned()))
    };
    (0..count).filter_map(pair).collect()
}

fn write_settings(variables: &mut Vec<(String, String)>, settings: &[Setting]) {
    let prefixes = ["GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"];
    variables.retain(|(key, _)| !prefixes.iter().any(|prefix| key.starts_with(prefix)));
    variables.push(("GIT_CONFIG_COUNT".to_owned(), settings.len().to_string()));
    for (number, (key, value)) in settings.iter().enumerate() {
        variables.push((format!("GIT_CONFIG_KEY_{number}"), key.clone()));
        variables.push((format!("GIT_CONFIG_VALUE_{number}"), value.clone()));
    }
}

/// Adds settings with a lower priority than those that are already in the variables.
pub fn add_settings(variables: &mut Vec<(String, String)>, settings: &[Setting]) {
    let all: Vec<Setting> = settings.iter().cloned().chain(settings_in(variables)).collect();
    write_settings(variables, &all);
}

/// Git outside a container reaches servers through a relay, which takes the proxy from the variables. So a proxy from
/// settings (`http.proxy`) is copied to the variables. `repository`: settings of the repository, with a lower priority.
pub fn use_proxy_of_settings(variables: &mut Vec<(String, String)>, repository: &[Setting]) {
    let all: Vec<Setting> = repository.iter().cloned().chain(settings_in(variables)).collect();
    let Some((_, proxy)) = all.into_iter().rfind(|(key, _)| key.eq_ignore_ascii_case("http.proxy")) else { return };
    let is_proxy = |key: &str| PROXIES.contains(&key) && !key.eq_ignore_ascii_case("no_proxy");
    variables.retain(|(key, _)| !is_proxy(key));
    if !proxy.is_empty() {
        variables.extend(["http_proxy", "https_proxy"].map(|key| (key.to_owned(), proxy.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(context: GitContext, pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let exports: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        git_variables(exports, context).0
    }

    #[test]
    fn outside_a_container_git_receives_no_variable_that_starts_a_program_or_names_a_file() {
        let kept = |pairs: &[(&str, &str)]| kept(GitContext::BesideContainer, pairs);
        for key in [
            "BASH_ENV",
            "CURL_HOME",
            "EDITOR",
            "ENV",
            "GIT_ALLOW_PROTOCOL",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
            "GIT_ASKPASS",
            "GIT_CONFIG_GLOBAL",
            "GIT_CONFIG_PARAMETERS",
            "GIT_CURL_VERBOSE",
            "GIT_DIR",
            "GIT_EXEC_PATH",
            "GIT_EXTERNAL_DIFF",
            "GIT_PAGER",
            "GIT_PROXY_COMMAND",
            "GIT_SSH",
            "GIT_SSH_COMMAND",
            "GIT_SSL_CAINFO",
            "GIT_TEMPLATE_DIR",
            "GIT_TRACE2",
            "GIT_TRACE2_EVENT",
            "GIT_TRACE_CURL",
            "GIT_TRACE_PACKET",
            "GIT_TRACE_REDACT",
            "GIT_TRANSFER_TRACE",
            "HOME",
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "PAGER",
            "PATH",
            "SSLKEYLOGFILE",
            "SSL_CERT_FILE",
        ] {
            assert_eq!(kept(&[(key, "1")]).len(), 1, "{key}");
        }
        assert_eq!(kept(&[("GIT_TRACE", "/etc/cron.d/x")]).len(), 1);
        assert_eq!(kept(&[("GIT_TRACE", "1"), ("https_proxy", "http://p:3128")]).len(), 3);
    }

    #[test]
    fn in_the_shell_git_keeps_its_repository_and_prints_no_headers() {
        let kept = |key: &str| !kept(GitContext::AsJob, &[(key, "1")]).is_empty();
        for key in ["GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_CONFIG_COUNT", "SSH_AUTH_SOCK", "PATH", "GIT_TRACE"] {
            assert!(kept(key), "{key}");
        }
        for key in ["GIT_TRACE_CURL", "GIT_CURL_VERBOSE", "GIT_TRACE2_EVENT", "GIT_DIR", "GIT_INDEX_FILE"] {
            assert!(!kept(key), "{key}");
        }
    }

    #[test]
    fn settings_are_renumbered() {
        let settings = [
            ("core.fsmonitor", "evil"),
            ("http.extraHeader", "X: y"),
            ("http.https://h.sslCAInfo", "/etc/shadow"),
            ("http.https://h/.followRedirects", "true"),
            ("lfs.customtransfer.x.path", "evil"),
            ("lfs.customtransfer.x.url", "evil"),
            ("fetch.fsck.skipList", "/etc/shadow"),
            ("fetch.parallel", "20000000"),
            ("url.file:///etc.insteadOf", "https://h/"),
            ("url.https://mirror/.insteadOf", "https://h/"),
            ("include.path", "x"),
            ("http", "x"),
        ];
        let mut exports = vec![("GIT_CONFIG_COUNT".to_owned(), settings.len().to_string())];
        for (number, (key, value)) in settings.iter().enumerate() {
            exports.push((format!("GIT_CONFIG_KEY_{number}"), (*key).to_owned()));
            exports.push((format!("GIT_CONFIG_VALUE_{number}"), (*value).to_owned()));
        }
        let (variables, ignored) = git_variables(exports, GitContext::BesideContainer);
        assert_eq!(ignored.len(), settings.len() - 2, "{ignored:?}");
        let expected = [
            ("GIT_CONFIG_COUNT", "2"),
            ("GIT_CONFIG_KEY_0", "http.extraHeader"),
            ("GIT_CONFIG_VALUE_0", "X: y"),
            ("GIT_CONFIG_KEY_1", "url.https://mirror/.insteadOf"),
            ("GIT_CONFIG_VALUE_1", "https://h/"),
        ];
        assert_eq!(variables, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn settings_of_variables_override_those_of_scripts() {
        let own = |pairs: &[(&str, &str)]| -> Vec<Setting> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let mut variables = own(&[("A", "b"), ("HTTPS_PROXY", "http://old"), ("no_proxy", "h")]);
        write_settings(&mut variables, &own(&[("lfs.url", "of-variable")]));
        add_settings(&mut variables, &own(&[("lfs.url", "of-script"), ("http.proxy", "http://of-script")]));
        let settings = own(&[("lfs.url", "of-script"), ("http.proxy", "http://of-script"), ("lfs.url", "of-variable")]);
        assert_eq!(settings_in(&variables), settings);
        use_proxy_of_settings(&mut variables, &own(&[("http.proxy", "http://of-repository")]));
        let value = |key: &str| variables.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        assert_eq!((value("https_proxy"), value("HTTPS_PROXY")), (Some("http://of-script"), None));
        assert_eq!((value("no_proxy"), value("A")), (Some("h"), Some("b")));
    }
}
