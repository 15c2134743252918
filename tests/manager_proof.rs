//! Agents that prove the role of their instance by a signed request to STS, with the STS of moto, which checks
//! signatures.

use serde_json::{Value, json};

use crate::support::aws_proxy::AwsProxy;
use crate::support::cloud::refusal;
use crate::support::fleet::{FLEET_TOKEN, Fleet, Manager};
use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::mayfly::Home;
use crate::support::moto::Moto;
use crate::support::pool::Pool;
use crate::support::recording_proxy::RecordingProxy;
use crate::support::scenario::Scenario;

/// Moto's account.
const ACCOUNT: &str = "123456789012";

/// A pool whose agents must have the role `agents`.
struct Proven {
    gitlab: GitLab,
    moto: Moto,
    aws_proxy: AwsProxy,
    fleet: Fleet,
    recorder: RecordingProxy,
}

impl Proven {
    fn new() -> Self {
        let (gitlab, moto) = (GitLab::start(), Moto::start());
        moto.python(
            "iam = client('iam')\nfor role in ('agents', 'others'):\n    iam.create_role(RoleName=role, \
             AssumeRolePolicyDocument=json.dumps({'Version': '2012-10-17', 'Statement': []}))",
        );
        moto.enforce_permissions();
        let aws_proxy = AwsProxy::start(&moto);
        let mut fleet = Pool::relay().runner(&with_role(ACCOUNT)).fleet(&gitlab);
        fleet.home.set_environment(vec![("AWS_ENDPOINT_URL".to_owned(), aws_proxy.url.clone())]);
        fleet.set_members(&["i-1", "i-2"]);
        let recorder = RecordingProxy::start(fleet.port);
        Self { gitlab, moto, aws_proxy, fleet, recorder }
    }

    /// The home of an agent on an instance, with the credentials of a role's session.
    fn home(&self, instance: &str, role: &str, session: &str) -> Home {
        self.moto.ignore_permissions();
        let keys = self.moto.python(&format!(
            "c = client('sts').assume_role(RoleArn='arn:aws:iam::{ACCOUNT}:role/{role}', RoleSessionName='{session}')['Credentials']\n\
             print(c['AccessKeyId'], c['SecretAccessKey'], c['SessionToken'])"
        ));
        self.moto.enforce_permissions();
        let keys: Vec<&str> = keys.split(' ').collect();
        let url = format!("http://127.0.0.1:{}", self.recorder.port);
        let mut home = Scenario::managed(instance).token("aws-sts").home_at(&url);
        let environment = [
            ("AWS_ENDPOINT_URL", self.aws_proxy.url.as_str()),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", keys[0]),
            ("AWS_SECRET_ACCESS_KEY", keys[1]),
            ("AWS_SESSION_TOKEN", keys[2]),
        ];
        home.set_environment(environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        home
    }

    /// The registration that an agent sent.
    fn registration(&self) -> Value {
        let all = self.recorder.bodies("/api/v4/runners/verify");
        all.into_iter().find(|body| body["mayfly"]["proof"].is_object()).expect("a registration with a proof")
    }

    /// Sends a registration, which must be refused with this status and reason.
    fn assert_refused(&self, manager: &Manager, body: &Value, status: u16, why: &str) {
        let (found, _, answer) = self.fleet.call("POST", "runners/verify", "", body);
        let reason = answer["message"].as_str().unwrap_or_default();
        assert!(found == status && reason.contains(why), "{found} {answer}\n{}", manager.log());
    }
}

/// The lines of a runner whose agents must have the role `agents` of an account.
fn with_role(account: &str) -> String {
    format!("[runners.mayfly]\nagent_role = \"arn:aws:iam::{account}:role/agents\"")
}

#[test]
fn an_agent_proves_its_role_and_what_it_sent_is_of_no_use_to_others() {
    let proven = Proven::new();
    let manager = proven.fleet.start();
    let home = proven.home("i-1", "agents", "i-1");
    let agent = home.start(&[]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = proven.gitlab.queue(job(&["echo proven"]).build());
    assert_eq!(proven.gitlab.finished(id).state, "success", "{}", agent.log());
    let sent = proven.registration();
    assert!(sent["token"].is_null() && !sent.to_string().contains("SecretAccessKey"), "{sent}");

    // A repetition succeeds, and the response contains only the token of the request.
    let (status, _, answer) = proven.fleet.call("POST", "runners/verify", "", &sent);
    assert_eq!((status, &answer["mayfly"]["token"]), (200, &sent["mayfly"]["agent_token"]), "{answer}");
    // Forged proofs: for another instance, another boot, or another agent, without the binding, with another signature.
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = sent.clone();
        change(&mut body["mayfly"]);
        body
    };
    let bound = "the proof was signed for another instance or boot";
    proven.assert_refused(&manager, &with(&|agent| agent["instance"] = json!("i-2")), 403, bound);
    proven.assert_refused(&manager, &with(&|agent| agent["boot"] = json!("another-boot")), 403, bound);
    let token = format!("mfa-{}", "0".repeat(48));
    proven.assert_refused(&manager, &with(&|agent| agent["agent_token"] = json!(token)), 403, bound);
    let change_header = |name: &str, change: &dyn Fn(&str) -> String| {
        let mut body = sent.clone();
        let headers = body["mayfly"]["proof"]["headers"].as_array_mut().expect("a list of headers");
        let header =
            headers.iter_mut().find(|header| header[0].as_str().is_some_and(|known| known.eq_ignore_ascii_case(name)));
        let header = header.unwrap_or_else(|| panic!("no header {name}"));
        header[1] = json!(change(header[1].as_str().expect("the header must be a text")));
        body
    };
    let unsigned = change_header("Authorization", &|text| text.replace("x-mayfly-binding", "x-mayfly-other"));
    proven.assert_refused(&manager, &unsigned, 403, bound);
    let forged = change_header("Authorization", &|text| {
        let (head, signature) = text.split_once("Signature=").expect("a signature");
        format!("{head}Signature={}", signature.chars().rev().collect::<String>())
    });
    proven.assert_refused(&manager, &forged, 403, "STS rejects the proof");
    let elsewhere = with(&|agent| agent["proof"]["region"] = json!("attacker.example.com/"));
    proven.assert_refused(&manager, &elsewhere, 403, "the proof names no region");
    // This pool does not accept the fleet token.
    let token =
        json!({"token": FLEET_TOKEN, "mayfly": {"protocol": 1, "instance": "i-2", "boot": "b", "version": "0"}});
    proven.assert_refused(&manager, &token, 403, "this pool requires a proof of its `agent_role`");
    // After 15 minutes, AWS no longer accepts the signature.
    proven.aws_proxy.rule(|call| {
        let why = format!("Signature expired: {} is now earlier than the limit", call.signed);
        (call.action == "GetCallerIdentity").then(|| refusal(403, "SignatureDoesNotMatch", &why))
    });
    proven.assert_refused(&manager, &sent, 403, "Signature expired");
    assert_eq!(manager.log().matches("agent registered").count(), 1, "{}", manager.log());
}

#[test]
fn another_role_another_session_and_another_account_are_refused() {
    let proven = Proven::new();
    let manager = proven.fleet.start();
    for (role, session) in [("others", "i-2"), ("agents", "i-1")] {
        let home = proven.home("i-2", role, session);
        let agent = home.start(&[]);
        let why = format!(
            "registration refused instance=i-2 error=the request was signed by arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}; \
             expected role arn:aws:iam::{ACCOUNT}:role/agents on instance i-2"
        );
        manager.wait_for_log(&why);
        agent.wait_for_log("the manager rejected the agent");
    }
    Pool::relay().runner(&with_role("999999999999")).write(&proven.fleet, &proven.gitlab.url);
    manager.signal("HUP");
    manager.wait_for_log("configuration loaded");
    let home = proven.home("i-1", "agents", "i-1");
    let _agent = home.start(&[]);
    manager.wait_for_log("expected role arn:aws:iam::999999999999:role/agents on instance i-1");
    assert!(!manager.log().contains("agent registered"), "{}", manager.log());
}
