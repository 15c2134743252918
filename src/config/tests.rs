//! Tests of loading a configuration file, and of messages about invalid ones.

use super::leave::LeaveStrategy;
use super::meaning::runner::tls_files;
use super::*;

fn load(text: &str) -> Result<LoadedConfig, String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.toml");
    fs::write(&path, text).expect("write the file");
    Config::load(&path).map_err(|error| error.to_string())
}

const RUNNER: &str = "[[runners]]\nname = \"a\"\nurl = \"https://h\"\ntoken = \"t\"\nexecutor = \"shell\"\n";

#[test]
fn fills_in_the_defaults() {
    let config = load(RUNNER).expect("the configuration must be valid").config;
    let runner = &config.runners[0];
    assert_eq!((config.concurrent, config.check_interval.as_secs(), config.shutdown_timeout.as_secs()), (1, 3, 30));
    assert_eq!((runner.output_limit, runner.limit, runner.request_concurrency), (4 << 20, None, 1));
    assert_eq!(runner.kill_grace, Duration::from_secs(10));
    assert_eq!((runner.upload_timeout.as_secs(), runner.upload_response_timeout.as_secs()), (3600, 600));
}

#[test]
fn uploads_have_the_configured_timeouts() {
    let artifact = "[runners.artifact]\nupload_timeout = \"2h\"\nresponse_header_timeout = \"0s\"\n";
    let loaded = load(&format!("{RUNNER}{artifact}")).expect("the configuration must be valid");
    let runner = &loaded.config.runners[0];
    assert_eq!((runner.upload_timeout.as_secs(), runner.upload_response_timeout.as_secs()), (7200, 600));
    assert!(!loaded.findings.iter().any(|finding| finding.message.contains("artifact")));
}

#[test]
fn an_invalid_type_shows_its_line() {
    let error = load(&format!("concurrent = \"two\"\n{RUNNER}")).expect_err("must be refused");
    assert!(error.contains("line 1") && error.contains("concurrent"), "{error}");
    let error = load(&format!("{RUNNER}unhealthy_interval = \"soon\"\n")).expect_err("must be refused");
    assert!(error.contains("line 6") && error.contains("not a duration"), "{error}");
    assert!(load(&format!("concurrent = 0\n{RUNNER}")).expect_err("must be refused").contains("at least 1"));
}

#[test]
fn an_invalid_value_shows_its_line() {
    let second = RUNNER.replace("\"a\"", "\"b\"");
    let cases = [
        (format!("\nconcurrent = 0\n{RUNNER}"), "line 2", "concurrent = 0"),
        (format!("log_format = \"xml\"\n{RUNNER}"), "line 1", "runner, text, json"),
        (format!("log_level = \"loud\"\n{RUNNER}"), "line 1", "debug"),
        (format!("listen_address = \":http\"\n{RUNNER}"), "line 1", "`http` is not a port"),
        (format!("{RUNNER}{}", second.replace("\"shell\"", "\"x\"")), "line 10", "runner `b`"),
        (format!("{RUNNER}shell = \"pwsh\"\n"), "line 6", "pwsh"),
        (format!("{RUNNER}environment = [\n\"A=1\",\n\"hidden\"]\n"), "line 6", "number 2"),
        (format!("{RUNNER}[runners.mayfly]\nallowed_credential_helpers = [\"../x\"]\n"), "line 7", "not a name"),
    ];
    for (text, line, part) in cases {
        let error = load(&text).expect_err("must be refused");
        assert!(error.contains(line) && error.contains(part), "{error}");
        assert!(!error.contains("hidden"), "{error}");
    }
}

#[test]
fn an_invalid_period_or_time_zone_shows_its_line() {
    let table = format!("{RUNNER}[runners.machine]\nMaxBuilds = 3\n[[runners.machine.autoscaling]]\n");
    let policy = format!("{RUNNER}[[runners.autoscaler.policy]]\n");
    for (text, line, part) in [
        (format!("{table}Periods = [\"* * 9-25 * * * *\"]\n"), "line 9", "the hour `25`"),
        (format!("{table}Periods = [\n  \"* * * * *\",\n  \"* * 9-25 * * * *\",\n]\n"), "line 9", "the hour `25`"),
        (format!("{table}Timezone = \"Mars/Olympus\"\n"), "line 9", "`Mars/Olympus` is not known"),
        (format!("{policy}timezone = \"Mars/Olympus\"\n"), "line 7", "`Mars/Olympus` is not known"),
        (format!("{policy}periods = [\"* * * * * * *\"]\n"), "line 7", "has 7 fields"),
        (format!("{policy}idle_time = \"soon\"\n"), "line 7", "not a duration"),
    ] {
        let error = load(&text).expect_err("must be refused");
        assert!(error.contains(line) && error.contains(part), "{error}");
    }
}

#[test]
fn mayfly_keys_override_the_tables_of_a_fleet() {
    let tables = "limit = 10\n[runners.machine]\nMaxBuilds = 250\nIdleTime = 600\n\
                  [runners.autoscaler]\nmax_use_count = 9\ncapacity_per_instance = 2\n\
                  [[runners.autoscaler.policy]]\nidle_time = \"7m\"\n";
    let config = load(&format!("concurrent = 40\n{RUNNER}{tables}")).expect("the configuration must be valid").config;
    assert_eq!((config.concurrent, config.runners[0].limit), (2, Some(2)));
    let now = jiff::Timestamp::now();
    assert_eq!(config.lifetime.max_builds, Some(9));
    assert_eq!(config.lifetime.idle_timeout(now), Some(Duration::from_secs(420)));
    let own = "[mayfly]\nmax_builds = 3\nidle_timeout = \"1m\"\nmax_age = \"24h\"\n";
    let config =
        load(&format!("concurrent = 40\n{own}{RUNNER}{tables}")).expect("the configuration must be valid").config;
    assert_eq!(config.lifetime.max_builds, Some(3));
    assert_eq!(config.lifetime.idle_timeout(now), Some(Duration::from_secs(60)));
    assert_eq!(config.lifetime.max_age, Some(Duration::from_secs(86400)));
    let unbounded =
        load(&format!("[mayfly]\nmax_builds = 0\n{RUNNER}{tables}")).expect("the configuration must be valid").config;
    assert_eq!(unbounded.lifetime.max_builds, None);
}

#[test]
fn refuses_contradictory_leave_settings() {
    let leave = |text: &str| load(&format!("[mayfly]\n{text}\n{RUNNER}")).map(|loaded| loaded.config.leave);
    assert_eq!(leave("").expect("the configuration must be valid").strategy, LeaveStrategy::Exit);
    let raise = "aws = { raise_on_job = {}, protect_while_busy = false }";
    assert!(leave(raise).expect_err("must be refused").to_string().contains("leave one of them out"));
    let asg = leave("leave = \"aws-asg\"\nleave_fallback_after = \"2m\"").expect("the configuration must be valid");
    assert_eq!((asg.strategy, asg.fallback_after), (LeaveStrategy::AwsAsg, Duration::from_secs(120)));
    assert_eq!(asg.poweroff_command, "systemctl poweroff");
    for (text, line, part) in [
        ("leave = \"explode\"", "line 2", "aws-asg"),
        ("leave = \"command\"", "line 2", "needs a `leave_command`"),
        ("\nleave_command = \"true\"", "line 3", "only"),
    ] {
        let error = leave(text).expect_err("must be refused");
        assert!(error.contains(line) && error.contains(part), "{error}");
    }
}

#[test]
fn names_misleading_periods_with_their_line() {
    let text = format!(
        "{RUNNER}[[runners.machine.autoscaling]]\nPeriods = [\n\"* * 9-17 * * mon-fri *\",\n\"* * * 30 2 * *\"]\nIdleTime = 1\n\
         [[runners.machine.autoscaling]]\nPeriods = [\"0 * 9 * * * *\"]\n"
    );
    let found: Vec<String> = findings::check_keys(&text, Role::Agent).iter().map(Finding::to_string).collect();
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].starts_with("line 9: the period `* * * 30 2 * *` never matches"), "{found:#?}");
    assert!(found.iter().any(|found| found.starts_with("line 12: ") && found.contains("sets seconds")), "{found:#?}");
    assert!(found.iter().any(|found| found.starts_with("line 12: ") && found.contains("`IdleTime`")), "{found:#?}");
}

#[test]
fn names_what_gitlab_runner_reads_in_another_way() {
    let text = "[[runners]]\nexecutor = \"docker+machine\"\n[runners.machine]\nIdleScaleFactor = 1\n\
                [[runners.machine.autoscaling]]\nIdleTime = 1\nIdleScaleFactor = 1.0\nPeriods = [\"* 9-17 * * *\",\n\
                \"* * 22-6 * * * *\"]\n\
                [[runners]]\nexecutor = \"instance\"\n[[runners.autoscaler.policy]]\nperiods = [\"* 9-17 * * *\",\n\"* * * * sat-sun\"]\n";
    let found: Vec<String> = findings::check_keys(text, Role::Manager).iter().map(Finding::to_string).collect();
    assert_eq!(found.len(), 4, "{found:#?}");
    for (found, start) in found.iter().zip([
        "line 4: `runners.machine.IdleScaleFactor` is an integer",
        "line 8: the period `* 9-17 * * *` has no field for seconds",
        "line 9: the period `* * 22-6 * * * *` has a range that wraps around",
        "line 14: the period `* * * * sat-sun` has a range that wraps around",
    ]) {
        assert!(found.starts_with(start), "{start}: {found}");
    }
}

#[test]
fn does_not_show_an_invalid_line_with_a_secret() {
    for line in [
        "token = glrt-secret",
        "token = \"glrt-secret",
        "token = 4711",
        "SecretKey = \"secret",
        "\"token\" = secret",
        "glrt-secret",
        "glrt-secret = ",
        "glrt-secret==",
        "glrt-secret/x=y",
        "limit = 1 token = \"glrt-secret\"",
        "limit = two # glrt-secret",
        "limit = \"two\" # glrt-secret",
        "cache = { Shared = 5, SecretKey = \"secret\" }",
        "environment = [5, \"A=secret\"]",
    ] {
        let error = load(&format!("[[runners]]\n{line}\n")).expect_err("must be refused");
        assert!(error.contains("line 2"), "{error}");
        assert!(!error.contains("secret") && !error.contains("4711"), "{error}");
    }
    for lines in
        ["pre_build_script = \"\"\"\nlimit = 'secret' \\q\n\"\"\"", "environment = [\n\"A=1\",\nlimit='secret'\n]"]
    {
        let error = load(&format!("[[runners]]\n{lines}\n")).expect_err("must be refused");
        assert!(error.contains("line ") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn an_edit_of_a_broken_file_does_not_show_a_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.toml");
    for line in ["token = glrt-secret", "glrt-secret==", "token = \"glrt-secret"] {
        fs::write(&path, format!("[[runners]]\n{line}\n")).expect("write the file");
        let error = edit::Editor::open(&path).err().expect("must be refused");
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn names_unknown_executors() {
    for executor in ["docker-windows", "kubernetes", "ssh", "custom"] {
        let loaded = load(&RUNNER.replace("shell", executor)).expect("the configuration must be valid");
        let finding = &loaded.findings[0];
        assert_eq!((finding.severity, finding.line), (Severity::UnusableRunner, Some(5)));
        assert!(finding.message.contains("runner `a`") && finding.message.contains("does not exist"), "{finding}");
    }
    let text = RUNNER.replace("\"shell\"", "\"x\"");
    let error = load(&text).expect_err("must be refused");
    assert!(error.contains("runner `a`") && error.contains("unknown"), "{error}");
}

#[test]
fn finds_certificates_beside_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("certs")).expect("create the directory");
    fs::write(directory.path().join("certs/gitlab.test.crt"), "x").expect("write the file");
    let path = directory.path().join("config.toml");
    let files = tls_files(&path, "https://gitlab.test:8443/x", [None, None, None]);
    assert_eq!(files.ca_file, Some(directory.path().join("certs/gitlab.test.crt")));
    assert_eq!(files.cert_file, None);
}

#[test]
fn a_runner_with_an_unsupported_executor_leaves_the_others_usable() {
    let text = "[[runners]]\nname = \"k\"\nurl = \"http://h\"\ntoken = \"t\"\nexecutor = \"kubernetes\"\n\
                [[runners]]\nname = \"d\"\nurl = \"http://h\"\ntoken = \"u\"\nexecutor = \"docker\"\n\
                [runners.docker]\nimage = \"x\"\n";
    let config = Config::parse(Path::new("config.toml"), text).expect("a configuration");
    assert_eq!(
        config.runners.iter().map(|runner| (runner.position, runner.name.as_str())).collect::<Vec<_>>(),
        [(1, "d")]
    );
    assert!(config.runners[0].docker_text.contains("image"), "of the second table");
    assert!(config.unusable[0].why.starts_with("runner `k`: `executor = \"kubernetes\"`"), "{:?}", config.unusable);
}

#[test]
fn an_empty_directory_counts_as_unset_and_a_relative_one_is_refused_for_containers() {
    let parse = |directory: &str| {
        let text = format!(
            "[[runners]]\nurl = \"http://h\"\ntoken = \"t\"\nexecutor = \"docker\"\nbuilds_dir = \"{directory}\"\n"
        );
        Config::parse(Path::new("config.toml"), &text).map(|config| config.runners[0].builds_dir.clone())
    };
    assert_eq!(parse("").expect("a configuration"), None);
    assert_eq!(parse("/b").expect("a configuration"), Some("/b".into()));
    for directory in ["builds", "/"] {
        let why = parse(directory).expect_err("must be refused").to_string();
        assert!(why.contains("line 5") && why.contains("an absolute path"), "{why}");
    }
}

#[test]
fn each_configuration_file_has_its_own_state_directory() {
    let directory = |path: &str| {
        let text = "[[runners]]\nurl = \"http://h\"\ntoken = \"t\"\nexecutor = \"shell\"\n";
        state_dir(&Config::parse(Path::new(path), text).expect("a configuration"))
    };
    let default = default_paths()[0].display().to_string();
    let (usual, one, other) = (directory(&default), directory("/srv/one.toml"), directory("/srv/other.toml"));
    assert!(
        one != other && one.parent() == Some(&*usual) && other.parent() == Some(&*usual),
        "{usual:?} {one:?} {other:?}"
    );
}
