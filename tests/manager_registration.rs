//! Agents that register with a manager: tokens, members of the group, certificates, and lost responses.

use std::fs;

use serde_json::json;

use crate::support::fleet::{FLEET_TOKEN, wait_until};
use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::pki::Pki;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

#[test]
fn only_members_with_the_fleets_token_register_and_each_once_a_boot() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&["i-1", "i-2"]);
    let manager = fleet.start();
    wait_until("the members must be known", || fleet.register(FLEET_TOKEN, "i-1", "boot-1").0 == 200);
    for (token, instance, boot, expected) in [
        ("another-token-0123456789", "i-2", "boot-1", 403),
        (FLEET_TOKEN, "i-9", "boot-1", 404),
        (FLEET_TOKEN, "i-1", "boot-1", 409),
        (FLEET_TOKEN, "", "boot-1", 400),
    ] {
        let (status, head, body) = fleet.register(token, instance, boot);
        assert_eq!(status, expected, "{instance} {body}");
        assert!(head.contains("X-Mayfly-Manager: "), "{head}");
    }
    let (status, _, welcome) = fleet.register(FLEET_TOKEN, "i-1", "boot-2");
    assert_eq!(status, 200, "the instance was started again");
    let token = welcome["mayfly"]["token"].as_str().expect("a token").to_owned();
    assert_eq!(fleet.call("POST", "runners/heartbeat", &token, &json!({"jobs": []})).0, 200);
    for token in ["", FLEET_TOKEN, "mfa-0123"] {
        assert_eq!(fleet.call("POST", "runners/heartbeat", token, &json!({"jobs": []})).0, 401);
        assert_eq!(fleet.call("POST", "jobs/request", token, &json!({})).0, 401);
    }
    assert_eq!(fleet.call("PUT", "jobs/7", &token, &json!({"offer": "x", "state": "running"})).0, 409);
    assert_eq!(fleet.call("PUT", "jobs/7", &token, &json!({"state": "running"})).0, 400);
    let old = json!({"token": FLEET_TOKEN, "mayfly": {"protocol": 0, "instance": "i-2", "boot": "b", "version": "0"}});
    let (status, _, body) = fleet.call("POST", "runners/verify", FLEET_TOKEN, &old);
    assert!(status == 426 && body["message"].as_str().is_some_and(|why| why.contains("protocol 0")), "{body}");
    assert!(!manager.log().contains("another-token"), "{}", manager.log());
}

#[test]
fn agents_connect_over_tls_and_refuse_another_certificate() {
    let gitlab = GitLab::start();
    let pki = Pki::new();
    let fleet = Pool::relay().fleet(&gitlab);
    let identity = pki.server();
    let [certificate, key, authority] = ["cert.pem", "key.pem", "root.pem"].map(|name| fleet.home.path(name));
    for (path, pem) in [(&certificate, &identity.chain), (&key, &identity.key), (&authority, &pki.root)] {
        fs::write(path, pem).expect("write a file");
    }
    let tls = format!("certificate_file = \"{}\"\nkey_file = \"{}\"", certificate.display(), key.display());
    Pool::relay().tls(&tls).write(&fleet, &gitlab.url);
    fleet.set_members(&["i-1", "i-2"]);
    let manager = fleet.start();
    let url = format!("https://localhost:{}", fleet.port);
    let home = Scenario::managed("i-1").home_at(&url);
    let stranger = home.start(&[]);
    stranger.wait_for_log("certificate");
    assert!(!manager.log().contains("agent registered"), "{}", manager.log());
    drop(stranger);
    let trust = format!("tls-ca-file = \"{}\"", authority.display());
    Scenario::managed("i-1").runner(&trust).write(&home, &url);
    let agent = home.start(&[]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = gitlab.queue(job(&["echo over tls"]).build());
    assert!(gitlab.finished(id).has("over tls"), "{}", agent.log());
}

#[test]
fn an_agent_registers_again_after_a_lost_response() {
    let gitlab = GitLab::start();
    let fleet = Pool::hold().fleet(&gitlab);
    fleet.set_members(&["i-1"]);
    let manager = fleet.start();
    let register = |agent_token: &str| {
        let introduction =
            json!({"protocol": 1, "instance": "i-1", "boot": "b", "version": "0", "agent_token": agent_token});
        fleet.call("POST", "runners/verify", FLEET_TOKEN, &json!({"token": FLEET_TOKEN, "mayfly": introduction}))
    };
    let [own, other] = ["1", "2"].map(|digit| format!("mfa-{}", digit.repeat(48)));
    fleet.wait_until("the manager knows its members", || register(&own).0 != 404);
    let (status, _, body) = register(&own);
    assert_eq!((status, body["mayfly"]["token"].as_str()), (200, Some(own.as_str())), "{}", manager.log());
    assert_eq!(register(&other).0, 409, "another agent on the same instance");
    assert_eq!(register("mfa-1").0, 400, "a token that is easy to guess");
    assert_eq!(manager.log().matches("agent registered").count(), 1, "{}", manager.log());
}
