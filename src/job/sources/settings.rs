//! Git settings that a job gives to the agent's own git: by variables (`GIT_CONFIG_KEY_n`) or by a script before git
//! (`git config`). A setting takes effect only if its name is on a list of settings that start no program, name no file
//! and do not send git to another server. The job's log names the ignored settings and the reason.

/// The file where a script before git writes settings for the job's repository, in the temporary directory (GitLab
/// documents it for `lfs.url`).
pub const TEMPLATE: &str = "git-template/config";

/// The directory of that file.
pub const TEMPLATE_DIRECTORY: &str = "git-template";

/// File name of the settings in [`TEMPLATE`], as the script's git lists them, in the temporary directory.
pub const TEMPLATE_LIST: &str = "mayfly.template.settings";

/// File name of the settings for all repositories (`git config --global`, `--system`), as the script's git lists them.
pub const USER_LIST: &str = "mayfly.user.settings";

/// A setting's name and value.
pub type Setting = (String, String);

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
const COUNT_MAX: u32 = 64;

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

/// Sections that change how git fetches the sources. Other settings (`user.name`, `alias.st`, `safe.directory`, …) have
/// no effect on the agent's git, so the log does not name them.
const OF_FETCHING: [&str; 20] = [
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

/// Checks a setting for git that runs outside a container (`is_confined`), or as the job's user on the machine. Errors:
/// the reason why the setting is ignored.
pub fn judge(key: &str, value: &str, is_confined: bool) -> Result<(), &'static str> {
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
    // `lfs.customtransfer.<name>.path` and `lfs.extension.<name>.clean` name programs.
    let is_of_program = ["lfs.customtransfer.", "lfs.extension.", "lfs.standalonetransferagent"];
    let is_file = ["cookiefile", "sslcainfo", "sslcapath", "sslcert", "sslkey"].contains(&last);
    if is_file || section.starts_with("include") {
        return Err("it names a file, which the agent's git does not read");
    }
    if is_of_program.iter().any(|name| key.starts_with(name)) || PROGRAMS.contains(&last) {
        return Err("it names a program");
    }
    if last == "followredirects" {
        return Err("the agent's git follows redirects on the same host only");
    }
    if !is_listed(section, last) {
        return Err("it is not on the list of settings that jobs may give to the agent's git");
    }
    match last {
        _ if COUNT_SETTINGS.contains(&last) && !value.trim().parse::<u32>().is_ok_and(|count| count <= COUNT_MAX) => {
            Err("the number is larger than 64")
        }
        // Confined git reaches servers through the relay, which supports only one proxy for all servers.
        "proxy" if is_confined && before != "http" => Err("set `http.proxy` instead, for all servers"),
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
pub struct Judged {
    /// In their order: git uses the last value of a name, or all of them.
    pub honoured: Vec<Setting>,
    /// One line for each setting that is ignored.
    pub ignored: Vec<String>,
}

/// Checks settings. `tells_all`: report every ignored setting. It is false for a source that also contains settings for
/// other commands.
pub fn judge_all(settings: impl IntoIterator<Item = Setting>, is_confined: bool, tells_all: bool) -> Judged {
    const IGNORED_MAX: usize = 20;
    let mut judged = Judged::default();
    for (key, value) in settings {
        match judge(&key, &value, is_confined) {
            Ok(()) => judged.honoured.push((key, value)),
            Err(why) if tells_all || is_of_fetching(&key) => {
                let line = format!("git setting `{}` is ignored: {why}", shown(&key));
                if judged.ignored.len() < IGNORED_MAX && !judged.ignored.contains(&line) {
                    judged.ignored.push(line);
                }
            }
            Err(_) => {}
        }
    }
    judged
}

/// Hides passwords in the name of a setting: `url.https://user:password@host/.insteadOf`.
fn shown(key: &str) -> String {
    const LENGTH_MAX: usize = 200;
    let shown = match (key.split_once("://"), key.rsplit_once('.')) {
        (Some((before, rest)), _) => match rest.split_once('@') {
            Some((login, rest)) if !login.contains('/') => format!("{before}://[MASKED]@{rest}"),
            _ => key.to_owned(),
        },
        _ => key.to_owned(),
    };
    shown.chars().filter(|c| !c.is_control()).take(LENGTH_MAX).collect()
}

/// Whether a setting can change how git fetches the sources. The filters of Git LFS (`git lfs install`) cannot: the
/// agent fetches large files after the checkout.
fn is_of_fetching(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let section = key.split('.').next().unwrap_or_default();
    OF_FETCHING.contains(&section) && !key.starts_with("filter.lfs.") && !["core.editor", "core.pager"].contains(&&*key)
}

/// Parses the output of `git config --list -z`: `name\nvalue\0`; a setting without a value is true.
pub fn parse(list: &str) -> Vec<Setting> {
    const SETTINGS_MAX: usize = 10_000;
    let entries = list.split('\0').filter(|entry| !entry.is_empty()).take(SETTINGS_MAX);
    entries
        .map(|entry| match entry.split_once('\n') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (entry.to_owned(), "true".to_owned()),
        })
        .collect()
}

/// The settings in the format of a configuration file, with one section each.
pub fn to_file(settings: &[Setting]) -> String {
    let mut text = String::new();
    for (key, setting) in settings {
        let (Some((section, rest)), Some((before, last))) = (key.split_once('.'), key.rsplit_once('.')) else {
            continue;
        };
        let is_plain =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_plain(section) || !is_plain(last) || before.contains('\n') {
            continue;
        }
        match rest == last {
            true => text.push_str(&format!("[{section}]\n")),
            false => text.push_str(&format!("[{section} {}]\n", value(&before[section.len() + 1..]))),
        }
        text.push_str(&format!("\t{last} = {}\n", value(setting)));
    }
    text
}

/// A value of a git configuration file.
pub fn value(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

/// Shell commands before the lines of a script before git: they remove the settings of an earlier job.
pub fn before_script(temporary: &str) -> String {
    let quote = crate::executor::shell::quote;
    let paths = [TEMPLATE_DIRECTORY, TEMPLATE_LIST, USER_LIST].map(|name| quote(&format!("{temporary}/{name}")));
    format!("rm -rf {}\n", paths.join(" "))
}

/// Shell commands after the lines of such a script: they list the settings that the lines made, unless they have done
/// so already. `of_user`: also list the settings for all repositories, because the agent's git does not read them by
/// itself.
pub fn after_script(temporary: &str, of_user: bool) -> String {
    let path = |name: &str| crate::executor::shell::quote(&format!("{temporary}/{name}"));
    let user = match of_user {
        true => format!("{{ git config --system -z --list; git config --global -z --list; }} >{}; ", path(USER_LIST)),
        false => String::new(),
    };
    format!(
        "if [ ! -e {list} ] && command -v git >/dev/null 2>&1; then (umask 077; : >{list}; {user}\
         [ ! -f {template} ] || git config -f {template} -z --list >{list}) 2>/dev/null || :; fi\n",
        template = path(TEMPLATE),
        list = path(TEMPLATE_LIST),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let why = judge(key, value, true).expect_err(key);
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
            assert_eq!(judge(key, value, true), Ok(()), "{key}");
        }
        assert_eq!(judge("http.https://h/.proxy", "http://p:3128", false), Ok(()));
    }

    #[test]
    fn the_log_names_relevant_ignored_settings_without_passwords() {
        let list = "user.name\nDev\0core.sshcommand\nevil\0core.sshcommand\nevil\0http.proxy\nhttp://p\0\
                    filter.lfs.smudge\ngit-lfs\0url.file://user:secret@h/.insteadof\nx\0safe.directory";
        let judged = judge_all(parse(list), true, false);
        assert_eq!(judged.honoured, [("http.proxy".to_owned(), "http://p".to_owned())]);
        assert_eq!(
            judged.ignored,
            [
                "git setting `core.sshcommand` is ignored: it names a program",
                "git setting `url.file://[MASKED]@h/.insteadof` is ignored: the address is not the URL of a server",
            ]
        );
        let judged = judge_all(parse(list), true, true);
        assert_eq!(judged.ignored.len(), 5, "{:?}", judged.ignored);
    }

    #[test]
    fn git_reads_the_written_settings() {
        let settings: Vec<Setting> = [
            ("lfs.url", "https://h/a b\"c\\d;#"),
            ("http.https://h/a.b/.extraheader", "X: \"y\"\nz"),
            ("url.https://m\"i\\r/.insteadof", "https://h/"),
            ("bad section.key", "x"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec();
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), to_file(&settings)).expect("write the file");
        let mut git = std::process::Command::new("git");
        let output = git.args(["config", "-z", "--list", "-f"]).arg(file.path()).output().expect("run git");
        assert!(output.status.success(), "{}", to_file(&settings));
        assert_eq!(parse(&String::from_utf8_lossy(&output.stdout)), settings[..3]);
    }

    #[test]
    fn scripts_list_their_settings_in_every_shell() {
        for shell in ["bash", "dash", "busybox ash"] {
            let directory = tempfile::tempdir().expect("a directory");
            let temporary = directory.path().join("it's.tmp");
            std::fs::create_dir_all(temporary.join(TEMPLATE_DIRECTORY)).expect("create the directory");
            std::fs::write(temporary.join(TEMPLATE), "[lfs]\n\turl = stale\n\tconcurrenttransfers = 3\n")
                .expect("write the file");
            let path = temporary.display().to_string();
            let script = format!(
                "set -e\n{}mkdir -p \"$T/{TEMPLATE_DIRECTORY}\"\ngit config -f \"$T/{TEMPLATE}\" lfs.url fresh\n\
                 git config --global http.proxy p\n{after}git config -f \"$T/{TEMPLATE}\" lfs.url late\n{after}echo done",
                before_script(&path),
                after = after_script(&path, true)
            );
            let mut words = shell.split(' ');
            let mut command = std::process::Command::new(words.next().expect("a program"));
            command.args(words).args(["-c", &script]).env("T", &temporary);
            command.env("GIT_CONFIG_GLOBAL", directory.path().join("global")).env("GIT_CONFIG_SYSTEM", "/dev/null");
            let output = command.output().expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{shell}: {output:?}");
            let read = |name: &str| parse(&std::fs::read_to_string(temporary.join(name)).expect("read the file"));
            assert_eq!(read(TEMPLATE_LIST), [("lfs.url".to_owned(), "fresh".to_owned())], "{shell}");
            assert_eq!(read(USER_LIST), [("http.proxy".to_owned(), "p".to_owned())], "{shell}");
        }
    }
}
