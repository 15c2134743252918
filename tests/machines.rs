//! The agent in machines that boot from an image with its package, under systemd: crashes, reboots, stops, upgrades.

use crate::support::gitlab::{GitLab, RUNNER_TOKEN};
use crate::support::imds::Imds;
use crate::support::job::{job, until_there};
use crate::support::machine::{Image, Machine, in_own_network, with_image};

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

/// The state in an image made from a used machine: the ids and the shutdown state of another machine. The firmware of
/// these machines is not that of EC2, so the configuration tells the agent the addresses of the AWS services.
pub const USED: &str = r#"
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
printf s_0123456789ab >/etc/mayfly/.runner_system_id
mkdir -p /etc/systemd/system/mayfly.service.d
cat >/etc/systemd/system/mayfly.service.d/aws.conf <<END
[Service]
Environment=AWS_EC2_METADATA_SERVICE_ENDPOINT=http://169.254.169.254 AWS_ENDPOINT_URL=http://127.0.0.1:4566
END
"#;

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
            assert!(machine.unit_journal().contains("resuming the shutdown reason=idle_timeout phase=terminating"));
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
fn systemd_reports_no_problem_in_the_unit() {
    with_image("true", |image| {
        let findings = image.run_inside("systemd-analyze verify --man=no mayfly.service 2>&1");
        assert_eq!(findings, "");
    });
}
