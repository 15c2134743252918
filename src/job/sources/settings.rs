//! Git settings that a job gives to the agent's own git: by variables (`GIT_CONFIG_KEY_n`) or by a script before git
//! (`git config`). A setting takes effect only if its name is on a list of settings that start no program, name no file
//! and do not send git to another server. The job's log names the ignored settings and the reason.

use super::config_file::Setting;
use super::git_context::GitContext;

/// The allowed settings: the section and the last parts of the names.
const ALLOWED_SETTINGS: [(&str, &[&str]); 11] = [
    ("checkout", &["defaultremote", "guess", "thresholdforparallelism", "workers"]),
    ("core", &["autocrlf", "bigfilethreshold", "compression", "eol", "safecrlf", "symlinks"]),
    ("credential", &["usehttppath", "username"]),
    (
        "fetch",
        &[
            "fsckobjects",
            "negotiationalgorithm",
            "output",
            "parallel",
            "prune",
            "prunetags",
            "showforcedupdates",
            "unpacklimit",
        ],
    ),
    (
        "http",
        &[
            "emptyauth",
            "extraheader",
            "lowspeedlimit",
            "lowspeedtime",
            "maxrequests",
            "minsessions",
            "noepsv",
            "postbuffer",
            "proxy",
            "proxyauthmethod",
            "sslcipherlist",
            "sslverify",
            "sslversion",
            "useragent",
            "version",
        ],
    ),
    (
        "lfs",
        &[
            "access",
            "activitytimeout",
            "basictransfersonly",
            "concurrenttransfers",
            "dialtimeout",
            "fetchexclude",
            "fetchinclude",
            "fetchrecentalways",
            "fetchrecentcommitsdays",
            "fetchrecentrefsdays",
            "fetchrecentremoterefs",
            "keepalive",
            "locksverify",
            "maxretries",
            "maxretrydelay",
            "maxverifies",
            "skipdownloaderrors",
            "tlstimeout",
            "tustransfers",
            "url",
        ],
    ),
    ("pack", &["threads", "windowmemory"]),
    ("protocol", &["version"]),
    ("remote", &["lfsurl"]),
    ("transfer", &["credentialsinurl", "fsckobjects", "unpacklimit"]),
    ("url", &["insteadof", "pushinsteadof"]),
];

/// Settings with a number of threads, processes or connections, which has a limit.
const COUNT_SETTINGS: [&str; 6] =
    ["concurrenttransfers", "maxrequests", "minsessions", "parallel", "threads", "workers"];
const MAX_COUNT: u32 = 64;

/// The last parts of the names of settings that name a program.
const PROGRAMS: [&str; 18] = [
    "alternaterefscommand",
    "askpass",
    "clean",
    "command",
    "fsmonitor",
    "gitproxy",
    "helper",
    "hookspath",
    "path",
    "process",
    "proxycommand",
    "receivepack",
    "smudge",
    "sshcommand",
    "textconv",
    "update",
    "uploadpack",
    "vcs",
];

/// The beginnings of the names of settings that name a program.
const PROGRAM_SECTIONS: [&str; 3] = ["lfs.customtransfer.", "lfs.extension.", "lfs.standalonetransferagent"];

/// The last parts of the names of settings that name a file.
const FILES: [&str; 5] = ["cookiefile", "sslcainfo", "sslcapath", "sslcert", "sslkey"];

/// Sections that change how git fetches the sources. Other settings (`user.name`, `alias.st`, `safe.directory`, …) have
/// no effect on the agent's git, so the log does not name them.
const FETCH_SECTIONS: [&str; 20] = [
    "checkout",
    "core",
    "credential",
    "extensions",
    "fetch",
    "filter",
    "gitproxy",
    "http",
    "https",
    "include",
    "includeif",
    "lfs",
    "pack",
    "protocol",
    "remote",
    "ssh",
    "ssl",
    "submodule",
    "transfer",
    "url",
];

/// Checks a setting for git in this context. Errors: the reason why the setting is ignored.
fn check_setting(key: &str, value: &str, context: GitContext) -> Result<(), &'static str> {
    let key = key.to_ascii_lowercase();
    let (Some((section, _)), Some((before, last))) = (key.split_once('.'), key.rsplit_once('.')) else {
        return Err("the name is not valid");
    };
    if key.contains('\n') || value.contains('\0') {
        return Err("the name is not valid");
    }
    if section == "advice" {
        return Ok(());
    }
    if FILES.contains(&last) || section.starts_with("include") {
        return Err("it names a file, which the agent's git does not read");
    }
    if PROGRAM_SECTIONS.iter().any(|name| key.starts_with(name)) || PROGRAMS.contains(&last) {
        return Err("it names a program");
    }
    if last == "followredirects" {
        return Err("the agent's git follows redirects on the same host only");
    }
    if !is_listed(section, last) {
        return Err("it is not on the list of settings that jobs may give to the agent's git");
    }
    check_value(before, last, value, context)
}

/// Checks the value of a setting on the list; `before` and `last` are the parts of its name.
fn check_value(before: &str, last: &str, value: &str, context: GitContext) -> Result<(), &'static str> {
    match last {
        _ if COUNT_SETTINGS.contains(&last) && !value.trim().parse::<u32>().is_ok_and(|count| count <= MAX_COUNT) => {
            Err("the number is larger than 64")
        }
        // Git beside a container reaches servers through the relay, which supports only one proxy for all servers.
        "proxy" if context == GitContext::BesideContainer && before != "http" => {
            Err("set `http.proxy` instead, for all servers")
        }
        // The name contains the new prefix of an address.
        "insteadof" | "pushinsteadof" => {
            let base = before.strip_prefix("url.").unwrap_or_default();
            let is_remote = ["http://", "https://", "ssh://", "git@"].iter().any(|scheme| base.starts_with(scheme));
            if is_remote { Ok(()) } else { Err("the address is not the URL of a server") }
        }
        _ => Ok(()),
    }
}

fn is_listed(section: &str, last: &str) -> bool {
    ALLOWED_SETTINGS.iter().any(|(name, parts)| *name == section && parts.contains(&last))
}

/// Settings that take effect, and log lines about the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CheckedSettings {
    /// In their order: git uses the last value of a name, or all of them.
    pub honoured: Vec<Setting>,
    /// One line for each setting that is ignored.
    pub ignored: Vec<String>,
}

/// The ignored settings that the log names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportedSettings {
    All,
    /// Those that affect how git fetches the sources: the source also contains settings for other commands.
    AffectingFetch,
}

/// Checks settings for git in this context.
pub fn check(
    settings: impl IntoIterator<Item = Setting>,
    context: GitContext,
    reported: ReportedSettings,
) -> CheckedSettings {
    const MAX_IGNORED: usize = 20;
    let mut checked = CheckedSettings::default();
    for (key, value) in settings {
        match check_setting(&key, &value, context) {
            Ok(()) => checked.honoured.push((key, value)),
            Err(why) if reported == ReportedSettings::All || affects_fetching(&key) => {
                let line = format!("git setting `{}` is ignored: {why}", shown(&key));
                if checked.ignored.len() < MAX_IGNORED && !checked.ignored.contains(&line) {
                    checked.ignored.push(line);
                }
            }
            Err(_) => {}
        }
    }
    checked
}

/// Hides passwords in the name of a setting: `url.https://user:password@host/.insteadOf`.
fn shown(key: &str) -> String {
    const MAX_LENGTH: usize = 200;
    let shown = match (key.split_once("://"), key.rsplit_once('.')) {
        (Some((before, rest)), _) => match rest.split_once('@') {
            Some((login, rest)) if !login.contains('/') => format!("{before}://[MASKED]@{rest}"),
            _ => key.to_owned(),
        },
        _ => key.to_owned(),
    };
    shown.chars().filter(|c| !c.is_control()).take(MAX_LENGTH).collect()
}

/// Whether a setting can change how git fetches the sources. The filters of Git LFS (`git lfs install`) cannot: the
/// agent fetches large files after the checkout.
fn affects_fetching(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let section = key.split('.').next().unwrap_or_default();
    FETCH_SECTIONS.contains(&section)
        && !key.starts_with("filter.lfs.")
        && !["core.editor", "core.pager"].contains(&&*key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::sources::config_file::parse;

    #[test]
    fn settings_that_start_programs_or_name_files_are_ignored_with_the_reason() {
        for (key, value, part) in [
            ("core.sshCommand", "evil", "program"),
            ("core.fsmonitor", "evil", "program"),
            ("credential.helper", "evil", "program"),
            ("credential.https://h.helper", "evil", "program"),
            ("filter.x.smudge", "evil", "program"),
            ("lfs.customtransfer.x.path", "evil", "program"),
            ("lfs.customtransfer.x.url", "evil", "program"),
            ("lfs.extension.x.clean", "evil", "program"),
            ("lfs.standaloneTransferAgent", "evil", "program"),
            ("remote.origin.uploadpack", "evil", "program"),
            ("submodule.x.update", "!evil", "program"),
            ("http.sslCAInfo", "/etc/shadow", "file"),
            ("http.https://h.sslCAInfo", "/etc/shadow", "file"),
            ("http.sslKey", "/etc/shadow", "file"),
            ("http.cookieFile", "/etc/shadow", "file"),
            ("include.path", "x", "file"),
            ("includeIf.gitdir:x.path", "x", "file"),
            ("http.https://h/.followRedirects", "true", "redirects"),
            ("fetch.fsck.skipList", "/etc/shadow", "list"),
            ("core.worktree", "/", "list"),
            ("protocol.ext.allow", "always", "list"),
            ("fetch.parallel", "20000000", "64"),
            ("http.https://h/.proxy", "http://p:3128", "http.proxy"),
            ("url.file:///etc.insteadOf", "https://h/", "address"),
            ("http", "x", "name"),
        ] {
            let why = check_setting(key, value, GitContext::BesideContainer).expect_err(key);
            assert!(why.contains(part), "{key}: {why}");
        }
        for (key, value) in [
            ("http.extraHeader", "X: y"),
            ("http.https://h/.extraHeader", "X: y"),
            ("HTTP.proxy", "http://p:3128"),
            ("http.sslVerify", "false"),
            ("http.sslVersion", "tlsv1.2"),
            ("lfs.url", "https://h/lfs"),
            ("lfs.https://h/lfs.access", "basic"),
            ("remote.origin.lfsurl", "https://h/lfs"),
            ("url.https://mirror/.insteadOf", "https://h/"),
            ("core.autocrlf", "input"),
            ("advice.detachedHead", "false"),
        ] {
            assert_eq!(check_setting(key, value, GitContext::BesideContainer), Ok(()), "{key}");
        }
        assert_eq!(check_setting("http.https://h/.proxy", "http://p:3128", GitContext::AsJob), Ok(()));
    }

    #[test]
    fn the_log_names_relevant_ignored_settings_without_passwords() {
        let list = "user.name\nDev\0core.sshcommand\nevil\0core.sshcommand\nevil\0http.proxy\nhttp://p\0\
                    filter.lfs.smudge\ngit-lfs\0url.file://user:secret@h/.insteadof\nx\0safe.directory";
        let checked = check(parse(list), GitContext::BesideContainer, ReportedSettings::AffectingFetch);
        assert_eq!(checked.honoured, [("http.proxy".to_owned(), "http://p".to_owned())]);
        assert_eq!(
            checked.ignored,
            [
                "git setting `core.sshcommand` is ignored: it names a program",
                "git setting `url.file://[MASKED]@h/.insteadof` is ignored: the address is not the URL of a server",
            ]
        );
        let checked = check(parse(list), GitContext::BesideContainer, ReportedSettings::All);
        assert_eq!(checked.ignored.len(), 5, "{:?}", checked.ignored);
    }
}
