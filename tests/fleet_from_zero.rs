//! Fleets from zero: a job waits, the group grows, an agent registers, the job runs, the agent idles and leaves, and
//! the group is empty again. With agents as local processes, and with moto's Auto Scaling.

use std::fs;

use serde_json::Value;

use crate::documents::root;
use crate::engine_programs::LocalAgents;
use crate::manager_templates::granted;
use crate::metrics::{get, lint as lint_metrics};
use crate::support::aws_proxy::AwsProxy;
use crate::support::fleet::{FLEET_TOKEN, Fleet, Manager, wait_until};
use crate::support::gitlab::GitLab;
use crate::support::imds::Imds;
use crate::support::job::{job, until_there};
use crate::support::machine::{in_own_network, with_image};
use crate::support::mayfly::read;
use crate::support::moto::Moto;
use crate::support::pool::Pool;
use crate::support::ports::free_address;
use crate::support::scenario::Scenario;
use crate::support::wait_or_explain;

/// A fleet and the address of its status.
pub struct Scaled {
    pub fleet: Fleet,
    address: String,
    pool: Pool,
    gitlab: String,
}

impl Scaled {
    fn new(gitlab: &GitLab, pool: Pool) -> Self {
        let address = free_address();
        let pool = pool.config(&format!("listen_address = \"{address}\""));
        Self { fleet: pool.fleet(gitlab), address, pool, gitlab: gitlab.url.clone() }
    }

    /// Replaces the engine of the configuration.
    fn set_engine(&self, plugin: &str, settings: &str) {
        self.pool.clone().engine(plugin, settings).write(&self.fleet, &self.gitlab);
    }

    /// The pool in `/status`.
    pub fn status(&self) -> Value {
        let (_, body) = get(&self.address, "/status");
        serde_json::from_str::<Value>(&body).unwrap_or_else(|error| panic!("{error}: {body}"))["pools"][0].clone()
    }

    /// Waits until the pool is empty.
    pub fn wait_until_empty(&self, manager: &Manager) {
        let is_empty = || {
            let pool = self.status();
            pool["instances"].as_array().is_some_and(Vec::is_empty) && pool["group"]["desired"] == 0
        };
        wait_or_explain(is_empty, || format!("an empty pool: {:#}\n{}", self.status(), manager.log()));
    }
}

#[test]
fn agents_on_this_machine_from_zero_to_zero() {
    let gitlab = GitLab::start();
    let scaled = Scaled::new(&gitlab, Pool::short_lived());
    let home = &scaled.fleet.home;
    let _agents = LocalAgents(home.path("fleet"));
    fs::write(home.path("token"), FLEET_TOKEN).expect("write a file");
    let engine = root().join("docs/fleet/engines/local.sh");
    scaled.set_engine(
        "command",
        &format!(
            "command = \"{}\"\nargs = [\"{}\", \"{}\", \"{}\", \"{}\"]\n",
            engine.display(),
            home.path("fleet").display(),
            scaled.fleet.url(),
            home.path("token").display(),
            env!("CARGO_BIN_EXE_mayfly")
        ),
    );
    let manager = scaled.fleet.start();
    let jobs = [gitlab.queue(job(&["echo one"]).build()), gitlab.queue(job(&["echo two"]).build())];
    for id in jobs {
        let done = gitlab.finished(id);
        assert_eq!(done.state, "success", "{}\n{}", done.log(), manager.log());
    }
    assert!(manager.log().contains("desired capacity set from=0 to="), "{}", manager.log());
    manager.wait_for_log("shutdown of an agent requested instance=local-");
    scaled.wait_until_empty(&manager);
    let (_, metrics) = get(&scaled.address, "/metrics");
    assert_eq!(lint_metrics(&metrics), "");
    assert!(metrics.contains("mayfly_manager_boot_seconds_count{pool=\"pool\"}"), "{metrics}");
    let (status, page) = get(&scaled.address, "/");
    assert!(status == 200 && page.contains("desired capacity set from=0"), "{page}");
    assert!(!page.contains(FLEET_TOKEN) && !page.contains("tokenOfTheRunner"), "{page}");
    let output = home.call(&["status", "--config", &home.config().display().to_string()]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && shown.contains("pool pool\n") && shown.contains("policy in force:"), "{shown}");
}

/// A machine that boots from an image with the package, and gets the user data of the recipe from its cloud.
#[test]
fn a_machine_from_zero_to_zero() {
    with_image("", |image| {
        in_own_network(|| {
            const INSTANCE: &str = "i-0abc0000000000001";
            let gitlab = GitLab::start();
            let fleet = Pool::short_lived().fleet(&gitlab);
            let user_data = read(&root().join("cloud-init/manager-agent.yaml"))
                .replace("https://manager.example.com:9253", &fleet.url())
                .replace("token = \"fleet-token\"", &format!("token = \"{FLEET_TOKEN}\""))
                // The firmware of the machine is not that of EC2.
                .replace("leave = \"exit\"", &format!("leave = \"exit\"\n      instance_id = \"{INSTANCE}\""))
                // There is no packet filter in the machine.
                .replace("block_instance_metadata = true", "block_instance_metadata = false");
            let _imds = Imds::start(INSTANCE, &user_data);
            let manager = fleet.start();
            let id = gitlab.queue(job(&["echo \"$(id -un) on a new machine\""]).build());
            wait_until("the group must grow", || {
                fleet.engine_calls().contains("{\"call\":\"set_target\",\"instances\":1}")
            });
            let machine = image.boot();
            fleet.set_members(&[INSTANCE]);
            let done = gitlab.finished(id);
            assert_eq!(done.state, "success", "{}\n{}\n{}", done.log(), machine.journal(), manager.log());
            assert!(done.has("mayfly-job on a new machine"), "{}", done.log());
            manager.wait_for_log(&format!("shutdown of an agent requested instance={INSTANCE}"));
            let terminate = format!("{{\"call\":\"terminate\",\"decrement\":true,\"instance\":\"{INSTANCE}\"}}");
            let explain = || format!("`{terminate}` in the calls:\n{}\n{}", fleet.engine_calls(), manager.log());
            wait_or_explain(|| fleet.engine_calls().contains(&terminate), explain);
            drop(machine);
            fleet.set_members(&[]);
            gitlab.assert_strict();
        });
    });
}

/// A group without instances, and a manager with the permissions of the recipe.
pub struct Cloud {
    pub scaled: Scaled,
    pub moto: Moto,
    /// The proxy between the manager and moto, if the test uses one.
    pub aws_proxy: Option<AwsProxy>,
}

impl Cloud {
    fn new(gitlab: &GitLab, pool: Pool) -> Self {
        Self::with(gitlab, pool, |_| None)
    }

    /// The same, with a proxy between the manager and moto.
    pub fn behind_front(gitlab: &GitLab, pool: Pool) -> Self {
        Self::with(gitlab, pool, |moto| Some(AwsProxy::start(moto)))
    }

    fn with(gitlab: &GitLab, pool: Pool, start_proxy: impl FnOnce(&Moto) -> Option<AwsProxy>) -> Self {
        let moto = Moto::start();
        let aws_proxy = start_proxy(&moto);
        moto.python(
            "ec2 = client('ec2')\n\
             image = ec2.register_image(Name='image', RootDeviceName='/dev/xvda')['ImageId']\n\
             subnet = ec2.describe_subnets()['Subnets'][0]['SubnetId']\n\
             ec2.create_launch_template(LaunchTemplateName='template', LaunchTemplateData=dict(ImageId=image, InstanceType='t3.small'))\n\
             client('autoscaling').create_auto_scaling_group(AutoScalingGroupName='pool', VPCZoneIdentifier=subnet, MinSize=0, \
             MaxSize=5, NewInstancesProtectedFromScaleIn=True, LaunchTemplate=dict(LaunchTemplateName='template', Version='$Latest'))",
        );
        let granted = granted();
        let actions: Vec<&str> = granted.iter().map(String::as_str).collect();
        let user = moto.user("manager", &actions);
        moto.enforce_permissions();
        let mut scaled = Scaled::new(gitlab, pool);
        scaled.set_engine("aws", "name = \"pool\"\nregion = \"eu-west-1\"\n");
        let environment = [
            ("AWS_ENDPOINT_URL", aws_proxy.as_ref().map_or(moto.url.as_str(), |proxy| &proxy.url)),
            ("AWS_ACCESS_KEY_ID", &user.access_key),
            ("AWS_SECRET_ACCESS_KEY", &user.secret_key),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        scaled.fleet.home.set_environment(environment.to_vec());
        Self { scaled, moto, aws_proxy }
    }

    /// The group's desired capacity and instances.
    pub fn group(&self) -> (u64, Vec<String>) {
        self.moto.ignore_permissions();
        let text = self.moto.python(
            "g = client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]\n\
             print(json.dumps([g['DesiredCapacity'], [i['InstanceId'] for i in g['Instances']]]))",
        );
        self.moto.enforce_permissions();
        let read: (u64, Vec<String>) = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        read
    }
}

#[test]
fn an_auto_scaling_group_from_zero_to_zero_with_the_permissions_of_the_recipe() {
    let gitlab = GitLab::start();
    let cloud = Cloud::new(&gitlab, Pool::short_lived());
    let manager = cloud.scaled.fleet.start();
    assert_eq!(cloud.group(), (0, vec![]));
    let id = gitlab.queue(job(&["echo from zero"]).build());
    manager.wait_for_log("desired capacity set from=0 to=1 pool=pool");
    let (desired, instances) = cloud.group();
    assert_eq!((desired, instances.len()), (1, 1), "{instances:?}");
    let home = Scenario::managed(&instances[0]).mayfly("leave = \"exit\"").home_at(&cloud.scaled.fleet.url());
    let mut agent = home.start(&[]);
    let done = gitlab.finished(id);
    assert_eq!(done.state, "success", "{}\n{}\n{}", done.log(), agent.log(), manager.log());
    assert!(agent.wait().success(), "{}", agent.log());
    manager.wait_for_log(&format!("instance terminated instance={} decrement=true", instances[0]));
    assert_eq!(cloud.group(), (0, vec![]));
    cloud.scaled.wait_until_empty(&manager);
    assert!(!manager.log().contains("AccessDenied"), "{}", manager.log());
    assert!(!manager.log().contains("another client changed the desired capacity"), "{}", manager.log());
    gitlab.assert_strict();
}

#[test]
fn a_restart_of_the_manager_terminates_nothing() {
    let gitlab = GitLab::start();
    let cloud = Cloud::new(&gitlab, Pool::short_lived());
    let manager = cloud.scaled.fleet.start();
    let go = cloud.scaled.fleet.home.path("go");
    let id = gitlab.queue(job(&["echo begun", &until_there(go.display())]).build());
    manager.wait_for_log("desired capacity set from=0 to=1 pool=pool");
    let (_, instances) = cloud.group();
    let home = Scenario::managed(&instances[0]).mayfly("leave = \"exit\"").home_at(&cloud.scaled.fleet.url());
    let mut agent = home.start(&[]);
    gitlab.wait_for_log(id, "begun");
    manager.kill();
    let manager = cloud.scaled.fleet.start();
    wait_until("the agent is known again", || cloud.scaled.status()["instances"][0]["state"] == "busy");
    assert_eq!(cloud.group(), (1, instances.clone()));
    fs::write(&go, "").expect("write a file");
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(agent.wait().success(), "{}", agent.log());
    cloud.scaled.wait_until_empty(&manager);
    assert_eq!(cloud.group(), (0, vec![]));
}

#[test]
fn without_aws_idle_agents_still_get_jobs() {
    let gitlab = GitLab::start();
    let cloud = Cloud::new(&gitlab, Pool::with_policy("idle_count = 1\nidle_time = \"1h\""));
    let manager = cloud.scaled.fleet.start();
    manager.wait_for_log("desired capacity set from=0 to=1 pool=pool");
    let (_, instances) = cloud.group();
    let home = Scenario::managed(&instances[0]).home_at(&cloud.scaled.fleet.url());
    let agent = home.start(&[]);
    wait_until("the agent is idle", || cloud.scaled.status()["instances"][0]["state"] == "idle");
    let Cloud { scaled, moto, .. } = cloud;
    drop(moto);
    manager.wait_for_log("engine call failed; retrying in the next round pool=pool");
    let id = gitlab.queue(job(&["echo relayed"]).build());
    assert_eq!(gitlab.finished(id).state, "success", "{}\n{}", agent.log(), manager.log());
    assert!(scaled.status()["engine_error"].is_string(), "{:#}", scaled.status());
    let lists = manager.log().matches("error=autoscaling:DescribeAutoScalingGroups").count();
    assert_eq!(lists, 1, "told once: {}", manager.log());
}

/// A group whose instances depend on `mode`: with `quota` none starts; with `broken` they never register.
const GROUP: &str = r#"
import datetime, json, sys
mode, log = sys.argv[1], open(sys.argv[2], "a")
desired, members, number = 0, [], 0
def start():
    global number
    number += 1
    members.append("i-%d" % number)
for line in sys.stdin:
    request, answer = json.loads(line), {}
    call = request["call"]
    if call == "group":
        answer = {"desired": desired, "max": 9, "members": [{"instance": one} for one in members]}
    elif call == "set_target":
        desired = request["instances"]
        while mode == "broken" and len(members) < desired:
            start()
    elif call == "terminate":
        members.remove(request["instance"])
        if request["decrement"]:
            desired -= 1
        else:
            start()
    elif call == "failures" and mode == "quota" and desired > 0:
        at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        answer = {"failures": [{"at": at, "cause": "vCPU limit of 0", "kind": "quota"}]}
    if call != "group":
        print(line.strip(), file=log, flush=True)
    print(json.dumps(answer), flush=True)
"#;

fn group_of(scaled: &Scaled, mode: &str) {
    let home = &scaled.fleet.home;
    fs::write(home.path("group.py"), GROUP).expect("write a file");
    scaled.set_engine(
        "command",
        &format!(
            "command = \"/usr/bin/python3\"\nargs = [\"{}\", \"{mode}\", \"{}\"]\n",
            home.path("group.py").display(),
            home.path("calls").display()
        ),
    );
}

#[test]
fn a_reached_quota_stops_growth_and_names_the_cause() {
    let gitlab = GitLab::start();
    let scaled = Scaled::new(&gitlab, Pool::short_lived());
    group_of(&scaled, "quota");
    let manager = scaled.fleet.start();
    gitlab.queue(job(&["echo waits"]).build());
    manager.wait_for_log("growth stopped: the group cannot start instances: vCPU limit of 0 (quota); raise the quota");
    wait_until("nothing is asked for any more", || scaled.status()["group"]["desired"] == 0);
    let pool = scaled.status();
    assert_eq!((&pool["hold_budget"], pool["stopped"].is_string()), (&0.into(), true), "{pool:#}");
    let (_, metrics) = get(&scaled.address, "/metrics");
    assert!(metrics.contains("mayfly_manager_growth_stopped{pool=\"pool\"} 1"), "{metrics}");
    assert!(metrics.contains("mayfly_manager_failed_starts_total{pool=\"pool\",cause=\"quota\"} 1"), "{metrics}");
    let (_, page) = get(&scaled.address, "/");
    assert!(page.contains("Growth is stopped:</strong> vCPU limit of 0 (quota)"), "{page}");
}

#[test]
fn instances_of_a_broken_image_are_replaced_twice_and_then_growth_stops() {
    let gitlab = GitLab::start();
    let scaled = Scaled::new(&gitlab, Pool::short_lived().manager("registration_timeout = \"1s\""));
    group_of(&scaled, "broken");
    let manager = scaled.fleet.start();
    gitlab.queue(job(&["echo waits"]).build());
    manager.wait_for_log("growth stopped: 3 instances in a row did not register within 1 s");
    wait_until("the third is gone as well", || scaled.status()["group"]["desired"] == 0);
    let calls = read(&scaled.fleet.home.path("calls"));
    let terminated: Vec<&str> = calls.lines().filter(|line| line.contains("\"terminate\"")).collect();
    let kept = |line: &&&str| line.contains("\"decrement\":false");
    assert_eq!((terminated.len(), terminated.iter().filter(kept).count()), (3, 2), "{calls}");
    manager.wait_for_log("scaling activities: no start failed");
}
