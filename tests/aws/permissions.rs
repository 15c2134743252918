//! The permissions that the agent needs to terminate its instance and to raise its group, and its retries of refused
//! calls.

use std::fs;
use std::time::Duration;

use crate::support::cloud::{Cloud, Metadata, refusal};
use crate::support::gitlab::{Answer, Fault, GitLab};
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Home, read};
use crate::support::moto::Moto;
use crate::support::output_text;
use crate::support::scenario::Scenario;

/// Creates a group of three instances in moto; this machine is one of them.
fn member_of_moto(moto: &Moto, metadata: &Metadata) -> String {
    let instance = moto.python(
        "auto = client('autoscaling')\n\
         image = client('ec2').register_image(Name='image')['ImageId']\n\
         auto.create_launch_configuration(LaunchConfigurationName='l', ImageId=image, InstanceType='t3.micro')\n\
         auto.create_auto_scaling_group(AutoScalingGroupName='builders', LaunchConfigurationName='l', MinSize=0, \
             MaxSize=5, DesiredCapacity=3, AvailabilityZones=['eu-west-1a'])\n\
         print(auto.describe_auto_scaling_instances()['AutoScalingInstances'][0]['InstanceId'])",
    );
    metadata.set("instance-id", &instance);
    metadata.set("instance-life-cycle", "on-demand");
    metadata.set("autoscaling/target-lifecycle-state", "InService");
    instance
}

#[test]
fn the_documented_permissions_suffice_to_leave_a_group() {
    let moto = Moto::start();
    let metadata = Metadata::start();
    let instance = member_of_moto(&moto, &metadata);
    let user = moto.user(
        "agent",
        &[
            "autoscaling:TerminateInstanceInAutoScalingGroup",
            "autoscaling:SetInstanceProtection",
            "autoscaling:CompleteLifecycleAction",
            "autoscaling:RecordLifecycleActionHeartbeat",
            "autoscaling:DescribeAutoScalingInstances",
            "autoscaling:DescribeLifecycleHooks",
            "ec2:DescribeInstanceAttribute",
        ],
    );
    moto.enforce_permissions();
    let gitlab = GitLab::start();
    let mut home = Scenario::shell().mayfly("leave = \"aws-asg\"\nidle_timeout = \"2s\"").home(&gitlab);
    let mut environment = user.environment(&moto);
    environment.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata.url.clone()));
    home.set_environment(environment);
    let report = output_text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(report.contains("warning  power-off: only stops the instance"), "{report}");
    assert!(report.contains("ok       lifecycle hooks: no hook holds an instance"), "{report}");
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&[]);
    gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    moto.ignore_permissions();
    let group = moto.python(&format!(
        "group = client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]\n\
         print(group['DesiredCapacity'], any(i['InstanceId'] == '{instance}' for i in group['Instances']))"
    ));
    assert_eq!(group, "2 False", "{}", agent.log());
    assert!(!agent.log().contains("WARN") && !agent.log().contains("ERROR"), "{}", agent.log());
}

#[test]
fn a_missing_permission_is_named_and_the_machine_powers_off() {
    let moto = Moto::start();
    let metadata = Metadata::start();
    let instance = member_of_moto(&moto, &metadata);
    let user = moto.user("agent", &["autoscaling:DescribeAutoScalingInstances"]);
    moto.enforce_permissions();
    let gitlab = GitLab::start();
    let keys = "leave = \"aws-asg\"\nidle_timeout = \"1s\"\nleave_fallback_after = \"2s\"\n\
                poweroff_command = \"echo off >>$HOME/power\"";
    let mut home = Scenario::shell().mayfly(keys).home(&gitlab);
    let mut environment = user.environment(&moto);
    environment.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata.url.clone()));
    home.set_environment(environment);
    let mut agent = home.start(&[]);
    agent.wait();
    assert_eq!(read(&home.path("power")), "off\n", "{}", agent.log());
    let errors: Vec<String> = agent.log().lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect();
    let named = "action=autoscaling:TerminateInstanceInAutoScalingGroup code=AccessDenied";
    assert!(errors.len() == 1 && errors[0].contains(named), "{}", agent.log());
    moto.ignore_permissions();
    let desired = moto.python(
        "print(client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]['DesiredCapacity'])",
    );
    assert_eq!(desired, "3", "{instance}");
}

#[test]
fn two_more_permissions_suffice_to_raise_a_group() {
    let (moto, metadata, gitlab) = (Moto::start(), Metadata::start(), GitLab::start());
    member_of_moto(&moto, &metadata);
    let busy = "autoscaling:SetInstanceProtection";
    let actions = ["autoscaling:DescribeAutoScalingInstances", busy, "autoscaling:DescribeAutoScalingGroups"];
    let denied = moto.user("denied", &actions);
    let raiser = moto.user("raiser", &[&actions[..], &["autoscaling:SetDesiredCapacity"]].concat());
    moto.enforce_permissions();
    let desired =
        "print(client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]['DesiredCapacity'])";
    for (user, expected) in [(denied, "3"), (raiser, "4")] {
        let mut home = Scenario::shell().mayfly("aws = { raise_on_job = { idle_count = 3 } }").home(&gitlab);
        let mut environment = user.environment(&moto);
        environment.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata.url.clone()));
        home.set_environment(environment);
        let go = home.path("go");
        let id = gitlab.queue(job(&[&until_there(go.display())]).build());
        let agent = home.start(&[]);
        agent.wait_for_log(if expected == "3" { "autoscaling:SetDesiredCapacity code=AccessDenied" } else { "to=4" });
        std::fs::write(&go, "").expect("write a file");
        assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
        moto.ignore_permissions();
        assert_eq!(moto.python(desired), expected, "{}", agent.log());
        moto.enforce_permissions();
        agent.kill();
    }
}

/// An agent that terminates its instance through its group when idle; `keys` are further keys for `[mayfly]`.
fn leaving_home(gitlab: &GitLab, cloud: &Cloud, keys: &str) -> Home {
    let leave = "leave = \"aws-asg\"\nidle_timeout = \"1s\"\npoweroff_command = \"false\"";
    let mut home = Scenario::shell().mayfly(leave).mayfly(keys).home(gitlab);
    home.set_environment(cloud.environment());
    home
}

const TERMINATE: &str = "TerminateInstanceInAutoScalingGroup";

#[test]
fn retries_while_the_group_is_busy() {
    let (gitlab, cloud) = (GitLab::start(), Cloud::start());
    let page = Answer::new(500).with("Content-Type", "text/html").body("<html><h1>Internal Server Error</h1>");
    let faults = [Fault::Answer(refusal(400, "Throttling", "Rate exceeded")), Fault::Answer(page), Fault::Cut];
    cloud.fail(TERMINATE, faults);
    let home = leaving_home(&gitlab, &cloud, "");
    let mut agent = home.start(&[]);
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(cloud.read(|group| (group.terminations, group.decrements)), (1, 1), "{}", agent.log());
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
}

#[test]
fn with_only_the_terminate_permission_a_lost_response_terminates_the_instance_once() {
    let (gitlab, cloud) = (GitLab::start(), Cloud::start());
    for action in ["DescribeAutoScalingInstances", "DescribeLifecycleHooks", "SetInstanceProtection"] {
        cloud.refuse(action, 403, "AccessDenied");
    }
    cloud.fail(TERMINATE, [Fault::TakeAndCut]);
    cloud.set_lag(Duration::from_secs(3));
    let home = leaving_home(
        &gitlab,
        &cloud,
        "aws = { auto_scaling_group = \"builders\", lifecycle_hooks = [], protect_while_busy = false }",
    );
    let mut agent = home.start(&[]);
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(cloud.read(|group| (group.terminations, group.decrements)), (1, 1), "{}", agent.log());
    assert_eq!(cloud.calls(TERMINATE).len(), 1, "a second call would count twice");
    assert!(!agent.log().contains("WARN") && !agent.log().contains("ERROR"), "{}", agent.log());
}

#[test]
fn replaces_expired_credentials() {
    let (gitlab, cloud) = (GitLab::start(), Cloud::start());
    let home = leaving_home(&gitlab, &cloud, "max_builds = 1");
    let go = home.path("go");
    let id = gitlab.queue(job(&[&until_there(go.display())]).build());
    let mut agent = home.start(&[]);
    cloud.wait_until("the protection", |group| group.is_protected);
    cloud.rotate_credentials();
    cloud.metadata.shorten_tokens(Duration::from_secs(1));
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(cloud.read(|group| (group.terminations, group.decrements)), (1, 0), "{}", agent.log());
}

#[test]
fn terminating_through_a_group_needs_an_ec2_instance() {
    let (gitlab, cloud) = (GitLab::start(), Cloud::start());
    let mut home = leaving_home(&gitlab, &cloud, "");
    let off = ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned());
    home.set_environment([cloud.environment(), vec![off]].concat());
    let mut agent = home.start(&[]);
    assert!(!agent.wait().success());
    assert!(agent.log().contains("is disabled") && agent.log().contains("another `leave`"), "{}", agent.log());
    assert_eq!(gitlab.count("POST jobs/request"), 0);
    assert!(cloud.metadata.requests().is_empty());
}
