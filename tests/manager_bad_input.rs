//! Pools that cannot work: the log names the pool and the remedy, and the other pools continue.

use std::fs;

use crate::support::gitlab::GitLab;
use crate::support::job::job;
use crate::support::mayfly::read;
use crate::support::moto::Moto;
use crate::support::pool::Pool;

/// A pool that holds jobs, with this token and these lines for `plugin` and `[runners.autoscaler.plugin_config]`.
fn pool(url: &str, name: &str, token: &str, plugin: &str, config: &str) -> String {
    format!(
        "\n[[runners]]\nname = \"{name}\"\nurl = \"{url}\"\ntoken = \"{token}\"\nexecutor = \"instance\"\n\
         [runners.autoscaler]\nplugin = \"{plugin}\"\ncapacity_per_instance = 1\nmax_instances = 10\n\
         update_interval = \"1s\"\nupdate_interval_when_expecting = \"200ms\"\n\
         [[runners.autoscaler.policy]]\nidle_count = 0\nidle_time = \"1h\"\n\
         [runners.autoscaler.plugin_config]\n{config}\n"
    )
}

fn shell(line: &str) -> String {
    format!("command = \"/bin/sh\"\nargs = [\"-c\", \"{line}\"]\ntimeout = \"1s\"")
}

#[test]
fn each_bad_pool_is_named_with_its_remedy_and_the_others_continue() {
    let (gitlab, moto) = (GitLab::start(), Moto::start());
    let mut fleet = Pool::relay().fleet(&gitlab);
    let environment = [
        ("AWS_ENDPOINT_URL", moto.url.as_str()),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "k"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
    ];
    fleet.home.set_environment(environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
    let empty = shell("while read -r line; do echo '{\\\"members\\\": []}'; done");
    let pools = [
        ("no-plugin", "t", "", "", "pool `no-plugin`: no group: write `plugin = \"aws\"`"),
        (
            "other-plugin",
            "t",
            "fleeting-plugin-azure",
            "",
            "pool `other-plugin`: `plugin = \"fleeting-plugin-azure\"`: mayfly has",
        ),
        ("no-group", "t", "aws", "region = \"eu-west-1\"", "pool `no-group`: no group: write `name`"),
        ("no-program", "t", "command", "", "pool `no-program`: no group: write `command`"),
        ("no-token", "", "aws", "name = \"a\"", "pool `no-token`: no `token`; write the runner's authentication token"),
        (
            "missing-group",
            "glrt-a",
            "aws",
            "name = \"missing\"\nregion = \"eu-west-1\"",
            "the Auto Scaling group `missing` does not exist in eu-west-1; correct `name` or `region` in plugin_config",
        ),
        ("missing-program", "glrt-b", "command", "command = \"/nonexistent/engine\"", "cannot be started"),
        ("nonsense", "glrt-c", "command", &shell("while read -r line; do echo nonsense; done"), "nonsense"),
        ("hangs", "glrt-d", "command", &shell("while read -r line; do sleep 1000; done"), "within 1 s"),
        (
            "refused",
            "glrt-e",
            "command",
            &empty,
            "GitLab rejected the runner of the pool; check its token with `mayfly verify`",
        ),
    ];
    let mut text = read(&fleet.home.config());
    for (name, token, plugin, config, _) in &pools {
        text += &pool(&gitlab.url, name, token, plugin, config);
    }
    fs::write(fleet.home.config(), text).expect("write a file");
    let (manager, _home, agent) = fleet.start_with_agent("i-1");
    for (name, .., remedy) in &pools {
        crate::support::fleet::wait_until(&format!("{name}: {remedy}"), || {
            let named = |line: &str| {
                line.contains(&format!("pool={name} "))
                    || line.ends_with(&format!("pool={name}"))
                    || line.contains(&format!("pool `{name}`"))
            };
            manager.log().lines().any(|line| named(line) && line.contains(remedy))
        });
        let id = gitlab.queue(job(&["echo fine"]).build());
        assert_eq!(gitlab.finished(id).state, "success", "{name}\n{}\n{}", agent.log(), manager.log());
    }
}
