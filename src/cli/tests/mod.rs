//! Tests of the subcommands that manage runners, with a fake server.

mod documents;
mod examples;
mod server;

use super::*;

const VALID: &str = r#"{"id": 7, "token": "glrt-made", "token_expires_at": null}"#;

/// Runs a command on a configuration; returns its result and the content of the file.
fn outcome(text: &str, arguments: &[&str]) -> (Result<bool, String>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.toml");
    if !text.is_empty() {
        std::fs::write(&path, text).expect("write the file");
    }
    let path_text = path.display().to_string();
    let arguments = ["mayfly"].iter().chain(arguments).copied().chain(["--config", &path_text]);
    let matches = command().try_get_matches_from(arguments).expect("must parse");
    let outcome = dispatch(Cli::from_arg_matches(&matches).expect("must parse"));
    (outcome.map(|code| code == ExitCode::SUCCESS), std::fs::read_to_string(&path).unwrap_or_default())
}

fn runner(url: &str, name: &str, token: &str) -> String {
    format!(
        "# {name}\n[[runners]]\nname = \"{name}\"\nurl = \"{url}\"\ntoken = \"{token}\"\n\
         executor = \"shell\"\nodd = 1\n"
    )
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("write the file");
    file
}

#[test]
fn register_verifies_an_authentication_token_and_writes_the_runner() {
    let server = server::Server::start(&[("POST /api/v4/runners/verify", 200, VALID)]);
    let token = file("glrt-given\n");
    let token_file = token.path().display().to_string();
    let arguments = [
        "register",
        "-n",
        "--url",
        &server.url,
        "--token-file",
        &token_file,
        "--executor",
        "shell",
        "--name",
        "here",
        "--limit=2",
        "--cache-type",
        "s3",
    ];
    let (outcome, text) = outcome("# ours\nconcurrent = 4\n", &arguments);
    assert_eq!(outcome, Ok(true));
    assert!(text.starts_with("# ours\nconcurrent = 4\n"), "{text}");
    let config = Config::parse(std::path::Path::new("c"), &text).expect("a configuration");
    let runner = &config.runners[0];
    assert_eq!((runner.name.as_str(), runner.id, runner.limit), ("here", Some(7), Some(2)));
    assert_eq!(runner.token.reveal(), "glrt-given");
    let request = &server.requests()[0];
    assert!(request.body["system_id"].as_str().is_some_and(|id| id.len() == 14), "{request:?}");
    assert_eq!(request.body["info"]["executor"], "shell");
}

#[test]
fn register_refuses_attributes_that_belong_to_the_server() {
    let server = server::Server::start(&[("POST /api/v4/runners/verify", 200, VALID)]);
    let common = ["register", "-n", "--url", &server.url, "--executor", "shell", "--tag-list", "a,b"];
    let (refused, text) = outcome("", &[&common[..], &["--token", "glrt-given"]].concat());
    assert!(refused.expect_err("must be refused").contains("--tag-list"));
    assert!(text.is_empty() && server.requests().is_empty());
    let (warned, _) = outcome("", &[&common[..], &["--registration-token", "glrt-given"]].concat());
    assert_eq!(warned, Ok(true));
}

#[test]
fn register_creates_a_runner_with_an_access_token() {
    let server = server::Server::start(&[
        ("POST /api/v4/user/runners", 201, VALID),
        ("POST /api/v4/runners/verify", 200, VALID),
    ]);
    let access = file("glpat-person");
    let access = access.path().display().to_string();
    let arguments = [
        "register",
        "-n",
        "--url",
        &server.url,
        "--access-token-file",
        &access,
        "--executor",
        "shell",
        "--group-id",
        "12",
        "--tag-list",
        "a,b",
        "--name",
        "here",
    ];
    let (outcome, text) = outcome("", &arguments);
    assert_eq!(outcome, Ok(true));
    assert!(text.contains("token = \"glrt-made\"") && !text.contains("glpat-person"), "{text}");
    let requests = server.requests();
    assert!(requests[0].headers.contains("private-token: glpat-person"));
    assert_eq!(requests[0].body["runner_type"], "group_type");
    assert_eq!((&requests[0].body["tag_list"], &requests[0].body["description"]), (&"a,b".into(), &"here".into()));
    assert!(!requests[1].headers.contains("glpat-person"));
    assert_eq!(requests[1].body["token"], "glrt-made");
}

#[test]
fn register_removes_a_created_runner_that_cannot_be_verified() {
    let access = file("glpat-person");
    let access = access.path().display().to_string();
    for (leave, last) in [(&[][..], "DELETE /api/v4/runners"), (&["--leave-runner"][..], "POST /api/v4/runners/verify")]
    {
        let server = server::Server::start(&[
            ("POST /api/v4/user/runners", 201, VALID),
            ("POST /api/v4/runners/verify", 403, "{}"),
            ("DELETE /api/v4/runners", 204, ""),
        ]);
        let arguments = [
            "register",
            "-n",
            "--url",
            &server.url,
            "--access-token-file",
            &access,
            "--executor",
            "shell",
            "--runner-type",
            "instance_type",
        ];
        let (outcome, text) = outcome("", &[&arguments[..], leave].concat());
        assert!(outcome.is_err() && text.is_empty());
        assert_eq!(server.lines().last().map(String::as_str), Some(last));
    }
}

#[test]
fn a_runner_with_an_invalid_configuration_is_never_created() {
    let server = server::Server::start(&[("POST /api/v4/user/runners", 201, VALID)]);
    let access = file("glpat-person");
    let access = access.path().display().to_string();
    let common = ["register", "-n", "--url", &server.url, "--access-token-file", &access];
    for more in [
        &["--runner-type", "instance_type", "--executor", "kubernetes"][..],
        &["--runner-type", "instance_type", "--executor", "shell", "--env", "NOT_A_PAIR"],
        &["--runner-type", "group_type", "--executor", "shell"],
        &["--executor", "shell"],
        &["--runner-type", "instance_type"],
    ] {
        let (outcome, text) = outcome("", &[&common[..], more].concat());
        assert!(outcome.is_err() && text.is_empty(), "{more:?}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn verify_deletes_only_runners_that_the_server_does_not_know() {
    for (status, stays) in [(403, false), (500, true), (200, true)] {
        let server = server::Server::start(&[("POST /api/v4/runners/verify", status, VALID)]);
        let other = runner("http://127.0.0.1:9", "other", "glrt-b");
        let text = format!("{}{other}", runner(&server.url, "one", "glrt-a"));
        let (_, text) = outcome(&text, &["verify", "--delete", "--name", "one"]);
        assert_eq!(text.contains("\"one\""), stays, "{status}");
        assert!(text.ends_with(&other), "{text}");
    }
}

#[test]
fn verify_of_an_unknown_runner_fails() {
    let (outcome, _) = outcome(&runner("http://127.0.0.1:9", "one", "glrt-a"), &["verify", "--name", "two"]);
    assert!(outcome.expect_err("must be refused").contains("has no runner with the name `two`"));
}

#[test]
fn the_kind_of_token_decides_whether_the_runner_manager_or_the_runner_is_unregistered() {
    for (token, line) in [("glrt-a", "DELETE /api/v4/runners/managers"), ("old", "DELETE /api/v4/runners")] {
        let server = server::Server::start(&[("DELETE /api/v4/runners", 204, "")]);
        let (outcome, text) =
            outcome(&runner(&server.url, "one", token), &["unregister", "--url", &server.url, "--token", token]);
        assert_eq!(outcome, Ok(true));
        assert_eq!(server.lines(), [line]);
        assert!(!text.contains("[[runners]]"), "{text}");
    }
    assert!(outcome(&runner("http://127.0.0.1:9", "one", "t"), &["unregister"]).0.is_err());
}

#[test]
fn a_runner_stays_in_the_file_unless_gitlab_confirms_that_it_is_unregistered() {
    for (status, stays) in [(403, true), (500, true), (404, false), (204, false)] {
        let server = server::Server::start(&[("DELETE /api/v4/runners", status, "{}")]);
        let (passed, text) = outcome(&runner(&server.url, "one", "glrt-t"), &["unregister", "--name", "one"]);
        assert_eq!((passed, text.contains("[[runners]]")), (Ok(!stays), stays), "{status}");
    }
}

#[test]
fn an_unknown_runner_is_named() {
    let text = runner("http://127.0.0.1:9", "one", "glrt-t");
    for command in ["unregister", "verify"] {
        let why = outcome(&text, &[command, "--name", "two", "--token", "glrt-other"]).0.expect_err("must be refused");
        assert!(why.contains("has no runner with the name `two` and the token `"), "{why}");
        assert!(!why.contains("glrt-other"), "{why}");
    }
}

#[test]
fn an_html_page_is_not_taken_for_a_response_of_gitlab() {
    let server = server::Server::start(&[("POST /api/v4/runners/verify", 200, "<html>sign in</html>")]);
    let arguments = ["register", "-n", "--url", &server.url, "--token", "glrt-t", "--executor", "shell"];
    let (result, text) = outcome("", &arguments);
    assert!(result.is_err_and(|why| why.contains("verifying the runner")), "no runner with id 0");
    assert_eq!(text, "");
}

#[test]
fn lint_fails_on_unknown_keys_and_unusable_runners_only() {
    for (more, passes) in [
        ("", true),
        ("privilegd = true\n", false),
        ("clean_git_config = true\n", true),
        ("[runners.feature_flags]\nFF_ENABLE_JOB_CLEANUP = true\nFF_GIT_URLS_WITHOUT_TOKENS = true\n", true),
        ("[runners.feature_flags]\nFF_ENABLE_JOB_CLEANPU = true\n", false),
        ("[[runners]]\nurl = \"http://h\"\ntoken = \"t\"\nexecutor = \"kubernetes\"\n", false),
    ] {
        let text = runner("http://127.0.0.1:9", "one", "t").replace("odd = 1\n", "");
        let (passed, _) = outcome(&format!("{text}{more}"), &["lint"]);
        assert_eq!(passed, Ok(passes), "{more}");
    }
}

#[test]
fn reset_token_changes_only_the_token_in_the_file() {
    let server = server::Server::start(&[(
        "POST /api/v4/runners/reset_authentication_token",
        201,
        r#"{"token": "glrt-new", "token_expires_at": "2030-01-02T03:04:05Z"}"#,
    )]);
    let before = runner(&server.url, "one", "glrt-old");
    let (outcome, text) = outcome(&before, &["reset-token", "--name", "one"]);
    assert_eq!(outcome, Ok(true));
    assert!(text.starts_with(&before.replace("glrt-old", "glrt-new")), "{text}");
    assert!(text.contains("token_expires_at = 2030-01-02T03:04:05Z"), "{text}");
}

#[test]
fn check_verifies_the_token_and_writes_nothing() {
    for (status, passes) in [(200, true), (403, false), (500, false)] {
        let server = server::Server::start(&[("POST /api/v4/runners/verify", status, VALID)]);
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        let path = directory.path().join("config.toml");
        let runner = runner(&server.url, "one", "glrt-a");
        std::fs::write(&path, format!("[mayfly]\nstate_dir = \"{}\"\n{runner}", state.display()))
            .expect("write the file");
        let there = directory.path().display().to_string();
        let file = path.display().to_string();
        let arguments = ["mayfly", "check", "--config", &file, "--working-directory", &there];
        let matches = command().try_get_matches_from(arguments).expect("must parse");
        let outcome = dispatch(Cli::from_arg_matches(&matches).expect("must parse"));
        assert_eq!(outcome.map(|code| code == ExitCode::SUCCESS), Ok(passes), "{status}");
        assert_eq!(std::fs::read_dir(&there).expect("a directory").count(), 1, "something was written");
        // After a failure, `check` also tests whether the server redirects to https.
        assert!(server.lines().iter().all(|line| line == "POST /api/v4/runners/verify" || line == "GET /"));
    }
}

#[test]
fn a_token_file_and_a_token_exclude_each_other() {
    let conflict = |flags: &[&str]| {
        let arguments = ["mayfly", "register"].iter().chain(flags);
        let matches = command().try_get_matches_from(arguments).expect("must parse");
        register::conflict(matches.subcommand_matches("register").expect("a subcommand"))
    };
    assert!(
        conflict(&["--token-file", "f", "--token", "t"])
            .is_some_and(|why| why.contains("--token-file cannot be used with --token"))
    );
    assert!(conflict(&["--access-token-file", "f", "-r", "t"]).is_some());
    assert!(conflict(&["--token-file", "f"]).is_none());
    let both = ["mayfly", "register", "--token-file", "f", "--access-token-file", "g"];
    assert!(command().try_get_matches_from(both).is_err());
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn exec_has_the_same_options_without_the_other_subcommands() {
    let help = |mut command: clap::Command| {
        command.build();
        let exec = command.find_subcommand_mut("exec").expect("the subcommand");
        (exec.render_long_help().to_string(), exec.render_usage().to_string())
    };
    assert_eq!(help(command_for_exec()), help(command()));
    command_for_exec().debug_assert();
}

#[test]
fn help_never_shows_values_of_the_environment() {
    fn check(command: &clap::Command) {
        let shown = command.get_arguments().filter(|arg| arg.get_env().is_some() && !arg.is_hide_env_values_set());
        assert_eq!(shown.count(), 0, "{}", command.get_name());
        command.get_subcommands().for_each(check);
    }
    check(&command());
}

#[test]
fn accepts_booleans_with_and_without_a_value() {
    for (arguments, debug) in
        [(&["--debug"][..], true), (&["--debug=true"], true), (&["--debug=0"], false), (&[], false)]
    {
        let arguments = ["mayfly", "list"].iter().chain(arguments);
        let matches = command().try_get_matches_from(arguments).expect("must parse");
        assert!(Cli::from_arg_matches(&matches).is_ok());
        assert_eq!(matches.get_one::<bool>("debug"), Some(&debug));
    }
    assert!(command().try_get_matches_from(["mayfly", "--debug=maybe", "list"]).is_err());
    assert!(command().try_get_matches_from(["mayfly", "--log-level", "loud", "list"]).is_err());
}
