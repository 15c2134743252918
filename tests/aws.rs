//! An EC2 instance: its identity, its credentials, and the sources of its runner token.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::cloud::{Cloud, Metadata, refusal};
use crate::support::gitlab::{Answer, Fault, GitLab, RUNNER_TOKEN};
use crate::support::http::{listen, read_request, write_answer};
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Home, read};
use crate::support::moto::{Moto, User};
use crate::support::scenario::Scenario;

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The agent's environment for using moto as this user.
fn of_user(moto: &Moto, user: &User) -> Vec<(String, String)> {
    user.environment(moto)
}

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
    let message = text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(message.contains(&format!("ok       instance: {} in eu-west-1", cloud.instance)), "{message}");
    assert!(message.contains("ok       Auto Scaling: group builders"), "{message}");

    cloud.refuse("DescribeLifecycleHooks", 403, "AccessDenied");
    let message = text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(message.contains("autoscaling:DescribeLifecycleHooks") && message.contains("AccessDenied"), "{message}");

    Scenario::shell().mayfly("aws = { raise_on_job = {} }").write(&home, &gitlab.url);
    let message = text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(message.contains("ok       raise_on_job: 3 instances wanted, 10 at most"), "{message}");

    // An instance outside any group needs no permissions for a group.
    cloud.metadata.remove("autoscaling/target-lifecycle-state");
    let message = text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(message.contains("ok       Auto Scaling: in no group") && !message.contains("AccessDenied"), "{message}");
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
fn fetches_a_runner_token_from_its_store() {
    let moto = Moto::start();
    moto.python(&format!(
        "client('ssm').put_parameter(Name='/ci/token', Type='SecureString', Value='{RUNNER_TOKEN}', Overwrite=True)\n\
         client('secretsmanager').create_secret(Name='ci/runner', SecretString=json.dumps({{'token': '{RUNNER_TOKEN}'}}))"
    ));
    let allowed = moto.user("agent", &["ssm:GetParameter", "secretsmanager:GetSecretValue"]);
    let denied = moto.user("other", &["ec2:DescribeInstances"]);
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let mut home = Home::empty();
    for reference in ["aws-ssm:/ci/token", "aws-secretsmanager:ci/runner#token"] {
        Scenario::shell().token(reference).write(&home, &gitlab.url);
        home.set_environment(of_user(&moto, &allowed));
        let id = gitlab.queue(job(&["true"]).build());
        let mut agent = home.start(&["--once"]);
        assert_eq!(gitlab.finished(id).state, "success");
        assert!(agent.wait().success(), "{}", agent.log());
        assert!(!agent.log().contains(RUNNER_TOKEN) && !agent.log().contains(&allowed.secret_key));
    }
    home.set_environment(of_user(&moto, &denied));
    let mut agent = home.start(&["--once"]);
    assert!(!agent.wait().success());
    let log = agent.log();
    assert!(log.contains("secretsmanager:GetSecretValue") && log.contains("ccessDenied"), "{log}");
    assert!(log.contains("ci/runner#token"), "{log}");
    gitlab.assert_strict();
}

/// A configuration whose runner token is in Parameter Store.
fn home_of_parameter(gitlab: &GitLab, more: &str) -> Home {
    Scenario::shell().token("aws-ssm:/ci/token").runner(more).home(gitlab)
}

/// Runs one job, which shows that the agent got the token.
fn runs_a_job(gitlab: &GitLab, home: &Home) {
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&["--once"]);
    assert!(agent.wait().success(), "{}", agent.log());
    assert_eq!(gitlab.finished(id).state, "success");
}

#[test]
fn credentials_come_from_roles_and_from_a_container_endpoint() {
    let moto = Moto::start();
    moto.python(&format!(
        "client('ssm').put_parameter(Name='/ci/token', Type='SecureString', Value='{RUNNER_TOKEN}', Overwrite=True)\n\
         iam = client('iam')\n\
         trust = {{'Version': '2012-10-17', 'Statement': [{{'Effect': 'Allow', 'Principal': {{'AWS': '*'}}, 'Action': 'sts:AssumeRole'}}]}}\n\
         may = {{'Version': '2012-10-17', 'Statement': [{{'Effect': 'Allow', 'Action': 'ssm:GetParameter', 'Resource': '*'}}]}}\n\
         iam.create_role(RoleName='reader', AssumeRolePolicyDocument=json.dumps(trust))\n\
         iam.put_role_policy(RoleName='reader', PolicyName='p', PolicyDocument=json.dumps(may))"
    ));
    let changer = moto.user("changer", &["sts:AssumeRole"]);
    let reader = moto.user("reader", &["ssm:GetParameter"]);
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let mut home = home_of_parameter(&gitlab, "");
    let common = [("AWS_ENDPOINT_URL".to_owned(), moto.url.clone()), ("AWS_REGION".to_owned(), "eu-west-1".to_owned())];

    // A profile that assumes a role with the keys of another profile.
    fs::create_dir(home.path(".aws")).expect("create the directory");
    let arn = "arn:aws:iam::123456789012:role/reader";
    let config = format!("[profile ci]\nrole_arn = {arn}\nsource_profile = base\n");
    fs::write(home.path(".aws/config"), &config).expect("write a file");
    let keys =
        format!("[base]\naws_access_key_id = {}\naws_secret_access_key = {}\n", changer.access_key, changer.secret_key);
    fs::write(home.path(".aws/credentials"), keys).expect("write a file");
    let mut environment = common.to_vec();
    environment.push(("AWS_PROFILE".to_owned(), "ci".to_owned()));
    home.set_environment(environment);
    runs_a_job(&gitlab, &home);

    // The response of the container credential endpoint.
    let body = format!("{{\"AccessKeyId\":\"{}\",\"SecretAccessKey\":\"{}\"}}", reader.access_key, reader.secret_key);
    let endpoint = listen(None, move |mut connection| {
        while let Some(request) = read_request(&mut connection) {
            let is_allowed = request.header("authorization") == "word";
            let answer = if is_allowed { Answer::new(200).body(body.clone()) } else { Answer::new(403) };
            let _ = write_answer(connection.get_mut(), &answer);
        }
    });
    let mut environment = common.to_vec();
    environment.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(), format!("{endpoint}/v1")));
    environment.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN".to_owned(), "word".to_owned()));
    home.set_environment(environment);
    runs_a_job(&gitlab, &home);

    // A role that a web identity token may assume. moto rejects unsigned requests while it checks policies.
    moto.check_rights(false);
    fs::write(home.path("identity"), "header.payload.signature\n").expect("write a file");
    let mut environment = common.to_vec();
    environment.push(("AWS_ROLE_ARN".to_owned(), arn.to_owned()));
    let file = home.path("identity").display().to_string();
    environment.push(("AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(), file));
    home.set_environment(environment);
    runs_a_job(&gitlab, &home);
}

#[test]
fn a_reload_fetches_the_token_again() {
    let moto = Moto::start();
    let put = |value: &str| {
        moto.python(&format!(
            "client('ssm').put_parameter(Name='/ci/token', Type='SecureString', Value='{value}', Overwrite=True)"
        ));
    };
    put("glrt-wrong-at-first");
    let user = moto.user("agent", &["ssm:GetParameter"]);
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let mut home = home_of_parameter(&gitlab, "");
    home.set_environment(of_user(&moto, &user));
    let agent = home.start(&[]);
    agent.wait_for_log("GitLab rejected the runner");
    moto.check_rights(false);
    put(RUNNER_TOKEN);
    moto.check_rights(true);
    agent.signal("HUP");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
}

#[test]
fn fetches_a_rotated_token_when_gitlab_rejects_the_old_one() {
    let moto = Moto::start();
    let put = |value: &str| moto.put_parameter("/ci/token", value);
    let user = moto.user("agent", &["ssm:GetParameter"]);
    put(RUNNER_TOKEN);
    let gitlab = GitLab::start();
    let mut home = home_of_parameter(&gitlab, "");
    home.set_environment(of_user(&moto, &user));
    let agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    put("glrt-tokenAfterReset");
    let rotator = Scenario::shell().home(&gitlab);
    let config = rotator.config().display().to_string();
    assert!(rotator.call(&["reset-token", "--config", &config, "--name", "test"]).status.success());
    agent.wait_for_log("stored tokens have changed");
    let id = gitlab.queue(job(&["true"]).build());
    assert_eq!(gitlab.finished(id).state, "success");
}

#[test]
fn a_job_is_finished_and_reported_while_its_token_store_is_away() {
    let moto = Moto::start();
    moto.python(&format!(
        "client('ssm').put_parameter(Name='/ci/token', Type='SecureString', Value='{RUNNER_TOKEN}', Overwrite=True)"
    ));
    let user = moto.user("agent", &["ssm:GetParameter"]);
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let mut home = home_of_parameter(&gitlab, "");
    home.set_environment(of_user(&moto, &user));
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo finished"]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    let away = of_user(&moto, &user).into_iter().map(|(name, value)| {
        let is_endpoint = name.starts_with("AWS_ENDPOINT_URL");
        (name, if is_endpoint { "http://127.0.0.1:1".to_owned() } else { value })
    });
    home.set_environment(away.collect());
    let next = home.start(&[]);
    next.wait_for_log("job resumed from journal");
    let polls = gitlab.count("POST jobs/request");
    fs::write(&go, "").expect("write the file");
    let job = gitlab.finished(id);
    assert_eq!(job.state, "success", "{}\n{}", job.log(), next.log());
    assert_eq!((gitlab.count("POST jobs/request"), next.log().contains(RUNNER_TOKEN)), (polls, false));
    next.wait_for_log("job ended");
    next.kill();
    // The store is back, and with it the agent polls. The count of jobs continues, so `--once` would end at once.
    home.set_environment(of_user(&moto, &user));
    let id = gitlab.queue(crate::support::job::job(&["true"]).build());
    let last = home.start(&[]);
    assert_eq!(gitlab.finished(id).state, "success", "{}", last.log());
    last.kill();
    gitlab.assert_strict();
}

#[test]
fn metadata_requests_bypass_the_proxy() {
    let inner = "aws::in_a_network_with_the_real_metadata_addresses";
    let program = std::env::current_exe().expect("the tests");
    let mut unshare = Command::new("unshare");
    unshare.arg("--net").arg(program).args(["--exact", inner, "--ignored"]);
    let output = unshare.output().expect("run unshare");
    let message = text(&output);
    assert!(output.status.success() && message.contains("1 passed"), "{message}");
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
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let mut home = Scenario::shell().mayfly("leave = \"aws-asg\"\nidle_timeout = \"2s\"").home(&gitlab);
    let mut environment = of_user(&moto, &user);
    environment.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata.url.clone()));
    home.set_environment(environment);
    let message = text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(message.contains("warning  power-off: only stops the instance"), "{message}");
    assert!(message.contains("ok       lifecycle hooks: no hook holds an instance"), "{message}");
    let id = gitlab.queue(job(&["true"]).build());
    let mut agent = home.start(&[]);
    gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    moto.check_rights(false);
    let message = moto.python(&format!(
        "group = client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]\n\
         print(group['DesiredCapacity'], any(i['InstanceId'] == '{instance}' for i in group['Instances']))"
    ));
    assert_eq!(message, "2 False", "{}", agent.log());
    assert!(!agent.log().contains("WARN") && !agent.log().contains("ERROR"), "{}", agent.log());
}

#[test]
fn a_missing_permission_is_named_and_the_machine_powers_off() {
    let moto = Moto::start();
    let metadata = Metadata::start();
    let instance = member_of_moto(&moto, &metadata);
    let user = moto.user("agent", &["autoscaling:DescribeAutoScalingInstances"]);
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let keys = "leave = \"aws-asg\"\nidle_timeout = \"1s\"\nleave_fallback_after = \"2s\"\n\
                poweroff_command = \"echo off >>$HOME/power\"";
    let mut home = Scenario::shell().mayfly(keys).home(&gitlab);
    let mut environment = of_user(&moto, &user);
    environment.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata.url.clone()));
    home.set_environment(environment);
    let mut agent = home.start(&[]);
    agent.wait();
    assert_eq!(read(&home.path("power")), "off\n", "{}", agent.log());
    let errors: Vec<String> = agent.log().lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect();
    let named = "action=autoscaling:TerminateInstanceInAutoScalingGroup code=AccessDenied";
    assert!(errors.len() == 1 && errors[0].contains(named), "{}", agent.log());
    moto.check_rights(false);
    let message = moto.python(
        "print(client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]['DesiredCapacity'])",
    );
    assert_eq!(message, "3", "{instance}");
}

#[test]
fn two_more_permissions_suffice_to_raise_a_group() {
    let (moto, metadata, gitlab) = (Moto::start(), Metadata::start(), GitLab::start());
    member_of_moto(&moto, &metadata);
    let busy = "autoscaling:SetInstanceProtection";
    let actions = ["autoscaling:DescribeAutoScalingInstances", busy, "autoscaling:DescribeAutoScalingGroups"];
    let denied = moto.user("denied", &actions);
    let raiser = moto.user("raiser", &[&actions[..], &["autoscaling:SetDesiredCapacity"]].concat());
    moto.check_rights(true);
    let desired =
        "print(client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]['DesiredCapacity'])";
    for (user, expected) in [(denied, "3"), (raiser, "4")] {
        let mut home = Scenario::shell().mayfly("aws = { raise_on_job = { idle_count = 3 } }").home(&gitlab);
        let mut environment = of_user(&moto, &user);
        environment.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata.url.clone()));
        home.set_environment(environment);
        let go = home.path("go");
        let id = gitlab.queue(job(&[&until_there(go.display())]).build());
        let agent = home.start(&[]);
        agent.wait_for_log(if expected == "3" { "autoscaling:SetDesiredCapacity code=AccessDenied" } else { "to=4" });
        std::fs::write(&go, "").expect("write a file");
        assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
        moto.check_rights(false);
        assert_eq!(moto.python(desired), expected, "{}", agent.log());
        moto.check_rights(true);
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
    assert_eq!(cloud.look(|group| (group.terminations, group.decrements)), (1, 1), "{}", agent.log());
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
    assert_eq!(cloud.look(|group| (group.terminations, group.decrements)), (1, 1), "{}", agent.log());
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
    assert_eq!(cloud.look(|group| (group.terminations, group.decrements)), (1, 0), "{}", agent.log());
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
