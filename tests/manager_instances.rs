//! Events of the cloud for the instances of a manager's pool: the manager never kills a running job, and it detects and
//! replaces a lost instance.

use std::fs;
use std::time::Duration;

use crate::fleet_from_zero::Cloud as Group;
use crate::support::cloud::Cloud;
use crate::support::cloud::autoscaling::result;
use crate::support::docker::docker;
use crate::support::fleet::wait_until;
use crate::support::gitlab::GitLab;
use crate::support::job::{job, until_there};
use crate::support::mayfly::kill_shims;
use crate::support::pool::Pool;
use crate::support::scenario::Scenario;

/// An instance refresh, a scale-in, or a rebalance terminates an instance; a lifecycle hook delays the termination.
#[test]
fn a_lifecycle_hook_is_extended_while_a_job_runs_and_completed_after_it() {
    let gitlab = GitLab::start();
    let group = Group::behind_front(&gitlab, Pool::short_lived());
    let aws_proxy = group.aws_proxy.clone().expect("the proxy before the AWS API");
    group.moto.ignore_permissions();
    group.moto.python(
        "client('autoscaling').put_lifecycle_hook(AutoScalingGroupName='pool', LifecycleHookName='drain', \
         LifecycleTransition='autoscaling:EC2_INSTANCE_TERMINATING', HeartbeatTimeout=60)",
    );
    group.moto.enforce_permissions();
    let manager = group.scaled.fleet.start();
    let go = group.scaled.fleet.home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    manager.wait_for_log("desired capacity set from=0 to=1 pool=pool");
    let (_, instances) = group.group();
    let instance = instances[0].clone();
    let home = Scenario::managed(&instance).mayfly("leave = \"exit\"").home_at(&group.scaled.fleet.url());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    // Moto implements neither the state nor the calls of a lifecycle hook.
    aws_proxy.edit(|call, body| match call.action.as_str() {
        "DescribeAutoScalingGroups" => body.replace(">InService<", ">Terminating:Wait<"),
        _ => body,
    });
    aws_proxy.rule(|call| match call.action.as_str() {
        action @ ("RecordLifecycleActionHeartbeat" | "CompleteLifecycleAction") => Some(result(action, "")),
        _ => None,
    });
    wait_until("the hook must be extended", || !aws_proxy.calls("RecordLifecycleActionHeartbeat").is_empty());
    let call = aws_proxy.calls("RecordLifecycleActionHeartbeat").remove(0);
    let parameter = |name: &str| call.parameters.get(name).map(String::as_str);
    assert_eq!(
        [parameter("AutoScalingGroupName"), parameter("LifecycleHookName"), parameter("InstanceId")],
        [Some("pool"), Some("drain"), Some(instance.as_str())]
    );
    assert!(aws_proxy.calls("CompleteLifecycleAction").is_empty() && gitlab.job_state(id) == "running");
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(agent.wait().success(), "{}", agent.log());
    wait_until("the hook must be completed", || !aws_proxy.calls("CompleteLifecycleAction").is_empty());
    let call = aws_proxy.calls("CompleteLifecycleAction").remove(0);
    assert_eq!(call.parameters.get("LifecycleActionResult").map(String::as_str), Some("CONTINUE"));
    assert_eq!(call.parameters.get("InstanceId"), Some(&instance));
    assert!(aws_proxy.calls("TerminateInstanceInAutoScalingGroup").is_empty(), "{}", manager.log());
}

#[test]
fn a_lost_instance_is_replaced_and_its_job_can_be_retried() {
    let gitlab = GitLab::start();
    let group = Group::behind_front(&gitlab, Pool::short_lived());
    let manager = group.scaled.fleet.start();
    let lost =
        gitlab.queue(job(&["echo begun", &until_there(group.scaled.fleet.home.path("never").display())]).build());
    manager.wait_for_log("desired capacity set from=0 to=1 pool=pool");
    let (_, instances) = group.group();
    let home = Scenario::managed(&instances[0]).mayfly("leave = \"exit\"").home_at(&group.scaled.fleet.url());
    let agent = home.start(&[]);
    gitlab.wait_for_log(lost, "begun");
    let retried = gitlab.queue(job(&["echo retried"]).build());
    kill_shims(lost);
    agent.kill();
    group.moto.ignore_permissions();
    group.moto.python(&format!("client('ec2').terminate_instances(InstanceIds=['{}'])", instances[0]));
    group.moto.enforce_permissions();
    let failed = gitlab.finished(lost);
    assert_eq!(failed.failure_reason.as_deref(), Some("runner_system_failure"), "{}", manager.log());
    manager.wait_for_log(&format!("instance lost: terminated outside of the manager instance={}", instances[0]));
    wait_until("another instance must come", || group.group().1.iter().any(|one| *one != instances[0]));
    let next = group.group().1.into_iter().find(|one| *one != instances[0]).expect("an instance");
    let home = Scenario::managed(&next).mayfly("leave = \"exit\"").home_at(&group.scaled.fleet.url());
    let agent = home.start(&[]);
    assert_eq!(gitlab.finished(retried).state, "success", "{}\n{}", agent.log(), manager.log());
}

#[test]
fn after_a_rebalance_recommendation_an_agent_ends_its_job_and_gets_no_other() {
    let (gitlab, cloud) = (GitLab::start(), Cloud::start());
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&[&cloud.instance, "i-2"]);
    let manager = fleet.start();
    let mut home = Scenario::managed(&cloud.instance).mayfly("leave = \"exit\"").home_at(&fleet.url());
    home.set_environment(cloud.environment());
    let mut agent = home.start(&[]);
    manager.wait_for_log(&format!("agent registered pool=pool instance={}", cloud.instance));
    let go = home.path("go");
    let running = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    gitlab.wait_for_log(running, "begun");
    cloud.recommend_rebalance();
    agent.wait_for_log("polling stopped reason=rebalance_recommendation");
    let next = gitlab.queue(job(&["echo next"]).build());
    let (_home, _other) = fleet.agent(&manager, "i-2");
    assert_eq!(gitlab.finished(next).state, "success", "{}", manager.log());
    manager.wait_for_log(&format!("job accepted pool=pool job={next} instance=i-2"));
    let terminated = || fleet.engine_calls().contains(&format!("\"instance\":\"{}\"", cloud.instance));
    assert!(gitlab.job_state(running) == "running" && !terminated(), "{}", fleet.engine_calls());
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(running).state, "success", "{}", agent.log());
    assert!(agent.wait().success(), "{}", agent.log());
    manager.wait_for_log(&format!("agent removed pool=pool instance={}", cloud.instance));
    wait_until("the instance must be terminated", terminated);
}

#[test]
fn an_interrupted_spot_instance_reports_its_job_and_deregisters_its_agent() {
    let (gitlab, cloud) = (GitLab::start(), Cloud::start());
    let fleet = Pool::relay().fleet(&gitlab);
    fleet.set_members(&[&cloud.instance]);
    let manager = fleet.start();
    let mut home = Scenario::managed(&cloud.instance).mayfly("leave = \"exit\"").home_at(&fleet.url());
    home.set_environment(cloud.environment());
    let mut agent = home.start(&[]);
    manager.wait_for_log(&format!("agent registered pool=pool instance={}", cloud.instance));
    let id = gitlab.queue(job(&["echo begun", &until_there(home.path("never").display())]).build());
    gitlab.wait_for_log(id, "begun");
    cloud.interrupt(Duration::from_secs(20));
    let done = gitlab.finished(id);
    assert_eq!(done.failure_reason.as_deref(), Some("runner_interrupted"), "{}", done.log());
    assert!(agent.wait().success(), "{}", agent.log());
    manager.wait_for_log(&format!("agent removed pool=pool instance={}", cloud.instance));
}

/// An instance of a warm pool does not count as a member; it registers when the group puts it into service.
#[test]
fn an_instance_of_a_warm_pool_works_from_its_service_on() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().fleet(&gitlab);
    fs::write(fleet.home.path("members"), "{\"members\": [{\"instance\": \"i-1\", \"state\": \"aside\"}]}\n")
        .expect("write a file");
    let manager = fleet.start();
    let home = Scenario::managed("i-1").home_at(&fleet.url());
    let agent = home.start(&[]);
    manager.wait_for_log("registration deferred: the instance is not in the group yet instance=i-1");
    assert!(!manager.log().contains("agent registered"), "{}", manager.log());
    fleet.set_members(&["i-1"]);
    manager.wait_for_log("agent registered pool=pool instance=i-1");
    let id = gitlab.queue(job(&["echo in service"]).build());
    assert_eq!(gitlab.finished(id).state, "success", "{}", agent.log());
    assert!(!fleet.engine_calls().contains("terminate"), "{}", fleet.engine_calls());
}

#[test]
fn jobs_wait_for_the_ready_command_of_the_pool() {
    let gitlab = GitLab::start();
    let directory = tempfile::tempdir().expect("a directory");
    let [ready, tried] = ["ready", "tried"].map(|name| directory.path().join(name));
    let command = format!("instance_ready_command = \"touch {}; test -e {}\"\n", tried.display(), ready.display());
    let fleet = Pool::hold().autoscaler(&command).fleet(&gitlab);
    let (manager, _home, agent) = fleet.start_with_agent("i-1");
    let id = gitlab.queue(job(&["echo ready"]).build());
    gitlab.wait_for_log(id, "waiting for an instance");
    wait_until("the command must run", || tried.exists());
    assert!(!manager.log().contains("job offered"), "{}", manager.log());
    fs::write(&ready, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
}

#[test]
fn an_instance_whose_ready_command_fails_is_dismissed_and_terminated() {
    let gitlab = GitLab::start();
    let fleet = Pool::relay().autoscaler("instance_ready_command = \"false\"").fleet(&gitlab);
    let (manager, _home, mut agent) = fleet.start_with_agent("i-1");
    assert!(agent.wait().success(), "{}", agent.log());
    assert!(agent.log().contains("reason=the machine is unfit for jobs"), "{}", agent.log());
    wait_until("the instance must be terminated", || {
        fleet.engine_calls().contains("\"call\":\"terminate\"") && fleet.engine_calls().contains("\"instance\":\"i-1\"")
    });
    assert!(manager.log().contains("agent removed pool=pool instance=i-1"), "{}", manager.log());
}

/// A hanging command prevents an agent from taking jobs, but not from leaving.
#[test]
fn an_agent_leaves_while_the_ready_command_hangs() {
    let gitlab = GitLab::start();
    let directory = tempfile::tempdir().expect("a directory");
    let tried = directory.path().join("tried");
    let command = format!("instance_ready_command = \"touch {}; sleep 60\"\n", tried.display());
    let fleet = Pool::relay().autoscaler(&command).fleet(&gitlab);
    let (_manager, _home, mut agent) = fleet.start_with_agent("i-1");
    wait_until("the command must run", || tried.exists());
    agent.signal("TERM");
    assert!(agent.wait().success(), "{}", agent.log());
}

/// The agent's own file has only the URL and the token: image, environment and engine come with the job.
#[test]
fn container_jobs_run_with_the_table_of_the_pool() {
    let gitlab = GitLab::start();
    let table = format!(
        "environment = [\"FROM_POOL=yes\"]\n[runners.docker]\nhost = \"{}\"\nimage = \"busybox:local\"\n\
         pull_policy = \"if-not-present\"\n",
        docker().host()
    );
    let fleet = Pool::relay().runner("executor = \"docker-autoscaler\"").runner(&table).fleet(&gitlab);
    let (manager, _home, agent) = fleet.start_with_agent("i-1");
    let id = gitlab.queue(job(&["test -e /.dockerenv", "echo \"in a container, pool $FROM_POOL\""]).build());
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}\n{}", done.log(), agent.log(), manager.log());
    assert!(done.has("in a container, pool yes") && done.has("busybox:local"), "{}", done.log());
}
