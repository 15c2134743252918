//! The user data of `cloud-init/`, in machines that boot with them.

use std::io::BufReader;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::json;

use crate::machines::{USED, times};
use crate::support::docker::Docker;
use crate::support::gitlab::{Answer, GitLab, RUNNER_TOKEN};
use crate::support::http::{read_request, write_answer};
use crate::support::imds::Imds;
use crate::support::job::job;
use crate::support::machine::{Image, in_own_network, with_image};
use crate::support::mayfly::Home;
use crate::support::output_text;

/// A file of `cloud-init/`, with the runner of `gitlab` instead of the example.
fn example(name: &str, gitlab: &GitLab) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cloud-init").join(name);
    let text = std::fs::read_to_string(path).expect(name);
    text.replace("https://gitlab.example.com", &gitlab.url).replace("glrt-...", RUNNER_TOKEN)
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
            let is_reached =
                "[ -e /srv/begun ] && [ $(systemctl show --value -p ConditionTimestampMonotonic mayfly) != 0 ]";
            machine.wait_until("the command of the user data", |machine| {
                machine.can_run_commands() && machine.try_run(is_reached).status.success()
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

/// The top-level keys of user data that the files here use.
const KNOWN_KEYS: [&str; 2] = ["runcmd", "write_files"];

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

#[test]
fn machines_from_one_used_image_work_and_power_off() {
    let machines = [
        ("token.yaml", "i-0abc0000000000001", MaxBuilds),
        ("token-from-parameter-store.yaml", "i-0abc0000000000002", Idle),
        ("token-from-secrets-manager.yaml", "i-0abc0000000000003", MaxBuilds),
    ];
    with_image(USED, |image| {
        let mut ids = thread::scope(|scope| {
            let machines =
                machines.map(|(data, instance, end)| scope.spawn(move || boot_until_off(image, data, instance, end)));
            machines.map(|machine| machine.join().expect("the thread must not panic"))
        });
        ids.sort();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
        assert!(!ids.contains(&"s_0123456789ab".to_owned()), "the system id of the image must not be used: {ids:?}");
    });
}

/// How a machine ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    MaxBuilds,
    Idle,
}
use End::{Idle, MaxBuilds};

/// Runs one machine from boot to power-off. If it ends after `max_builds`, two jobs are queued, of which it may take
/// one. Returns its system id.
fn boot_until_off(image: &Image, data: &str, instance: &str, end: End) -> String {
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
        assert_eq!(gitlab.managers(), Vec::<String>::new(), "the agent must unregister its runner manager");
        assert!(gitlab.count("POST jobs/request") > 0, "the agent must poll");
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
            let body = request.json();
            let answer = match (signed, target) {
                (true, "AmazonSSM.GetParameter") if body["Name"] == "/ci/runner-token" => {
                    Answer::json(200, &json!({"Parameter": {"Name": "/ci/runner-token", "Value": RUNNER_TOKEN}}))
                }
                (true, "secretsmanager.GetSecretValue") if body["SecretId"] == "ci/runner" => {
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
            let connect = "timeout 10 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80' 2>/dev/null || echo refused";
            let id = gitlab.queue(job(&["id -un", connect]).build());
            let machine = image.boot();
            let lines = gitlab.finished(id).lines();
            assert!(["mayfly-job", "refused"].map(|line| times(&lines, line)) == [1, 1], "{lines:#?}");
            machine.run("systemctl stop mayfly");
            assert_eq!(machine.run("systemctl show --value -p Result mayfly"), "success\n");
            gitlab.assert_strict();
        });
    });
}
