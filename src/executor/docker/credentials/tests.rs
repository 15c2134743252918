use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use super::super::reference::ImageReference;
use super::*;

/// Base64 of `USER:PASSWORD`.
fn auth(user: &str) -> String {
    base64::prelude::BASE64_STANDARD.encode(format!("{user}:pw-{user}"))
}

fn auths(entries: &[(&str, &str)]) -> String {
    let entries: Vec<String> =
        entries.iter().map(|(key, user)| format!("{key:?}: {{\"auth\": {:?}}}", auth(user))).collect();
    format!("{{\"auths\": {{{}}}}}", entries.join(","))
}

fn name(text: &str) -> ImageName {
    match ImageReference::parse(text) {
        Ok(ImageReference::Named(name)) => name,
        other => panic!("{other:?}"),
    }
}

/// A machine with credential helpers, and Docker files of the agent's user.
struct Machine {
    directory: tempfile::TempDir,
    timeout: Duration,
    allowed: Vec<String>,
}

/// The sources of a test.
struct TestSources<'a> {
    job: Option<String>,
    runner: Option<String>,
    files: Vec<PathBuf>,
    payload: &'a [payload::Credentials],
    fetched: &'a [EcrLogin],
    path: String,
    timeout: Duration,
    allowed: Vec<String>,
}

impl Machine {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            timeout: Duration::from_secs(30),
            allowed: Vec::new(),
        }
    }

    fn helper(&self, name: &str, script: &str) {
        let path = self.directory.path().join(format!("docker-credential-{name}"));
        // A child process writes the file: a concurrent fork of another test could hold it open for writing, and
        // executing it would fail with ETXTBSY.
        let line = format!("printf '%s\\n' '#!/bin/sh' \"$1\" >{0} && chmod 755 {0}", path.display());
        assert!(Command::new("sh").args(["-c", &line, "sh", script]).status().expect("run sh").success());
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.directory.path().join("config.json");
        fs::write(&path, text).expect("write the file");
        path
    }

    fn sources(&self) -> TestSources<'_> {
        let path = format!("{}:/usr/bin:/bin", self.directory.path().display());
        let (timeout, allowed) = (self.timeout, self.allowed.clone());
        TestSources { job: None, runner: None, files: Vec::new(), payload: &[], fetched: &[], path, timeout, allowed }
    }
}

/// The user and the source of the selected login, and the warnings.
fn found(sources: TestSources<'_>, image: &str) -> (Option<(String, String)>, Vec<String>) {
    let access = LoginSources {
        runner: sources.runner,
        files: sources.files,
        environment: vec![("PATH".to_owned(), sources.path), ("AGENT_SECRET".to_owned(), "hunter22".to_owned())],
        ecr_logins: sources.fetched.to_vec(),
        allowed: sources.allowed,
        unprivileged: Uid::effective().is_root().then(nobody),
    };
    let mut logins = RegistryLogins::read(sources.job, sources.payload, &access);
    logins.helpers.timeout = sources.timeout;
    let mut warnings = logins.warnings.clone();
    let login = logins.find(&name(image), &mut |warn| warnings.push(warn));
    let user = |login: Login| match login.secret {
        RegistrySecret::Password { username, .. } => (login.source, username),
        RegistrySecret::Identity(token) => (login.source, format!("token {}", token.reveal())),
    };
    (login.map(user), warnings)
}

fn user(sources: TestSources<'_>, image: &str) -> Option<String> {
    let (user, warnings) = found(sources, image);
    assert!(warnings.is_empty(), "{warnings:?}");
    user.map(|(_, user)| user)
}

#[test]
fn sources_have_the_documented_order() {
    let machine = Machine::new();
    let file = machine.file(&auths(&[("r.test", "file"), ("other.test", "file")]));
    let payload = ["r.test", "other.test", "own.test:5050"].map(|url| payload::Credentials {
        kind: "registry".to_owned(),
        url: url.to_owned(),
        username: "payload".to_owned(),
        password: "x".to_owned(),
    });
    let sources = |job: &[(&str, &str)], runner: &[(&str, &str)]| TestSources {
        job: Some(auths(job)),
        runner: Some(auths(runner)),
        files: vec![machine.directory.path().join("missing"), file.clone()],
        payload: &payload,
        ..machine.sources()
    };
    assert_eq!(user(sources(&[("r.test", "job")], &[("r.test", "runner")]), "r.test/a").as_deref(), Some("job"));
    assert_eq!(user(sources(&[], &[("r.test", "runner")]), "r.test/a").as_deref(), Some("runner"));
    assert_eq!(user(sources(&[], &[]), "r.test/a").as_deref(), Some("file"));
    assert_eq!(user(sources(&[], &[]), "own.test:5050/a").as_deref(), Some("payload"));
    assert_eq!(user(sources(&[], &[]), "nobodys.test/a"), None);
    let (login, _) = found(sources(&[("r.test", "job")], &[]), "r.test/a");
    assert_eq!(login.expect("the login must be found").0, "$DOCKER_AUTH_CONFIG");
}

#[test]
fn the_longest_path_wins_in_any_source() {
    let machine = Machine::new();
    let sources = || TestSources {
        job: Some(auths(&[("r.test", "host"), ("r.test/a", "group")])),
        runner: Some(auths(&[("r.test/a/b", "project"), ("r.test", "late")])),
        ..machine.sources()
    };
    for (image, expected) in
        [("r.test/a/b", "project"), ("r.test/a/b/c:1", "project"), ("r.test/a/bc", "group"), ("r.test/x", "host")]
    {
        assert_eq!(user(sources(), image).as_deref(), Some(expected), "{image}");
    }
}

#[test]
fn docker_hub_has_many_names() {
    let machine = Machine::new();
    for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"] {
        for image in ["alpine", "team/app", "docker.io/library/alpine"] {
            let sources = TestSources { job: Some(auths(&[(key, "hub")])), ..machine.sources() };
            assert_eq!(user(sources, image).as_deref(), Some("hub"), "{key} {image}");
        }
    }
    let sources = TestSources { job: Some(auths(&[("https://R.test/v2/", "r")])), ..machine.sources() };
    assert_eq!(user(sources, "r.test/a").as_deref(), Some("r"));
}

#[test]
fn helpers_win_over_the_store_and_the_store_over_passwords() {
    let machine = Machine::new();
    machine.helper("one", "read server; printf '{\"ServerURL\":\"%s\",\"Username\":\"one %s %s\",\"Secret\":\"s\"}' \"$server\" \"$server\" \"$1\"");
    machine.helper("all", "read server; printf '{\"Username\":\"all %s\",\"Secret\":\"s\"}' \"$server\"");
    machine.helper("token", "echo '{\"Username\":\"<token>\",\"Secret\":\"t0k\"}'");
    let auths = auths(&[("r.test", "password"), ("s.test", "password")]);
    let text =
        auths.replacen('{', "{\"credsStore\":\"all\",\"credHelpers\":{\"r.test\":\"one\",\"t.test\":\"token\"},", 1);
    let user = |image| user(TestSources { runner: Some(text.clone()), ..machine.sources() }, image).expect("a login");
    assert_eq!(user("r.test/a"), "one r.test get");
    assert_eq!(user("s.test/a"), "all s.test");
    assert_eq!(user("alpine"), "all https://index.docker.io/v1/");
    assert_eq!(user("t.test/a"), "token t0k");
}

#[test]
fn the_next_source_is_used_if_a_helper_has_no_login() {
    let machine = Machine::new();
    machine.helper("empty", "echo '{\"ServerURL\":\"\",\"Username\":\"\",\"Secret\":\"\"}'");
    machine.helper("none", "echo 'credentials not found in native keychain'; exit 1");
    for helper in ["empty", "none"] {
        let sources = TestSources {
            runner: Some(format!("{{\"credsStore\": \"{helper}\"}}")),
            files: vec![machine.file(&auths(&[("r.test", "next")]))],
            ..machine.sources()
        };
        assert_eq!(user(sources, "r.test/a").as_deref(), Some("next"), "{helper}");
    }
}

#[test]
fn a_failing_helper_is_a_warning_and_the_next_source_is_used() {
    let mut machine = Machine::new();
    machine.helper("broken", "echo 'the vault is sealed'; exit 3");
    machine.helper("nonsense", "echo secret");
    machine.helper("deaf", "exec <&-; echo '{}'");
    machine.helper("endless", "sleep 600 & yes");
    machine.helper("hangs", "sleep 600 & sleep 600");
    machine.timeout = Duration::from_millis(500);
    for (helper, part) in [
        ("broken", "the vault is sealed"),
        ("nonsense", "invalid response"),
        ("missing", "not installed"),
        ("../../bin/sh", "not the name"),
        ("/bin/sh", "not the name"),
        ("hangs", "was killed"),
        ("endless", "docker-credential-endless"),
    ] {
        let sources = TestSources {
            runner: Some(format!("{{\"credHelpers\": {{\"r.test\": \"{helper}\"}}}}")),
            files: vec![machine.file(&auths(&[("r.test", "next")]))],
            ..machine.sources()
        };
        let (login, warnings) = found(sources, "r.test/a");
        assert_eq!(login.expect("a login").1, "next", "{helper}");
        assert!(warnings.len() == 1 && warnings[0].contains(part), "{helper}: {warnings:?}");
        assert!(!warnings[0].contains("secret"), "{warnings:?}");
    }
}

#[test]
fn a_helper_counts_by_its_exit_status() {
    let machine = Machine::new();
    // Each of these helpers closes its output before it exits.
    machine.helper("good", "echo '{\"Username\":\"good\",\"Secret\":\"s\"}'; exec >&-; sleep 0.2; exit 0");
    machine.helper("bad", "echo '{\"Username\":\"bad\",\"Secret\":\"s\"}'; exec >&-; sleep 0.2; exit 1");
    // A process of this helper keeps the output open.
    machine.helper("daemon", "sleep 600 & echo '{\"Username\":\"daemon\",\"Secret\":\"s\"}'");
    let find = |helper: &str| {
        let runner = Some(format!("{{\"credsStore\": \"{helper}\"}}"));
        found(TestSources { runner, ..machine.sources() }, "r.test/a")
    };
    for helper in ["good", "daemon"] {
        let (login, warnings) = find(helper);
        assert_eq!((login.expect("a login").1.as_str(), warnings), (helper, Vec::new()));
    }
    let (login, warnings) = find("bad");
    assert!(login.is_none() && warnings[0].contains("docker-credential-bad failed: no reason given"), "{warnings:?}");
}

#[test]
fn a_job_can_use_only_allowed_helpers() {
    let mut machine = Machine::new();
    machine.helper("one", "echo '{\"Username\":\"one\",\"Secret\":\"s\"}'");
    machine.helper(
        "own",
        "printf '{\"Username\":\"%s %s %s %s\",\"Secret\":\"s\"}' \"$(id -u)\" \"$HOME\" \"$PWD\" \"$AGENT_SECRET\"",
    );
    let store = |name: &str| Some(format!("{{\"credsStore\": \"{name}\"}}"));
    for name in ["one", "own"] {
        let (login, warnings) = found(TestSources { job: store(name), ..machine.sources() }, "r.test/a");
        assert!(login.is_none() && warnings[0].contains("does not allow"), "{warnings:?}");
    }
    fs::set_permissions(machine.directory.path(), fs::Permissions::from_mode(0o755)).expect("set the permissions");
    machine.allowed = vec!["own".to_owned()];
    let user_id = if Uid::effective().is_root() { nobody().0 } else { Uid::effective().as_raw() };
    let sources = || machine.sources();
    assert_eq!(
        user(TestSources { job: store("own"), ..sources() }, "r.test/a").as_deref(),
        Some(&*format!("{user_id} / / "))
    );
    // A helper of the administrator gets the agent's environment.
    let of_runner = user(TestSources { runner: store("own"), ..sources() }, "r.test/a").expect("a login");
    assert!(
        of_runner.starts_with(&format!("{} ", Uid::effective())) && of_runner.ends_with(" hunter22"),
        "{of_runner}"
    );
    assert!(user_of_job_is_refused(sources(), store("one")));
    assert!(user_of_job_is_refused(sources(), store("../own")));
}

fn user_of_job_is_refused(sources: TestSources<'_>, job: Option<String>) -> bool {
    found(TestSources { job, ..sources }, "r.test/a").0.is_none()
}

#[test]
fn reports_an_unreadable_source_without_its_content() {
    let machine = Machine::new();
    for text in ["hunter22", "{\"auths\": 5}", "{\"auths\": {\"r.test\": {\"auth\": \"hunter22\"}}}"] {
        let (login, warnings) = found(TestSources { job: Some(text.to_owned()), ..machine.sources() }, "r.test/a");
        assert!(login.is_none() && warnings.len() == 1 && !warnings[0].contains("hunter22"), "{warnings:?}");
    }
    for text in ["", "{}", "{\"auths\": {\"r.test\": {}}}", "{\"auths\": null, \"HttpHeaders\": {}}"] {
        assert_eq!(user(TestSources { job: Some(text.to_owned()), ..machine.sources() }, "r.test/a"), None, "{text}");
    }
}

#[test]
fn reads_the_original_file_format() {
    let machine = Machine::new();
    let text = format!("{{\"r.test\": {{\"auth\": {:?}, \"email\": \"x\"}}}}", auth("old"));
    let sources = TestSources { files: vec![machine.file(&text)], ..machine.sources() };
    assert_eq!(user(sources, "r.test/a").as_deref(), Some("old"));
}

#[test]
fn an_ecr_token_is_used_if_there_is_no_other_login() {
    let machine = Machine::new();
    let of = |host: &str, login| EcrLogin { host: host.to_owned(), login };
    let fetched =
        [of("1.ecr.test", Ok(("AWS".to_owned(), "t0k".to_owned()))), of("2.ecr.test", Err("AccessDenied".to_owned()))];
    let sources = || TestSources { fetched: &fetched, ..machine.sources() };
    assert_eq!(user(sources(), "1.ecr.test/a").as_deref(), Some("AWS"));
    let own = TestSources { job: Some(auths(&[("1.ecr.test", "own")])), ..sources() };
    assert_eq!(user(own, "1.ecr.test/a").as_deref(), Some("own"));
    let (login, warnings) = found(sources(), "2.ecr.test/a");
    assert!(login.is_none() && warnings.len() == 1 && warnings[0].contains("AccessDenied"), "{warnings:?}");
}

#[test]
fn the_header_contains_the_fields_that_the_engine_needs() {
    let access = LoginSources::default();
    let logins = RegistryLogins::read(Some(auths(&[("docker.io", "me")])), &[], &access);
    let header = logins.find(&name("alpine"), &mut |_| ()).expect("a login").header();
    let json = BASE64_URL_SAFE.decode(header.reveal()).expect("must be base64");
    let expected = r#"{"username":"me","password":"pw-me","serveraddress":"https://index.docker.io/v1/"}"#;
    assert_eq!(String::from_utf8(json).expect("the text must be UTF-8"), expected);
}
