//! The agent in machines that boot from an image with its package: cloud-init writes the configuration, systemd
//! supervises the agent.

use std::io::BufReader;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::json;

use crate::support::docker::Docker;
use crate::support::gitlab::{Answer, GitLab, RUNNER_TOKEN};
use crate::support::http::{read_request, write_answer};
use crate::support::imds::Imds;
use crate::support::job::{job, until_there};
use crate::support::machine::{Image, Machine, in_own_network, with_image};
use crate::support::mayfly::Home;
use crate::support::output_text;

/// User data that writes a configuration with one runner of `gitlab`.
pub fn user_data(gitlab: &GitLab, mayfly: &str) -> String {
    let config = format!(
        "check_interval = 1\nshutdown_timeout = 60\nuser = \"mayfly-job\"\n[mayfly]\n{mayfly}\n[[runners]]\nname = \"fleet\"\n\
         url = \"{}\"\ntoken = \"{RUNNER_TOKEN}\"\nexecutor = \"shell\"",
        gitlab.url
    );
    let indented = config.replace('\n', "\n      ");
    format!(
        "#cloud-config\nwrite_files:\n  - path: /etc/mayfly/config.toml\n    permissions: '0600'\n    content: |\n      {indented}\n"
    )
}

/// Boots a machine for a GitLab of its own.
pub fn with_machine(image: &Image, mayfly: &str, test: impl FnOnce(&GitLab, &mut Machine) + Send) {
    in_own_network(|| {
        let gitlab = GitLab::start();
        let _imds = Imds::start("i-0abc0000000000001", &user_data(&gitlab, mayfly));
        let mut machine = image.boot();
        machine.wait_for_journal("mayfly is up", 1);
        test(&gitlab, &mut machine);
        gitlab.assert_strict();
    });
}

/// How often a line occurs in a job's log.
pub fn times(lines: &[String], line: &str) -> usize {
    lines.iter().filter(|other| *other == line).count()
}

/// A watchdog with a short timeout, and a start that repairs the configuration which a test breaks.
const QUICK_WATCHDOG: &str = r#"
mkdir -p /etc/systemd/system/mayfly.service.d
cat >/etc/systemd/system/mayfly.service.d/watchdog.conf <<END
[Service]
WatchdogSec=3
ExecStartPre=/bin/sh -c 'cd /etc/mayfly && [ ! -p config.toml ] || mv -f kept config.toml'
END
"#;

#[test]
fn a_job_continues_after_its_agent_is_killed_or_hangs() {
    with_image(QUICK_WATCHDOG, |image| {
        with_machine(image, "", |gitlab, machine| {
            let wait = until_there("/tmp/go");
            let facts = "echo \"$(id -un) $HOME $(dirname $CI_PROJECT_DIR)\"; touch here";
            let id =
                gitlab.queue(job(&["echo begun", facts, &wait, "echo finished"]).after_script(&["echo after"]).build());
            gitlab.wait_for_log(id, "begun");
            let agent = || machine.run("systemctl show --value -p MainPID mayfly").trim().to_owned();
            let first = agent();
            machine.run(&format!("kill -9 {first}"));
            machine.wait_for_journal("job resumed from journal", 1);
            let second = agent();
            assert_ne!(first, second);
            // Only the main loop hangs: it reads its configuration from a pipe without a writer. The next start of the
            // unit restores the file.
            machine.run("cd /etc/mayfly; cp -p config.toml kept; mkfifo pipe; mv -f pipe config.toml");
            machine.wait_for_journal("Watchdog timeout", 1);
            machine.wait_for_journal("job resumed from journal", 2);
            let third = agent();
            assert_ne!(second, third);
            machine.run(&format!("kill -STOP {third}"));
            machine.wait_for_journal("Watchdog timeout", 2);
            machine.wait_for_journal("job resumed from journal", 3);
            machine.run("touch /tmp/go");
            let job = gitlab.finished(id);
            assert_eq!(job.state, "success", "{}", job.log());
            for line in ["begun", "finished", "after", "Job succeeded"] {
                assert_eq!(times(&job.lines(), line), 1, "{line} in {:#?}", job.lines());
            }
            let place = "mayfly-job /var/lib/mayfly-job /var/cache/mayfly/builds/";
            assert!(job.log().contains(place), "{}", job.log());
        });
    });
}

#[test]
fn after_a_reboot_the_agent_reports_its_job_and_keeps_its_count() {
    with_image(USED, |image| {
        in_own_network(|| {
            let gitlab = GitLab::start();
            let keys = "max_builds = 2\nleave = \"poweroff\"";
            let _imds = Imds::start("i-0abc0000000000001", &user_data(&gitlab, keys));
            let disk = image.disk();
            let mounts = [(disk.as_path(), "/var/lib/mayfly")];
            let id = gitlab.queue(job(&["echo begun", "sleep 600"]).build());
            let mut machine = image.boot_with(&mounts);
            gitlab.wait_for_log(id, "begun");
            // An immediate reboot, without notice to any process.
            machine.try_run("systemctl reboot --force --force");
            machine.wait_until_rebooted();
            let last = [gitlab.queue(job(&["echo once more"]).build()), gitlab.queue(job(&["true"]).build())];
            let mut machine = image.boot_with(&mounts);
            let lost = gitlab.finished(id);
            assert_eq!(lost.failure_reason.as_deref(), Some("runner_system_failure"), "{}", lost.log());
            assert!(lost.log().contains("the machine went down while the job was running"), "{}", lost.log());
            machine.wait_until_off();
            assert_eq!(last.map(|id| gitlab.job_state(id)), ["success", "pending"]);
            assert_eq!(gitlab.managers(), Vec::<String>::new());
            gitlab.assert_strict();
        });
    });
}

#[test]
fn a_shutdown_is_resumed_after_a_reboot() {
    // The command hangs before the reboot and powers off after it.
    let command = "leave_command = \"[ -e /var/lib/mayfly/again ] && systemctl poweroff || \
                   { touch /var/lib/mayfly/again; sleep 600; }\"";
    with_image(USED, |image| {
        in_own_network(|| {
            let gitlab = GitLab::start();
            let keys = format!("idle_timeout = \"2s\"\nleave = \"command\"\n{command}");
            let _imds = Imds::start("i-0abc0000000000001", &user_data(&gitlab, &keys));
            let disk = image.disk();
            let mounts = [(disk.as_path(), "/var/lib/mayfly")];
            let mut machine = image.boot_with(&mounts);
            machine.wait_until("the command", |_| disk.join("again").exists());
            machine.try_run("systemctl reboot --force --force");
            machine.wait_until_rebooted();
            let (polls, waiting) = (gitlab.count("POST jobs/request"), gitlab.queue(job(&["true"]).build()));
            let mut machine = image.boot_with(&mounts);
            machine.wait_until_off();
            assert!(machine.unit_journal().contains("resuming the shutdown reason=idle_timeout phase=Terminating"));
            assert_eq!((gitlab.count("POST jobs/request"), gitlab.job_state(waiting).as_str()), (polls, "pending"));
            gitlab.assert_strict();
        });
    });
}

#[test]
fn stopping_the_unit_drains_and_an_upgrade_hands_the_job_over() {
    with_image("true", |image| {
        with_machine(image, "", |gitlab, machine| {
            let wait = |file: &str| until_there(format!("/tmp/{file}"));
            let id =
                gitlab.queue(job(&["echo begun", &wait("one"), "echo between", &wait("two"), "echo finished"]).build());
            gitlab.wait_for_log(id, "begun");
            machine.run("dpkg --install /mayfly.deb");
            machine.wait_for_journal("job resumed from journal", 1);
            machine.run("touch /tmp/one");
            gitlab.wait_for_log(id, "between");
            machine.run("systemctl stop --no-block mayfly");
            machine.wait_for_journal("polling stopped", 1);
            let waiting = gitlab.queue(job(&["true"]).build());
            machine.run("touch /tmp/two");
            let ended = gitlab.finished(id);
            assert_eq!(ended.state, "success", "{}", ended.log());
            assert_eq!(times(&ended.lines(), "finished"), 1, "{:#?}", ended.lines());
            machine.wait_until("the end of the unit", |machine| {
                machine.run("systemctl show --value -p ActiveState mayfly") == "inactive\n"
            });
            assert_eq!(machine.run("systemctl show --value -p Result,NRestarts mayfly"), "success\n0\n");
            assert_eq!(gitlab.job(waiting).state, "pending");
            assert_eq!(machine.run("systemctl is-enabled mayfly"), "enabled\n");
        });
    });
}

/// The drop-in of docs/guides/images.md with shorter timeouts.
fn give_up_soon() -> String {
    let guide = include_str!("../docs/guides/images.md");
    let drop_in = guide.split("```ini\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a drop-in");
    let place = drop_in.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a path in the first line");
    let quick = drop_in.replace("RestartSec=15", "RestartSec=100ms").replace("Burst=20", "Burst=4");
    assert!(quick.contains("RestartSec=100ms") && quick.contains("Burst=4\n"), "{quick}");
    format!("mkdir -p $(dirname {place})\ncat >{place} <<'END'\n{quick}END\n")
}

#[test]
fn a_machine_whose_agent_cannot_start_powers_off_if_configured() {
    with_image(&give_up_soon(), |image| {
        in_own_network(|| {
            let broken =
                "#cloud-config\nwrite_files:\n  - path: /etc/mayfly/config.toml\n    content: |\n      runners = 1\n";
            let _imds = Imds::start("i-0abc0000000000001", broken);
            let mut machine = image.boot();
            machine.wait_until_off();
            let journal = machine.journal();
            assert_eq!(journal.matches("line 1").count(), 1, "the same error is written once: {journal}");
            assert!(journal.matches("Failed to start").count() <= 4, "{journal}");
        });
    });
}

#[test]
fn jobs_wait_for_the_commands_of_user_data() {
    with_image("true", |image| {
        in_own_network(|| {
            let gitlab = GitLab::start();
            let data = example("token.yaml", &gitlab);
            // The installation of a tool that every job needs takes a while.
            let install = "touch /srv/begun; until [ -e /srv/go ]; do sleep 0.1; done; touch /srv/tool";
            let data = data.replace("runcmd:\n", &format!("runcmd:\n  - [sh, -c, '{install}']\n"));
            let _imds = Imds::start("i-0abc0000000000001", &data);
            let id = gitlab.queue(job(&["test -e /srv/tool"]).build());
            let mut machine = image.boot();
            // The boot has reached the unit, and the command runs.
            let looked =
                "[ -e /srv/begun ] && [ $(systemctl show --value -p ConditionTimestampMonotonic mayfly) != 0 ]";
            machine.wait_until("the command of the user data", |machine| {
                machine.init_answers() && machine.try_run(looked).status.success()
            });
            assert_eq!(machine.run("systemctl show --value -p ActiveState mayfly"), "inactive\n");
            assert_eq!(gitlab.count("POST jobs/request"), 0);
            machine.run("touch /srv/go");
            let job = gitlab.finished(id);
            assert_eq!(job.state, "success", "{}", job.log());
            machine.wait_until_off();
            gitlab.assert_strict();
        });
    });
}

#[test]
fn user_data_keeps_the_images_own_runners() {
    // The image has its own runner; cloud-init must not replace the file with that of the user data.
    let gitlab_of_the_test = "http://127.0.0.1:GITLAB";
    let script = format!(
        "cat >/etc/mayfly/config.toml <<'END'\nuser = \"mayfly-job\"\n[[runners]]\nname = \"image\"\n\
         url = \"{gitlab_of_the_test}\"\ntoken = \"{RUNNER_TOKEN}\"\nexecutor = \"shell\"\nEND\n"
    );
    with_image(&script, |image| {
        in_own_network(|| {
            let gitlab = GitLab::start();
            let config = image.root().join("etc/mayfly/config.toml");
            let written =
                std::fs::read_to_string(&config).expect("read the file").replace(gitlab_of_the_test, &gitlab.url);
            std::fs::write(&config, &written).expect("write a file");
            let _imds = Imds::start("i-0abc0000000000001", &example("token.yaml", &gitlab));
            let id = gitlab.queue(job(&["true"]).build());
            let machine = image.boot();
            assert_eq!(gitlab.finished(id).state, "success");
            assert_eq!(machine.run("cat /etc/mayfly/config.toml"), written);
            assert!(machine.run("cat /etc/mayfly/user-data.toml").contains("max_builds"));
            machine.run("systemctl stop mayfly");
            gitlab.assert_strict();
        });
    });
}

#[test]
fn systemd_reports_no_problem_in_the_unit() {
    with_image("true", |image| {
        let findings = image.run_inside("systemd-analyze verify --man=no mayfly.service 2>&1");
        assert_eq!(findings, "");
    });
}

/// The top-level keys of user data that the files here use.
const KNOWN_KEYS: [&str; 2] = ["runcmd", "write_files"];

/// A file of `cloud-init/`, with the runner of `gitlab` instead of the example.
fn example(name: &str, gitlab: &GitLab) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cloud-init").join(name);
    let text = std::fs::read_to_string(path).expect(name);
    text.replace("https://gitlab.example.com", &gitlab.url).replace("glrt-...", RUNNER_TOKEN)
}

#[test]
fn user_data_is_valid_and_lint_finds_nothing_in_its_configuration() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cloud-init");
    let files = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let files: Vec<_> = files.collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let valid =
            Command::new("cloud-init").args(["schema", "--config-file"]).arg(&file).output().expect("run cloud-init");
        assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stderr));
        let text = std::fs::read_to_string(&file).expect("read the file");
        assert!(text.starts_with("#cloud-config\n") && text.len() < 16 * 1024, "{}", file.display());
        // The schema accepts unknown keys.
        let keys = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_alphabetic()));
        let keys: Vec<&str> = keys.filter_map(|line| line.split_once(':')).map(|(key, _)| key).collect();
        assert!(keys.iter().all(|key| KNOWN_KEYS.contains(key)), "{}: {keys:?}", file.display());
        let (_, content) = text.split_once("content: |\n").expect("a configuration");
        let content = content.lines().map_while(|line| line.strip_prefix("      "));
        let home = Home::empty();
        std::fs::write(home.config(), content.collect::<Vec<_>>().join("\n")).expect("write a file");
        std::fs::set_permissions(home.config(), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("set the permissions");
        let lint = home.call(&["lint", "--config", &home.config().display().to_string()]);
        let findings = output_text(&lint);
        // Only the manager that `url` names knows the executor of an agent without one.
        let warnings =
            findings.lines().filter(|line| line.contains("warning")).filter(|line| !line.contains("mayfly manager"));
        assert!(lint.status.success() && warnings.count() == 0, "{}: {findings}", file.display());
    }
}

/// The state in an image made from a used machine: the ids and the shutdown state of another machine. The firmware of
/// these machines is not that of EC2, so the configuration tells the agent the addresses of the AWS services.
const USED: &str = r#"
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
printf s_0123456789ab >/etc/mayfly/.runner_system_id
mkdir -p /etc/systemd/system/mayfly.service.d
cat >/etc/systemd/system/mayfly.service.d/aws.conf <<END
[Service]
Environment=AWS_EC2_METADATA_SERVICE_ENDPOINT=http://169.254.169.254 AWS_ENDPOINT_URL=http://127.0.0.1:4566
END
"#;

#[test]
fn machines_from_one_used_image_work_and_power_off() {
    let lives = [
        ("token.yaml", "i-0abc0000000000001", MaxBuilds),
        ("token-from-parameter-store.yaml", "i-0abc0000000000002", Idle),
        ("token-from-secrets-manager.yaml", "i-0abc0000000000003", MaxBuilds),
    ];
    with_image(USED, |image| {
        let mut ids = thread::scope(|scope| {
            let lives = lives.map(|(data, instance, end)| scope.spawn(move || life(image, data, instance, end)));
            lives.map(|life| life.join().expect("the thread must not panic"))
        });
        ids.sort();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
        assert!(!ids.contains(&"s_0123456789ab".to_owned()), "the image's own id: {ids:?}");
    });
}

/// How a machine ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    MaxBuilds,
    Idle,
}
use End::{Idle, MaxBuilds};

/// Runs one machine from boot to power-off. Two jobs are queued, of which it may take one; or none. Returns its system
/// id.
fn life(image: &Image, data: &str, instance: &str, end: End) -> String {
    let mut journal = String::new();
    in_own_network(|| {
        let gitlab = GitLab::start();
        let idle = if end == Idle { "idle_timeout = \"3s\"" } else { "idle_timeout = \"15m\"" };
        let _imds = Imds::start(instance, &example(data, &gitlab).replace("idle_timeout = \"15m\"", idle));
        serve_tokens();
        let jobs: Vec<i64> =
            (0..2).filter(|_| end == MaxBuilds).map(|_| gitlab.queue(job(&["true"]).build())).collect();
        let mut machine = image.boot();
        machine.wait_until_off();
        let states: Vec<String> = jobs.iter().map(|id| gitlab.job_state(*id)).collect();
        assert!(states.is_empty() || states == ["success", "pending"], "{states:?}");
        assert_eq!(gitlab.managers(), Vec::<String>::new(), "it took itself off the runner");
        assert!(gitlab.count("POST jobs/request") > 0, "it never asked for a job");
        gitlab.assert_strict();
        journal = machine.unit_journal();
    });
    let reason = if end == Idle { "reason=idle_timeout" } else { "reason=max_builds" };
    assert!(journal.contains(reason), "{journal}");
    let (_, rest) = journal.split_once("system_id=").expect("an id");
    rest.split_whitespace().next().expect("an id").to_owned()
}

/// Parameter Store and Secrets Manager for the agent's requests: they require signatures, and know the names in the
/// examples.
fn serve_tokens() {
    let listener = TcpListener::bind("127.0.0.1:4566").expect("a port of a network of its own");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
            let Some(request) = read_request(&mut reader) else { continue };
            let signed = request.header("Authorization").starts_with("AWS4-HMAC-SHA256 Credential=ASIATEST/");
            let target = request.header("X-Amz-Target");
            let asked = request.json();
            let answer = match (signed, target) {
                (true, "AmazonSSM.GetParameter") if asked["Name"] == "/ci/runner-token" => {
                    Answer::json(200, &json!({"Parameter": {"Name": "/ci/runner-token", "Value": RUNNER_TOKEN}}))
                }
                (true, "secretsmanager.GetSecretValue") if asked["SecretId"] == "ci/runner" => {
                    let secret = json!({"token": RUNNER_TOKEN}).to_string();
                    Answer::json(200, &json!({"Name": "ci/runner", "SecretString": secret}))
                }
                _ => Answer::json(400, &json!({"__type": "AccessDeniedException", "message": target})),
            };
            let _ = write_answer(&mut stream, &answer.with("Connection", "close"));
        }
    });
}

#[test]
fn a_docker_host_runs_jobs_in_containers_until_it_is_idle() {
    with_image(USED, |image| {
        in_own_network(|| {
            let (gitlab, engine, disk) = (GitLab::start(), Docker::start(), image.disk());
            let place = "/var/cache/mayfly";
            engine.share(&disk, place);
            let data = example("docker-host.yaml", &gitlab).replace("idle_timeout = \"15m\"", "idle_timeout = \"3s\"");
            // A local image instead of one from a public registry.
            let ours = "image = \"busybox:local\"\n      pull_policy = \"if-not-present\"";
            let data = data.replace("image = \"debian:12-slim\"", ours);
            assert!(data.contains(ours), "{data}");
            let _imds = Imds::start("i-0abc0000000000005", &data);
            serve_tokens();
            let ids = [(); 3].map(|()| gitlab.queue(job(&["test ! -e /etc/mayfly && echo inside"]).build()));
            let socket = engine.host().replace("unix://", "");
            let mut machine = image.boot_with(&[(&disk, place), (Path::new(&socket), "/run/docker.sock")]);
            for job in ids.map(|id| gitlab.finished(id)) {
                assert!(job.state == "success" && times(&job.lines(), "inside") == 1, "{}", job.log());
            }
            machine.wait_until_off();
            assert_eq!(engine.run(&["ps", "--all", "--quiet"]), "");
            gitlab.assert_strict();
        });
    });
}

#[test]
fn a_spot_machine_works_until_it_is_stopped() {
    with_image(USED, |image| {
        in_own_network(|| {
            let gitlab = GitLab::start();
            let _imds = Imds::start("i-0abc0000000000004", &example("spot.yaml", &gitlab));
            serve_tokens();
            let ask = "timeout 10 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80' 2>/dev/null || echo shut out";
            let id = gitlab.queue(job(&["id -un", ask]).build());
            let machine = image.boot();
            let lines = gitlab.finished(id).lines();
            assert!(["mayfly-job", "shut out"].map(|line| times(&lines, line)) == [1, 1], "{lines:#?}");
            machine.run("systemctl stop mayfly");
            assert_eq!(machine.run("systemctl show --value -p Result mayfly"), "success\n");
            gitlab.assert_strict();
        });
    });
}
