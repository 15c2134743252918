//! `mayfly check` and `lint` for pools, with moto's Auto Scaling.

use std::collections::BTreeSet;
use std::fs;

use crate::manager_templates::granted;
use crate::support::mayfly::Home;
use crate::support::moto::{Moto, User};
use crate::support::output_text;
use crate::support::recording_proxy::RecordingProxy;

/// Creates a group with these arguments of boto3 and a launch template.
fn group(moto: &Moto, template: &str, arguments: &str) {
    moto.python(&format!(
        "ec2 = client('ec2')\n\
         image = ec2.register_image(Name='image', RootDeviceName='/dev/xvda')['ImageId']\n\
         subnet = ec2.describe_subnets()['Subnets'][0]['SubnetId']\n\
         ec2.create_launch_template(LaunchTemplateName='template', LaunchTemplateData=dict(ImageId=image, InstanceType='t3.small', {template}))\n\
         a = client('autoscaling')\n\
         a.create_auto_scaling_group(AutoScalingGroupName='pool', VPCZoneIdentifier=subnet, \
         LaunchTemplate=dict(LaunchTemplateName='template', Version='$Latest'), {arguments})"
    ));
}

const GOOD_TEMPLATE: &str =
    "InstanceInitiatedShutdownBehavior='terminate', MetadataOptions=dict(HttpTokens='required')";

fn pools(home: &mut Home, moto: &Moto, user: &User, group: &str) {
    let text = format!(
        "concurrent = 20\n[mayfly.manager]\nplain_http = true\nagent_token = \"0123456789abcdef\"\nlisten = \"127.0.0.1:0\"\n\
         state_dir = \"{}\"\n\
         [[runners]]\nname = \"fleet\"\nurl = \"http://127.0.0.1:1\"\ntoken = \"t\"\nexecutor = \"docker-autoscaler\"\n\
         [runners.docker]\nimage = \"alpine\"\n[runners.autoscaler]\nplugin = \"aws\"\ncapacity_per_instance = 1\n\
         max_instances = 5\n[runners.autoscaler.plugin_config]\nname = \"{group}\"\n\
         [[runners.autoscaler.policy]]\nidle_time = \"5m\"\n",
        home.path("manager").display()
    );
    fs::write(home.config(), text).expect("write a file");
    home.set_environment(user.environment(moto));
}

fn check(home: &Home) -> String {
    let output = home.call(&["check", "--config", &home.config().display().to_string()]);
    output_text(&output)
}

/// A user with the permissions of the template.
fn manager(moto: &Moto) -> User {
    let granted = granted();
    let actions: Vec<&str> = granted.iter().map(String::as_str).collect();
    moto.user("manager", &actions)
}

#[test]
fn a_group_of_the_recipe_is_good_with_the_permissions_of_the_recipe() {
    let moto = Moto::start();
    group(&moto, GOOD_TEMPLATE, "MinSize=0, MaxSize=5, NewInstancesProtectedFromScaleIn=True");
    let user = manager(&moto);
    moto.enforce_permissions();
    let mut home = Home::empty();
    pools(&mut home, &moto, &user, "pool");
    let report = check(&home);
    for part in [
        "ok       pool `fleet`: group: minimum 0, maximum 5, desired 0",
        "ok       pool `fleet`: scale-in protection",
        "ok       pool `fleet`: scaling policies: none",
        "ok       pool `fleet`: lifecycle hooks: none",
        "ok       pool `fleet`: launch template",
        "ok       pool `fleet`: permissions: autoscaling:SetDesiredCapacity is allowed",
        "ok       pool `fleet`: permissions: ec2:DescribeInstances is allowed",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(!report.contains("AccessDenied"), "{report}");
    moto.ignore_permissions();
    let group = moto.python(
        "g = client('autoscaling').describe_auto_scaling_groups()['AutoScalingGroups'][0]\n\
         print(g['DesiredCapacity'], len(g['Instances']))",
    );
    assert_eq!(group.trim(), "0 0", "a check changes nothing");
}

/// `check` makes every call of the manager, so a permission without a call here is not needed. Other tests show that
/// these permissions suffice.
#[test]
fn the_recipe_grants_exactly_the_calls_that_are_made() {
    let moto = Moto::start();
    group(&moto, GOOD_TEMPLATE, "MinSize=0, MaxSize=5, NewInstancesProtectedFromScaleIn=True");
    moto.python(
        "client('autoscaling').put_lifecycle_hook(AutoScalingGroupName='pool', LifecycleHookName='end', \
         LifecycleTransition='autoscaling:EC2_INSTANCE_TERMINATING')\n\
         client('ssm').put_parameter(Name='/ci/runner-token', Type='SecureString', Value='glrt-t')",
    );
    let user = manager(&moto);
    let port = moto.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let recorder = RecordingProxy::start(port);
    let mut home = Home::empty();
    pools(&mut home, &moto, &user, "pool");
    let mut environment = user.environment(&moto);
    environment[0].1 = format!("http://127.0.0.1:{}", recorder.port);
    home.set_environment(environment);
    let text = fs::read_to_string(home.config()).expect("a configuration");
    fs::write(home.config(), text.replace("token = \"t\"", "token = \"aws-ssm:/ci/runner-token\""))
        .expect("write a file");
    let report = check(&home);
    let sent = recorder.text();
    let word = |text: &str| text.chars().take_while(char::is_ascii_alphanumeric).collect::<String>();
    let after = |mark: &str| sent.split(mark).skip(1).map(word).collect::<Vec<String>>();
    let mut called: BTreeSet<String> = after("AmazonSSM.").into_iter().map(|action| format!("ssm:{action}")).collect();
    for action in after("Action=") {
        let service = if action == "DescribeInstances" || action.contains("Template") { "ec2" } else { "autoscaling" };
        called.insert(format!("{service}:{action}"));
    }
    assert_eq!(called, granted(), "{report}");
}

#[test]
fn each_fault_of_a_group_has_its_remedy() {
    let moto = Moto::start();
    group(&moto, "InstanceInitiatedShutdownBehavior='stop'", "MinSize=1, MaxSize=5");
    moto.python(
        "a = client('autoscaling')\n\
         a.put_scaling_policy(AutoScalingGroupName='pool', PolicyName='others', AdjustmentType='ChangeInCapacity', ScalingAdjustment=1)\n\
         a.suspend_processes(AutoScalingGroupName='pool', ScalingProcesses=['Launch'])\n\
         a.put_lifecycle_hook(AutoScalingGroupName='pool', LifecycleHookName='boot', \
         LifecycleTransition='autoscaling:EC2_INSTANCE_LAUNCHING')",
    );
    let user = manager(&moto);
    moto.enforce_permissions();
    let mut home = Home::empty();
    pools(&mut home, &moto, &user, "pool");
    let report = check(&home);
    for part in [
        "warning  pool `fleet`: group: minimum 1, maximum 5, desired 1; the fleet never gets to 0",
        "FAIL     pool `fleet`: suspended processes: Launch is suspended; resume it",
        "warning  pool `fleet`: suspended processes: AZRebalance is not suspended",
        "warning  pool `fleet`: scale-in protection: new instances are not protected",
        "FAIL     pool `fleet`: scaling policies: others also set the desired capacity, against the manager; delete them",
        "warning  pool `fleet`: lifecycle hooks: `boot` holds each new instance",
        "warning  pool `fleet`: launch template: an instance that powers itself off is stopped first",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
}

#[test]
fn a_group_that_is_missing_and_a_right_that_is_missing_are_named() {
    let moto = Moto::start();
    group(&moto, GOOD_TEMPLATE, "MinSize=0, MaxSize=3");
    let user = manager(&moto);
    let reader = moto.user("reader", &["autoscaling:DescribeAutoScalingGroups"]);
    moto.enforce_permissions();
    let mut home = Home::empty();
    pools(&mut home, &moto, &user, "other");
    let report = check(&home);
    assert!(
        report.contains("FAIL     pool `fleet`: group: the Auto Scaling group `other` does not exist in"),
        "{report}"
    );
    pools(&mut home, &moto, &reader, "pool");
    let report = check(&home);
    let denied =
        "FAIL     pool `fleet`: permissions: autoscaling:SetDesiredCapacity: AWS refused the call with AccessDenied";
    assert!(report.contains(denied), "{report}");
    assert!(report.contains("; allow autoscaling:SetDesiredCapacity in the manager's policy"), "{report}");
    let denied =
        "warning  pool `fleet`: permissions: autoscaling:TerminateInstanceInAutoScalingGroup: AWS refused the call";
    assert!(report.contains(denied), "{report}");
    let small = "maximum 3, desired 0, so the pool has at most 3 instances; raise the maximum to 5";
    assert!(report.contains(small), "{report}");
    assert!(report.contains(&format!("state directory: {}", home.path("manager").display())), "{report}");
}
