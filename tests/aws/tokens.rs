//! Runner tokens in Parameter Store and Secrets Manager, and the credentials with which the agent fetches them.

use std::fs;
use std::net::{TcpListener, TcpStream};

use crate::support::gitlab::{Answer, GitLab, RUNNER_TOKEN};
use crate::support::http::{listen, read_request, write_answer};
use crate::support::job::{job, until_there};
use crate::support::mayfly::{Agent, Home};
use crate::support::moto::Moto;
use crate::support::scenario::Scenario;

#[test]
fn fetches_a_runner_token_from_its_store() {
    let moto = Moto::start();
    moto.python(&format!(
        "client('ssm').put_parameter(Name='/ci/token', Type='SecureString', Value='{RUNNER_TOKEN}', Overwrite=True)\n\
         client('secretsmanager').create_secret(Name='ci/runner', SecretString=json.dumps({{'token': '{RUNNER_TOKEN}'}}))"
    ));
    let allowed = moto.user("agent", &["ssm:GetParameter", "secretsmanager:GetSecretValue"]);
    let denied = moto.user("other", &["ec2:DescribeInstances"]);
    moto.enforce_permissions();
    let gitlab = GitLab::start();
    let mut home = Home::empty();
    for reference in ["aws-ssm:/ci/token", "aws-secretsmanager:ci/runner#token"] {
        Scenario::shell().token(reference).write(&home, &gitlab.url);
        home.set_environment(allowed.environment(&moto));
        let id = gitlab.queue(job(&["true"]).build());
        let mut agent = home.start(&["--once"]);
        assert_eq!(gitlab.finished(id).state, "success");
        assert!(agent.wait().success(), "{}", agent.log());
        assert!(!agent.log().contains(RUNNER_TOKEN) && !agent.log().contains(&allowed.secret_key));
    }
    home.set_environment(denied.environment(&moto));
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
    moto.enforce_permissions();
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
    moto.ignore_permissions();
    fs::write(home.path("identity"), "header.payload.signature\n").expect("write a file");
    let mut environment = common.to_vec();
    environment.push(("AWS_ROLE_ARN".to_owned(), arn.to_owned()));
    let file = home.path("identity").display().to_string();
    environment.push(("AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(), file));
    home.set_environment(environment);
    runs_a_job(&gitlab, &home);
}

/// An AWS service that accepts requests and never answers.
struct SilentService(TcpListener);

impl SilentService {
    /// Starts the service, which the agents of `home` use.
    fn start(home: &mut Home) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("set the mode of the socket");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let variables = [
            ("AWS_ENDPOINT_URL", url.as_str()),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        home.set_environment(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        Self(listener)
    }

    /// Waits for a request of the agent, which lasts until the result is dropped.
    fn request(&self, agent: &Agent) -> Option<TcpStream> {
        let mut connection = None;
        agent.wait_until("the request for the token", || {
            connection = self.0.accept().ok().map(|(connection, _)| connection);
            connection.is_some()
        });
        connection
    }
}

#[test]
fn a_stop_during_the_start_does_not_wait_for_aws() {
    let gitlab = GitLab::start();
    let mut home = home_of_parameter(&gitlab, "");
    let service = SilentService::start(&mut home);
    for signal in ["TERM", "QUIT"] {
        let mut agent = home.start(&[]);
        let _request = service.request(&agent);
        agent.signal(signal);
        // An agent that waited for the token would fail to start.
        assert!(agent.wait().success(), "{}", agent.log());
        assert!(agent.log().contains("stop signal received during the start"), "{}", agent.log());
    }
    gitlab.assert_strict();
}

#[test]
fn a_stop_after_the_last_resumed_job_does_not_wait_for_aws() {
    let gitlab = GitLab::start();
    let mut home = Home::empty();
    Scenario::shell().write(&home, &gitlab.url);
    let id = gitlab.queue(job(&["echo begun", &until_there(home.path("go").display())]).build());
    let first = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    first.kill();
    Scenario::shell().token("aws-ssm:/ci/token").write(&home, &gitlab.url);
    let service = SilentService::start(&mut home);
    let mut agent = home.start(&[]);
    let _request = service.request(&agent);
    fs::write(home.path("go"), "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success");
    agent.signal("TERM");
    assert!(agent.wait().success(), "{}", agent.log());
    // The agent logs this line when the request for the token has failed.
    assert!(!agent.log().contains("without a token"), "{}", agent.log());
    gitlab.assert_strict();
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
    moto.enforce_permissions();
    let gitlab = GitLab::start();
    let mut home = home_of_parameter(&gitlab, "");
    home.set_environment(user.environment(&moto));
    let agent = home.start(&[]);
    agent.wait_for_log("GitLab rejected the runner");
    moto.ignore_permissions();
    put(RUNNER_TOKEN);
    moto.enforce_permissions();
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
    home.set_environment(user.environment(&moto));
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
    moto.enforce_permissions();
    let gitlab = GitLab::start();
    let mut home = home_of_parameter(&gitlab, "");
    home.set_environment(user.environment(&moto));
    let go = home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display()), "echo finished"]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    agent.kill();
    let away = user.environment(&moto).into_iter().map(|(name, value)| {
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
    home.set_environment(user.environment(&moto));
    let id = gitlab.queue(crate::support::job::job(&["true"]).build());
    let last = home.start(&[]);
    assert_eq!(gitlab.finished(id).state, "success", "{}", last.log());
    last.kill();
    gitlab.assert_strict();
}
