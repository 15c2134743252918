//! Attacks by processes: processes that outlive their stage, that imitate the agent's shim, or that the agent would
//! start.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::mayfly::{is_running, nap};
use crate::support::scenario::Scenario;

use super::*;
use crate::support::kill_process;

#[test]
fn a_process_detaches_itself_and_stays() {
    let sleep = crate::support::mayfly::nap();
    let detached = format!("setsid sh -c '(setsid {sleep} &) &' </dev/null >/dev/null 2>&1 &");
    for containers in [true, false] {
        Attack { containers, ..in_containers() }.script(&[&detached, "sleep 0.3"]).run().succeeded();
        assert!(!crate::support::mayfly::is_running(&sleep), "it outlived its job");
    }
}

/// After a crash, the agent searches its shim by the arguments; a process of the job has the same arguments.
#[test]
fn a_process_says_that_it_is_the_shim() {
    let (gitlab, sleep) = (GitLab::start(), nap());
    let home = Scenario::shell().config("user = \"nobody\"").home(&gitlab);
    let fake = format!(
        "d=$(mktemp -d); chmod 755 $d; cd $d; echo '{sleep}; :' >shim; env -i setsid sh shim $MAYFLY_STEP >/dev/null 2>&1 &"
    );
    let id = gitlab.queue(job(&[&fake, "sleep 0.2; echo begun; sleep 1000"]).build());
    let agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    let shim = |record: &serde_json::Value| record["progress"]["stage"]["state"]["step"]["shim"]["pid"].as_i64();
    gitlab.wait_until("the shim in the journal", |_| shim(&home.record()).is_some());
    agent.kill();
    let mut record = home.record();
    let shim = shim(&record).expect("the process of the shim");
    assert!(kill_process(i32::try_from(shim).expect("a pid")), "the shim must still run");
    assert!(is_running(&sleep), "the false shim is there");
    // The journal of an agent that died before it recorded its shim.
    record["progress"]["stage"]["state"]["step"]["shim"] = json!(null);
    home.set_record(&record);
    let mut next = home.start(&["--once"]);
    let ended = gitlab.finished(id);
    assert_eq!(ended.failure_reason.as_deref(), Some("runner_system_failure"), "{}", ended.log());
    next.signal("QUIT");
    next.wait();
    assert!(!is_running(&sleep), "it outlived its job");
}

/// A credential helper that a job names must not run with the agent's rights.
#[test]
fn a_job_names_a_credential_helper() {
    let ground = tempfile::tempdir().expect("a directory");
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o777)).expect("set the permissions");
    let marker = ground.path().join("ran");
    let script = format!("#!/bin/sh\nid >{}\n", marker.display());
    let logins = json!({"credHelpers": {"registry.invalid": "hostile"}, "credsStore": "hostile"});
    in_containers()
        .program("docker-credential-hostile", &script)
        .variable("DOCKER_AUTH_CONFIG", &logins.to_string())
        .with("image", json!({"name": "registry.invalid/team/app:1"}))
        .run()
        .failed_with("allowed_credential_helpers")
        .made_no(&marker);
}

/// A job replaces the file of `GITLAB_ENV` before the agent reads it.
#[test]
fn the_file_of_variables_is_another_one() {
    let ground = tempfile::tempdir().expect("a directory");
    let secret = ground.path().join("secret");
    fs::write(&secret, "STOLEN=secret-of-root\n").expect("write the file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("set the permissions");
    fs::set_permissions(ground.path(), fs::Permissions::from_mode(0o755)).expect("set the permissions");
    let path = secret.display();
    for plant in
        [format!("ln -s {path} $GITLAB_ENV"), format!("ln {path} $GITLAB_ENV"), "mkfifo $GITLAB_ENV".to_owned()]
    {
        on_the_machine()
            .user("nobody")
            .script(&[&format!("rm -f $GITLAB_ENV; {plant} || :")])
            .with("hooks", json!([]))
            .run()
            .succeeded()
            .without("secret-of-root");
    }
}
