//! An EC2 instance: its identity, its metadata service, and what jobs see of it.

mod permissions;
mod tokens;

use std::process::Command;

use crate::support::cloud::{Cloud, Metadata};
use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::mayfly::read;
use crate::support::output_text;
use crate::support::scenario::Scenario;

#[test]
fn an_instance_from_a_used_image_starts_with_clean_state() {
    let gitlab = GitLab::start();
    let mut home = Scenario::shell().home(&gitlab);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let cloud = Cloud::start();
        home.set_environment(cloud.environment());
        let id = gitlab.queue(job(&["true"]).build());
        let agent = home.start(&[]);
        gitlab.finished(id);
        let count: serde_json::Value =
            serde_json::from_str(&read(&home.path("state/agent.json"))).expect("must be JSON");
        assert_eq!(count["identity"]["instance"], cloud.instance.as_str());
        assert_eq!(count["jobs"], 1, "the count of another instance is not this one's");
        agent.kill();
        ids.push(read(&home.path(".runner_system_id")));
    }
    assert_ne!(ids[0], ids[1]);
    assert!(gitlab.managers().iter().any(|manager| manager.contains(&ids[1])), "{:?}", gitlab.managers());
    gitlab.assert_strict();
}

#[test]
fn jobs_do_not_get_the_agents_credentials() {
    let gitlab = GitLab::start();
    let cloud = Cloud::start();
    let mut environment = cloud.environment();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"] {
        environment.push((name.to_owned(), "of-the-agent".to_owned()));
    }
    let mut home = Scenario::shell().mayfly("leave = \"exit\"").home(&gitlab);
    home.set_environment(environment);
    let id = gitlab.queue(job(&["echo \"seen: $(env | grep -c -e AWS -e of-the-agent)\""]).build());
    let mut agent = home.start(&["--once"]);
    let done = gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    assert!(done.lines().contains(&"seen: 0".to_owned()), "{}", done.log());
}

#[test]
fn check_reports_the_state_of_the_instance_in_its_group() {
    let gitlab = GitLab::start();
    let cloud = Cloud::start();
    cloud.metadata.remove("tags/instance/aws:autoscaling:groupName");
    let mut home = Scenario::shell().home(&gitlab);
    home.set_environment(cloud.environment());
    let report = output_text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(report.contains(&format!("ok       instance: {} in eu-west-1", cloud.instance)), "{report}");
    assert!(report.contains("ok       Auto Scaling: group builders"), "{report}");

    cloud.refuse("DescribeLifecycleHooks", 403, "AccessDenied");
    let report = output_text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(report.contains("autoscaling:DescribeLifecycleHooks") && report.contains("AccessDenied"), "{report}");

    Scenario::shell().mayfly("aws = { raise_on_job = {} }").write(&home, &gitlab.url);
    let report = output_text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(report.contains("ok       raise_on_job: 3 instances wanted, 10 at most"), "{report}");

    // An instance outside any group needs no permissions for a group.
    cloud.metadata.remove("autoscaling/target-lifecycle-state");
    let report = output_text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(report.contains("ok       Auto Scaling: in no group") && !report.contains("AccessDenied"), "{report}");
}

#[test]
fn recovers_from_an_expired_token_and_throttling() {
    let gitlab = GitLab::start();
    let cloud = Cloud::start();
    cloud.metadata.fail([503, 401, 503]);
    let mut home = Scenario::shell().home(&gitlab);
    home.set_environment(cloud.environment());
    let agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    assert!(agent.log().contains("system_id=s_"), "{}", agent.log());
    assert!(cloud.metadata.count("PUT api/token") >= 2, "{:?}", cloud.metadata.requests());
}

#[test]
fn a_machine_outside_ec2_sends_no_metadata_requests() {
    let gitlab = GitLab::start();
    let home = Scenario::shell().home(&gitlab);
    let agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    for word in ["metadata", "AWS", "EC2", "instance"] {
        assert!(!agent.log().contains(word), "{}", agent.log());
    }
}

#[test]
fn metadata_requests_bypass_the_proxy() {
    let inner = "aws::in_a_network_with_the_real_metadata_addresses";
    let program = std::env::current_exe().expect("the tests");
    let mut unshare = Command::new("unshare");
    unshare.arg("--net").arg(program).args(["--exact", inner, "--ignored"]);
    let output = unshare.output().expect("run unshare");
    let results = output_text(&output);
    assert!(output.status.success() && results.contains("1 passed"), "{results}");
}

#[test]
#[ignore = "another test runs it in a network of its own"]
fn in_a_network_with_the_real_metadata_addresses() {
    for line in ["link set lo up", "addr add 169.254.169.254/32 dev lo", "addr add fd00:ec2::254/128 dev lo nodad"] {
        assert!(Command::new("ip").args(line.split(' ')).status().expect("run ip").success(), "{line}");
    }
    for (address, mode) in [("169.254.169.254:80", "IPv4"), ("[fd00:ec2::254]:80", "IPv6")] {
        let gitlab = GitLab::start();
        let cloud = Cloud::start_with(Metadata::start_at(address));
        let mut home = Scenario::shell().runner("[mayfly.aws]\nregion = \"eu-west-1\"").home(&gitlab);
        // No proxy runs at this address: a request through the proxy fails.
        let set = [
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", mode),
            ("HTTP_PROXY", "http://127.0.0.1:1"),
            ("http_proxy", "http://127.0.0.1:1"),
            ("HTTPS_PROXY", "http://127.0.0.1:1"),
        ];
        home.set_environment(set.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        let agent = home.start(&[]);
        agent.wait_for_log("mayfly is up");
        assert!(cloud.metadata.count("GET meta-data/instance-id") > 0, "{}", agent.log());
        assert!(read(&home.path(".runner_system_id")).starts_with("s_"));
    }
}
