//! An instance of EC2: who it is, whose rights it has, and where its runner's token comes from.

use std::fs;

use crate::support::cloud::Cloud;
use crate::support::gitlab::{GitLab, RUNNER_TOKEN};
use crate::support::job::job;
use crate::support::mayfly::{Home, read};
use crate::support::moto::{Moto, User};

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What an agent needs to work with moto as this user.
fn of_user(moto: &Moto, user: &User) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", moto.url.as_str()),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", &user.access_key),
        ("AWS_SECRET_ACCESS_KEY", &user.secret_key),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

#[test]
fn an_instance_made_from_a_used_image_begins_anew() {
    let gitlab = GitLab::start();
    let mut home = Home::new(&gitlab, "", "");
    let mut ids = Vec::new();
    for _ in 0..2 {
        let cloud = Cloud::start();
        home.set_environment(cloud.environment());
        let id = gitlab.queue(job(&["true"]).build());
        let agent = home.start(&[]);
        gitlab.finished(id);
        let count: serde_json::Value = serde_json::from_str(&read(&home.path("state/agent.json"))).expect("JSON");
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
fn jobs_see_nothing_of_the_agents_rights() {
    let gitlab = GitLab::start();
    let cloud = Cloud::start();
    let mut environment = cloud.environment();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"] {
        environment.push((name.to_owned(), "of-the-agent".to_owned()));
    }
    let mut home = Home::new(&gitlab, "", "");
    home.set_environment(environment);
    let id = gitlab.queue(job(&["echo \"seen: $(env | grep -c -e AWS -e of-the-agent)\""]).build());
    let mut agent = home.start(&["--once"]);
    let done = gitlab.finished(id);
    assert!(agent.wait().success(), "{}", agent.log());
    assert!(done.lines().contains(&"seen: 0".to_owned()), "{}", done.log());
}

#[test]
fn check_tells_how_the_instance_stands_in_its_group() {
    let gitlab = GitLab::start();
    let cloud = Cloud::start();
    cloud.metadata.remove("tags/instance/aws:autoscaling:groupName");
    let mut home = Home::new(&gitlab, "", "");
    home.set_environment(cloud.environment());
    let told = text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(told.contains(&format!("ok       instance: {} in eu-west-1", cloud.instance)), "{told}");
    assert!(told.contains("ok       Auto Scaling: group builders"), "{told}");

    cloud.refuse("DescribeLifecycleHooks", 403, "AccessDenied");
    let told = text(&home.call(&["check", "--config", &home.config().display().to_string()]));
    assert!(told.contains("autoscaling:DescribeLifecycleHooks") && told.contains("AccessDenied"), "{told}");
}

#[test]
fn an_expired_token_and_a_busy_service_are_survived() {
    let gitlab = GitLab::start();
    let cloud = Cloud::start();
    cloud.metadata.fail([503, 401, 503]);
    let mut home = Home::new(&gitlab, "", "");
    home.set_environment(cloud.environment());
    let agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    assert!(agent.log().contains("system_id=s_"), "{}", agent.log());
    assert!(cloud.metadata.count("PUT api/token") >= 2, "{:?}", cloud.metadata.requests());
}

#[test]
fn a_machine_that_is_none_of_ec2s_asks_nobody() {
    let gitlab = GitLab::start();
    let home = Home::new(&gitlab, "", "");
    let agent = home.start(&[]);
    agent.wait_for_log("mayfly is up");
    for word in ["metadata", "AWS", "EC2", "instance"] {
        assert!(!agent.log().contains(word), "{}", agent.log());
    }
}

#[test]
fn a_runners_token_is_fetched_from_where_it_is_kept() {
    let moto = Moto::start();
    moto.python(&format!(
        "client('ssm').put_parameter(Name='/ci/token', Type='SecureString', Value='{RUNNER_TOKEN}')\n\
         client('secretsmanager').create_secret(Name='ci/runner', SecretString=json.dumps({{'token': '{RUNNER_TOKEN}'}}))"
    ));
    let allowed = moto.user("agent", &["ssm:GetParameter", "secretsmanager:GetSecretValue"]);
    let denied = moto.user("other", &["ec2:DescribeInstances"]);
    moto.check_rights(true);
    let gitlab = GitLab::start();
    let mut home = Home::new(&gitlab, "", "");
    let plain = read(&home.config());
    for reference in ["aws-ssm:/ci/token", "aws-secretsmanager:ci/runner#token"] {
        fs::write(home.config(), plain.replace(RUNNER_TOKEN, reference)).expect("written");
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
