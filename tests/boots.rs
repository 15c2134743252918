//! Failures around a booting machine: broken user data, a broken configuration file during an upgrade or a crash, an
//! instance of a group without the setting `leave`.

use crate::machines::{times, user_data, with_machine};
use crate::support::cloud::Cloud;
use crate::support::gitlab::{GitLab, Job};
use crate::support::imds::Imds;
use crate::support::job::{job, until_there};
use crate::support::machine::{Machine, in_own_network, with_image};

#[test]
fn in_a_group_an_instance_that_has_run_its_jobs_ends_through_the_group() {
    with_image("true", |image| {
        in_own_network(|| {
            let (gitlab, cloud) = (GitLab::start(), Cloud::start());
            image.set_environment(&cloud.environment());
            // No `leave`: it defaults to the group's action.
            let _imds = Imds::start(&cloud.instance, &user_data(&gitlab, "max_builds = 1\n[mayfly.aws]\n"));
            let ids = [(); 2].map(|()| gitlab.queue(job(&["echo ran"]).build()));
            let mut machine = image.boot();
            cloud.wait_until("the call that terminates the instance", |group| group.is_ending());
            let calls = cloud.calls("TerminateInstanceInAutoScalingGroup");
            assert_eq!(calls.len(), 1, "{calls:#?}");
            let states = ids.map(|id| gitlab.job_state(id));
            assert_eq!(states, ["success", "pending"], "{}", machine.journal());
            assert_eq!(gitlab.managers(), Vec::<String>::new());
            // The cloud then powers the instance off.
            machine.try_run("systemctl poweroff");
            machine.wait_until_off();
            assert_eq!(gitlab.job_state(ids[1]), "pending");
            gitlab.assert_strict();
        });
    });
}

#[test]
fn a_machine_whose_user_data_is_broken_powers_off_if_its_image_says_so() {
    with_image("printf '[mayfly]\\ngive_up_after = \"3s\"\\n' >>/etc/mayfly/config.toml", |image| {
        in_own_network(|| {
            let broken = "#cloud-config\nwrite_files:\n  - path: [/etc/mayfly/config.toml\n   content: |\n x\n";
            let _imds = Imds::start("i-0abc0000000000001", broken);
            let mut machine = image.boot();
            machine.wait_until_off();
            let journal = machine.unit_journal();
            assert!(journal.contains("reason=no_runner"), "{}", machine.journal());
        });
    });
}

/// A command that puts an error on the first line of the configuration, and one that removes it.
const BREAK: &str = "sed -i '1i concurrent = = 1' /etc/mayfly/config.toml";
const MEND: &str = "sed -i 1d /etc/mayfly/config.toml";

fn main_process(machine: &Machine) -> String {
    machine.run("systemctl show --value -p MainPID mayfly").trim().to_owned()
}

fn assert_whole(job: &Job, machine: &Machine) {
    assert_eq!(job.state, "success", "{}\n{}", job.log(), machine.unit_journal());
    for line in ["begun", "finished", "after", "Job succeeded"] {
        assert_eq!(times(&job.lines(), line), 1, "{line} in {:#?}", job.lines());
    }
}

#[test]
fn an_upgrade_with_a_broken_configuration_keeps_the_old_agent_and_says_why() {
    with_image("true", |image| {
        with_machine(image, "", |gitlab, machine| {
            let lines = ["echo begun", &until_there("/tmp/go"), "echo finished"];
            let id = gitlab.queue(job(&lines).after_script(&["echo after"]).build());
            gitlab.wait_for_log(id, "begun");
            let first = main_process(machine);
            machine.run(BREAK);
            machine.wait_for_journal("cannot apply the configuration", 1);
            machine.run("dpkg --install /mayfly.deb");
            machine.wait_for_journal("hand-over refused", 1);
            let journal = machine.unit_journal();
            let refusal = journal.lines().find(|line| line.contains("hand-over refused")).expect("a line");
            assert!(refusal.contains("/etc/mayfly/config.toml") && refusal.contains("line 1"), "{refusal}");
            assert_eq!(main_process(machine), first);
            machine.run("touch /tmp/go");
            assert_whole(&gitlab.finished(id), machine);
            // The old agent continues with its loaded configuration.
            let next = gitlab.queue(job(&["echo ran"]).build());
            assert_eq!(gitlab.finished(next).state, "success");
            machine.run(MEND);
            machine.wait_for_journal("configuration loaded", 1);
            machine.run("dpkg --install /mayfly.deb");
            machine.wait_for_journal("handing over to the new program on disk", 1);
            machine.wait_for_journal("mayfly is up", 2);
            let last = gitlab.queue(job(&["echo ran"]).build());
            assert_eq!(gitlab.finished(last).state, "success");
            assert_eq!(machine.run("systemctl show --value -p NRestarts mayfly"), "0\n");
        });
    });
}

#[test]
fn after_a_crash_with_a_broken_configuration_jobs_end_and_polling_starts_once_the_file_is_mended() {
    with_image("true", |image| {
        with_machine(image, "", |gitlab, machine| {
            let lines = ["echo begun", &until_there("/tmp/go"), "echo finished"];
            let id = gitlab.queue(job(&lines).after_script(&["echo after"]).build());
            gitlab.wait_for_log(id, "begun");
            machine.run(BREAK);
            machine.run(&format!("kill -9 {}", main_process(machine)));
            machine.wait_for_journal("job resumed from journal", 1);
            machine.wait_for_journal("the configuration cannot be used; finishing the jobs", 1);
            let polls = gitlab.count("POST jobs/request");
            let waiting = gitlab.queue(job(&["echo ran"]).build());
            machine.run("touch /tmp/go");
            assert_whole(&gitlab.finished(id), machine);
            // Without a configuration and without a job, the unit fails and is started again.
            machine.wait_until("a failed start", |machine| {
                machine.run("systemctl show --value -p NRestarts mayfly").trim().parse::<u32>().is_ok_and(|n| n >= 2)
            });
            assert_eq!((gitlab.count("POST jobs/request"), gitlab.job_state(waiting).as_str()), (polls, "pending"));
            machine.run(MEND);
            assert_eq!(gitlab.finished(waiting).state, "success", "{}", machine.unit_journal());
        });
    });
}
